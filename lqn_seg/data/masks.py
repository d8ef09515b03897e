"""Binary masks as COCO's run lengths (RLE).

Masks from files are checked here before pycocotools sees them: run lengths that do not add up keep
it busy for ever, and a damaged compressed mask makes it read beyond its memory.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from lqn_seg.data.schema import Polygons, RunLengths, Segmentation

# How far outside an image a polygon may reach, in image sides: pycocotools holds every pixel of an
# edge in memory.
_REACH = 10


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) as "segmentation" (compressed RLE, text), "area" in pixels and "bbox"."""
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    area, box = int(mask_api.area(rle)), mask_api.toBbox(rle).tolist()
    return {"segmentation": _text(rle), "area": area, "bbox": box}


def describe_segment(ids: NDArray[np.integer], segment: int, category_id: int) -> dict[str, Any]:
    """COCO's entry of `segments_info` for a segment of an id map (H, W)."""
    shape = encode(ids == segment)
    about = {"id": segment, "category_id": category_id, "iscrowd": 0}
    return {**about, "area": shape["area"], "bbox": [int(value) for value in shape["bbox"]]}


def compress(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """COCO's three forms (polygons, list of run lengths, compressed RLE) as compressed RLE.
    ValueError, whose message goes on after the segmentation's name: it is no mask of this size."""
    if isinstance(segmentation, RunLengths):
        counts = _joined(run_lengths(segmentation, height, width)).tolist()
        rle = mask_api.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    else:
        _check_polygons(segmentation, height, width)
        rle = mask_api.merge(mask_api.frPyObjects(list(segmentation), height, width))
    return _text(rle)


def decode(segmentation: Mapping[str, Any]) -> NDArray[np.bool_]:
    """A compressed RLE, as `compress` and `encode` give it, as a mask (H, W)."""
    return mask_api.decode(dict(segmentation)).astype(bool)


def run_lengths(segmentation: RunLengths, height: int, width: int) -> NDArray[np.int64]:
    """The lengths of the runs of zeros and ones, in turn, zeros first; ValueError as `compress`."""
    if segmentation.size != (height, width):
        raise ValueError(f".size is {list(segmentation.size)}, {_image(height, width)}")
    counts = segmentation.counts
    runs = _decompress(counts) if isinstance(counts, str) else np.array(counts, np.int64)
    if (runs < 0).any():
        raise ValueError(f".counts hold the negative run length {runs.min()}")
    if (total := sum(runs.tolist())) != height * width:  # of whole numbers, which do not overflow
        raise ValueError(f".counts add up to {total} pixels, {_image(height, width)}")
    return runs


def _decompress(text: str) -> NDArray[np.int64]:
    """The run lengths of COCO's compressed form.

    A number is written five bits a character (48 + bits), lowest first, with 32 for "goes on" and
    the sign in the last character's bit 16; from the fourth on, a number is the difference to the
    last but one.
    """
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any():
        raise ValueError(".counts hold a character that no compressed mask has")
    last = (codes & 32) == 0
    if not codes.size or not last[-1]:
        raise ValueError(".counts break off in the middle of a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:  # 35 bits; a run length has 32
        raise ValueError(".counts hold a number that is too large for a run length")
    place = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << 5 * place, starts)
    numbers -= np.where(codes[ends] & 16, 1 << 5 * (place[ends] + 1), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _joined(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Without runs of no pixel, at which pycocotools may stop, but for the first."""
    kept = runs > 0
    ones = (np.arange(len(runs)) % 2 == 1)[kept]
    starts = np.flatnonzero(np.diff(ones, prepend=~ones[:1]))
    joined = np.add.reduceat(runs[kept], starts)
    return np.concatenate([[0], joined]) if ones[0] else joined


def _check_polygons(polygons: Polygons, height: int, width: int) -> None:
    if not polygons:
        raise ValueError(" is an empty list")
    for k, polygon in enumerate(polygons):
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"[{k}] has {len(polygon)} numbers, not x, y of three points or more in one list"
            )
        if max(map(abs, polygon)) > _REACH * max(height, width):
            raise ValueError(
                f"[{k}] reaches {max(polygon, key=abs):g} pixels far, {_image(height, width)}"
            )


def _image(height: int, width: int) -> str:
    return f"the image is {height} x {width} (height x width)"


def _text(rle: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
