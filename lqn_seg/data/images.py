"""Reading images, label maps and panoptic id maps from files, with one sentence per failure.

One rule for all of them: what a picture shows upright, its EXIF orientation applied, is the
picture.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lqn_seg.errors import InputError

PathLike = str | os.PathLike[str]

# What Pillow raises on files that are cut short or damaged, depending on the format.
_DAMAGED = (OSError, SyntaxError, EOFError, struct.error, zlib.error, ValueError, IndexError)
_GREY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that swap height and width
# Formats that keep pixels as they are. What writes GIF gives palettes another order.
_EXACT = ("PNG", "TIFF", "BMP", "PPM")
# How a file stores grey, in Pillow's words -> what Pillow multiplies it by, so that white is 255.
_SCALED = {"L;2": 85, "L;4": 17}


class _Decoded(NamedTuple):
    """An upright image, its file's format, and Pillow's word for how pixels are stored there:
    "L;4", "RGB;16B", or "" where it has none.
    """

    image: Image.Image
    format: str
    stored: str


def read_image(path: PathLike) -> NDArray[np.uint8]:
    """Read an image as it is meant to be looked at.

    EXIF orientation is applied; grey, palette and CMYK files become RGB, transparency is dropped,
    16-bit grey is scaled to 8 bits (65535 -> 255), and of an animation the first frame is taken.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        InputError: the file is missing, empty, truncated, not an image, or has a mode (32-bit
            float, for example) that has no defined 8-bit meaning.
    """
    image = _decode(path).image
    if image.mode in _GREY_16_BIT:
        grey = _eight_bits(np.asarray(image), path)
        image_rgb = Image.fromarray(grey).convert("RGB")
    elif image.mode == "F":
        raise InputError(
            f"image {path} has 32-bit floating-point pixels (mode F), which have no defined "
            "8-bit range: convert it to 8-bit RGB"
        )
    else:
        image_rgb = image.convert("RGB")
    return np.array(image_rgb, dtype=np.uint8)  # a copy: Pillow's own buffer is read-only


def read_record(record: Mapping[str, Any]) -> NDArray[np.uint8]:
    """`read_image` of a data set's record, which must have the size that the record says.

    Raises:
        InputError: as `read_image`, or the upright image is not `height` x `width`: its annotations
            were made for another picture, perhaps for this one on its side.
    """
    path = record["file_name"]
    image = read_image(path)
    height, width = image.shape[:2]
    expected = int(record.get("height", height)), int(record.get("width", width))
    if (height, width) != expected:
        raise InputError(
            f"image {path} is {height} x {width} (height x width){describe_turn(path)}, its "
            f"annotation says {expected[0]} x {expected[1]}"
        )
    return image


def upright_size(path: PathLike) -> tuple[int, int]:
    """(height, width) of the upright image, from the header alone where the format has it there.

    Raises:
        InputError: the file is missing or is no image.
    """
    with _opened(path) as image:
        if image.format == "TIFF":  # Pillow turns it while decoding, depending on its version
            width, height = _decode(path).image.size
        else:
            # The class's own method would decode a whole PNG first: EXIF may stand at its end.
            width, height = image.size
            if _orientation(image, Image.Image.getexif) in _ON_ITS_SIDE:
                width, height = height, width
    return height, width


def read_orientation(path: PathLike) -> int:
    """The EXIF orientation of an image file, 1 .. 8; 1 where it has none."""
    with _opened(path) as image:
        return _orientation(image)


def describe_turn(path: PathLike) -> str:
    """What EXIF says of an image's orientation, for a sentence about its size, or ""."""
    orientation = read_orientation(path)
    return f" with its EXIF orientation {orientation} applied" if orientation > 1 else ""


def untold_turn(path: PathLike) -> str:
    """A sentence where EXIF turns or mirrors an image and leaves its size as it is, or "": its
    labels may be those of the pixels as stored, and no size tells.
    """
    with _opened(path) as image:
        orientation = _orientation(image, Image.Image.getexif)  # of the header: not decoded again
        if orientation == 1 or (orientation in _ON_ITS_SIDE and image.width != image.height):
            return ""
    return (
        f"image {path} has the EXIF orientation {orientation}: its labels must be those of the "
        "upright picture, which its size cannot tell"
    )


