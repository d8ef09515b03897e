"""Install lqn_seg from package indexes alone. Detectron2 plugs in when it is there.

`tox` runs the tests with the lowest version that each bound allows, and with the newest.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
TEST = [
    "setuptools",
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.112",
]

setup(
    name="lqn_seg",
    version="0.1.0",
    description="Test-time training by querying layers, for segmentation and classification",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["lqn_seg", "lqn_seg.*"]),
    package_data={
        "lqn_seg.data": ["ade20k.txt", "sets.json"],
        "lqn_seg.lab.explorer": ["page.html"],
    },
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
