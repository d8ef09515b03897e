"""WordNet ids, which ImageNet's folders are called, and open_clip's 1000 class names for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files

_WNID = re.compile(r"n\d{8}")


@lru_cache(maxsize=4)
def class_folders(classes: str) -> dict[str, str]:
    """WordNet id -> class name, in the order of the labels.

    Args:
        classes: "imagenet", or "imagenet_a" or "imagenet_r" for the 200 that these sets hold (and
            are scored over).
    """
    from open_clip import IMAGENET_CLASSNAMES  # seconds, which no other data set shall wait for

    names = dict(zip(_wnids("imagenet"), IMAGENET_CLASSNAMES, strict=True))
    return {wnid: names[wnid] for wnid in _wnids(classes)}


def name_wnids(folders: Iterable[str]) -> dict[str, str]:
    """Those of the folders that are WordNet ids -> ImageNet's class names, or "" without one."""
    wnids = [folder for folder in folders if _WNID.fullmatch(folder)]
    names = class_folders("imagenet") if wnids else {}
    return {wnid: names.get(wnid, "") for wnid in wnids}


def _wnids(classes: str) -> list[str]:
    """timm ships these lists."""
    file = files("timm.data") / "_info" / f"{classes}_synsets.txt"
    return file.read_text().split()
