"""ImageNet and its variants V2, Sketch, -A, -R and -C, with open_clip's 1000 class names."""

from __future__ import annotations

from pathlib import Path

from lqn_seg.data.labelled_images import load_image_folder
from lqn_seg.data.metadata import Dataset
from lqn_seg.data.wordnet import class_folders

# name -> folder of the class folders, and timm's name of the classes it is scored over
VARIANTS = {
    "imagenet_val": ("imagenet/images/val", "imagenet"),
    "imagenet_v2": ("imagenetv2/imagenetv2-matched-frequency-format-val", "imagenet"),
    "imagenet_sketch": ("imagenet-sketch/images", "imagenet"),
    "imagenet_a": ("imagenet-adversarial/imagenet-a", "imagenet_a"),
    "imagenet_r": ("imagenet-rendition/imagenet-r", "imagenet_r"),
}
IMAGENET_C = "imagenet-c"
# Hendrycks and Dietterich's 15 and their four extra ones; five severities each.
C_CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur"),
    *("motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast"),
    *("elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
)
HOW_TO_GET = "get it from its authors; datasets/README.md says where its folders go"


def load_imagenet(name: str, root: Path) -> Dataset:
    """Open ImageNet's validation images or one of `VARIANTS`; `root` holds their folders.

    V2's folders are the labels 0..999 and not WordNet ids.
    """
    folder, classes = VARIANTS[name]
    folders = class_folders(classes)
    if name == "imagenet_v2":
        folders = {str(label): text for label, text in enumerate(folders.values())}
    return load_image_folder(name, root / folder, folders, how_to_get=HOW_TO_GET)


def load_imagenet_c(name: str, root: Path, corruption: str, severity: int) -> Dataset:
    """Open ``imagenet-c/<corruption>/<severity>/<wnid>``: corrupted by its authors, not by us."""
    folder = root / IMAGENET_C / corruption / str(severity)
    return load_image_folder(name, folder, class_folders("imagenet"), how_to_get=HOW_TO_GET)
