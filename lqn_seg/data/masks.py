"""Binary masks as COCO's run lengths (RLE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) as "segmentation" (compressed RLE, text), "area" in pixels and "bbox"."""
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    area, box = int(mask_api.area(rle)), mask_api.toBbox(rle).tolist()
    return {"segmentation": _text(rle), "area": area, "bbox": box}


def compress(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """COCO's three forms (polygons, list of run lengths, compressed RLE) as compressed RLE.

    Raises:
        ValueError: it is none of the three, or a mask of another size.
    """
    try:
        if isinstance(segmentation, list):
            return _text(mask_api.merge(mask_api.frPyObjects(segmentation, height, width)))
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its size is {segmentation['size']}")
        if isinstance(segmentation["counts"], list):
            return _text(mask_api.frPyObjects(segmentation, height, width))
        decode(segmentation)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError("it is no polygon and no run lengths") from error
    return dict(segmentation)


def decode(segmentation: Mapping[str, Any]) -> NDArray[np.bool_]:
    """A compressed RLE as a mask (H, W)."""
    return mask_api.decode(dict(segmentation)).astype(bool)


def _text(rle: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