def read_id_map(path: PathLike) -> NDArray[np.int32]:
    """Read a panoptic PNG in COCO's format: id = R + 256 G + 65536 B, 0 = void.

    Returns:
        (H, W) int32 segment ids.

    Raises:
        InputError: the file is missing or damaged, its pixels are not 8-bit RGB, or its format may
            change them (JPEG, GIF, WebP).
    """
    image, kind, stored = _decode(path)
    if image.mode not in ("RGB", "RGBA") or ";16" in stored:
        mode = f"{image.mode} with 16 bits a channel" if ";16" in stored else image.mode
        raise InputError(
            f"panoptic map {path} has mode {mode}, expected RGB (id = R + 256 G + 65536 B, 8 bits "
            "each)"
        )
    _check_exact(kind, f"panoptic map {path}")
    rgb = np.asarray(image, dtype=np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def write_id_map(path: PathLike, ids: NDArray[np.integer]) -> None:
    """Write an (H, W) map of ids in 0 .. 2**24 - 1 as a panoptic PNG: inverse of `read_id_map`."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < 1 << 24:
        raise ValueError("segment ids must lie in 0 .. 2**24 - 1")
    rgb = np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(path)


def read_label_map(path: PathLike) -> NDArray[np.int32]:
    """Read a semantic label map: one channel, grey of 1 to 16 bits or palette index, as stored.

    Returns:
        (H, W) int32 labels.

    Raises:
        InputError: the file is missing or damaged, has more than one channel, or its format
            may change them (JPEG, GIF, WebP).
    """
    image, kind, stored = _decode(path)
    if image.mode not in ("L", "P", "1", *_GREY_16_BIT):
        raise InputError(
            f"label map {path} has mode {image.mode}, expected one channel of class labels (grey, "
            "palette)"
        )
    _check_exact(kind, f"label map {path}")
    return np.asarray(image).astype(np.int32) // _SCALED.get(stored, 1)


def write_label_map(path: PathLike, labels: NDArray[np.integer]) -> None:
    """Write (H, W) labels as a grey PNG of 8 bits, or 16 where one is beyond 255: inverse of
    `read_label_map`.

    Several processes may write the same file at once; it is whole or not there.
    """
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 1 << 16:
        raise ValueError("labels must lie in 0 .. 65535")
    bits = np.uint8 if not labels.size or labels.max() < 256 else np.uint16
    written = Path(path).with_name(f"{Path(path).name}.{os.getpid()}.tmp")
    Image.fromarray(labels.astype(bits)).save(written, format="PNG")
    written.replace(path)


def _check_exact(kind: str, what: str) -> None:
    if kind not in _EXACT:
        why = "changes labels at their borders" if kind in ("JPEG", "MPO") else "may change labels"
        raise InputError(f"{what} is a {kind.replace('MPO', 'JPEG')}, which {why}: make it a PNG")


@contextmanager
def _opened(path: PathLike) -> Iterator[Image.Image]:
    """A file with its header read, or one sentence on why not, whenever that shows."""
    file = Path(path)
    try:
        if file.is_dir():
            raise InputError(f"image {file} is a folder, expected a file")
        if not file.exists():
            broken = " (a link to nowhere)" if file.is_symlink() else ""
            raise InputError(f"image file {file} does not exist{broken}")
        if file.stat().st_size == 0:
            raise InputError(f"image file {file} is empty (0 bytes)")
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError:
        raise InputError(f"file {file} is not an image that Pillow can read") from None
    except PermissionError:
        raise InputError(f"image file {file} may not be read (permission denied)") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"image file {file} is too large: {error}") from None
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(f"image file {file} is damaged or truncated ({error})") from None


def _decode(path: PathLike) -> _Decoded:
    """Decode a whole file, upright, or say in one sentence why not."""
    with _opened(path) as image:
        stored = _stored_as(image)
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        upright = image.copy() if turn is None else image.transpose(turn)
        return _Decoded(upright, image.format or "", stored)


def _stored_as(image: Image.Image) -> str:
    """Pillow's word for how pixels are stored; after decoding, it is gone."""
    tiles = getattr(image, "tile", ())
    how = tiles[0][3] if tiles else ""
    return str(how[0] if isinstance(how, tuple) and how else how or "")


def _orientation(
    image: Image.Image, getexif: Callable[[Any], Image.Exif] = lambda image: image.getexif()
) -> int:
    """EXIF's orientation, 1 .. 8; damaged EXIF data are none, as everywhere."""
    try:
        found = getexif(image).get(_ORIENTATION)
    except Exception:
        return 1
    return found if found in _UPRIGHT else 1


def _eight_bits(grey: NDArray[np.generic], path: PathLike) -> NDArray[np.uint8]:
    """Scale 16-bit grey values to 8 bits: 65535 -> 255, rounded to nearest."""
    values = grey.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"image {path} has 32-bit integer pixels beyond 0 .. 65535: convert it to 8-bit RGB"
        )
    return ((values + 128) // 257).astype(np.uint8)
