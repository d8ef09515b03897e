"""Install lqn_seg from package indexes alone. Detectron2 plugs in when it is there.

`tox` runs the tests with the lowest version that each bound allows, and with the newest.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
# What a checkout has at its top and an installed package in `lqn_seg/shipped`
# (`lqn_seg.data.shipped`); a checkout may hold larger data sets beside these.
SHIPPED = (
    "configs/**/*.*",
    *("datasets/demo/annotations/panoptic_val.json", "datasets/demo/panoptic_val/*.png"),
    *("datasets/demo/perturbed/*.*", "datasets/demo/teacher/*.*", "datasets/demo/val/*.png"),
    *("datasets/demo_objects/teacher/*.*", "datasets/demo_objects/val/*/*.png"),
)
TEST = [
    "pip>=24.0",  # with setuptools: builds a wheel and installs it
    "setuptools>=75",
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.112",
]


class BuildPy(build_py):
    """Puts `SHIPPED` into wheels; an editable install reads it where it lies."""

    def shipped(self) -> list[str]:
        found = (path for pattern in SHIPPED for path in HERE.glob(pattern))
        return sorted(str(path.relative_to(HERE)) for path in found if path.suffix != ".pyc")

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self.shipped()]

    def run(self) -> None:
        super().run()
        for file in () if self.editable_mode else self.shipped():
            target = Path(self.build_lib, "lqn_seg", "shipped", file)
            self.mkpath(str(target.parent))
            self.copy_file(str(HERE / file), str(target))


setup(
    name="lqn_seg",
    version="0.1.0",
    description="Test-time training by querying layers, for segmentation and classification",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["lqn_seg", "lqn_seg.*"]),
    package_data={
        "lqn_seg": ["py.typed"],
        "lqn_seg.data": ["ade20k.txt", "sets.json"],
        "lqn_seg.lab.explorer": ["*.html", "*.css", "*.js"],
    },
    cmdclass={"build_py": BuildPy},
    entry_points={"console_scripts": ["lqn-seg = lqn_seg.cli:main"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.9",  # torch.optim.Muon trains teachers
        "torchvision>=0.24",  # torch 2.9's
        "transformers>=4.57",  # EomtForUniversalSegmentation with a loading report
        "timm>=1.0.20",
        "open_clip_torch>=3.0",  # CLIP teachers, their tokenizer, templates and class names
        "huggingface_hub>=0.34",
        "safetensors>=0.5",
        "scipy>=1.14",  # transformers' EoMT asks for it when it is built
        "pycocotools>=2.0.8",
        "cityscapesscripts>=2.2.4",
        "fvcore>=0.1.5.post20221221",
        "opencv-python>=4.11",
        "numpy>=2.0",
        "Pillow>=11.2",
        "matplotlib>=3.9",
        "msgspec>=0.19",  # schemas of the JSON that data sets come with
        "PyYAML>=6.0.2",
        "tabulate>=0.9",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": TEST,
        "profile": ["pyinstrument>=5.0"],  # flame graphs of lqn-seg benchmark --end-to-end
        "docs": ["mkdocs>=1.6", "mkdocstrings[python]>=0.26", "Pygments>=2.18"],  # mkdocs serve
        "dev": [
            *TEST,
            "ruff==0.17.5",
            "mypy==2.4.1",
            "types-PyYAML",
            "types-tabulate",
            "tox>=4.20",
            "tox-uv>=1.15",
        ],
    },
)
