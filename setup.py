"""Install lqn_seg from package indexes alone. Detectron2 plugs in when it is there."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
DOCS = ["mkdocs", "mkdocstrings[python]", "Pygments"]

setup(
    name="lqn_seg",
    version="0.1.0",
    description="Test-time training by querying layers, for segmentation and classification",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["lqn_seg", "lqn_seg.*"]),
    package_data={"lqn_seg.explorer": ["page.html"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.9",  # torch.optim.Muon trains teachers
        "torchvision",
        "transformers>=4.57",  # EomtForUniversalSegmentation with a loading report
        "timm",
        "open_clip_torch>=2.30",  # CLIP teachers, their tokenizer, templates and class names
        "huggingface_hub",
        "safetensors",
        "scipy",  # transformers' EoMT asks for it when it is built
        "pycocotools",
        "cityscapesscripts",
        "fvcore",
        "opencv-python",
        "numpy",
        "Pillow>=11.2",
        "matplotlib",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "docs": DOCS,  # mkdocs serve
        "figures": ["scikit-learn"],  # tools/visualize.py tokens --projection tsne
        "dev": [
            *DOCS,
            "pytest",
            "pytest-timeout",
            "hypothesis",
            "ruff==0.17.5",
            "mypy==2.4.1",
            "types-PyYAML",
            "types-tabulate",
        ],
    },
)
