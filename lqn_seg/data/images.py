"""Reading images, label maps and panoptic id maps from files, with one sentence per failure."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lqn_seg.errors import InputError

PathLike = str | os.PathLike[str]

# What Pillow raises on files that are cut short or damaged, depending on the format.
_DAMAGED = (OSError, SyntaxError, EOFError, struct.error, zlib.error, ValueError, IndexError)
_GREY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


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
    image = _open(path)
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


def read_id_map(path: PathLike) -> NDArray[np.int32]:
    """Read a panoptic PNG in COCO's format: id = R + 256 G + 65536 B, 0 = void.

    Returns:
        (H, W) int32 segment ids.

    Raises:
        InputError: the file is missing or damaged, or its pixels are not 8-bit RGB.
    """
    image = _open(path)
    if image.mode not in ("RGB", "RGBA"):
        raise InputError(
            f"panoptic map {path} has mode {image.mode}, expected RGB (id = R + 256 G + 65536 B)"
        )
    rgb = np.asarray(image, dtype=np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def write_id_map(path: PathLike, ids: NDArray[np.integer]) -> None:
    """Write an (H, W) map of ids in 0 .. 2**24 - 1 as a panoptic PNG: inverse of `read_id_map`."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < 1 << 24:
        raise ValueError("segment ids must lie in 0 .. 2**24 - 1")
    rgb = np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(path)


def read_label_map(path: PathLike) -> NDArray[np.int32]:
    """Read a semantic label map: one channel (grey or palette index), values as stored.

    Returns:
        (H, W) int32 labels.

    Raises:
        InputError: the file is missing or damaged, or it has more than one channel.
    """
    image = _open(path)
    if image.mode not in ("L", "P", "1", *_GREY_16_BIT):
        raise InputError(
            f"label map {path} has mode {image.mode}, expected one channel of class labels"
        )
    return np.asarray(image).astype(np.int32)


def write_label_map(path: PathLike, labels: NDArray[np.integer]) -> None:
    """Write (H, W) labels 0 .. 255 as an 8-bit PNG: inverse of `read_label_map`.

    Several processes may write the same file at once; it is whole or not there.
    """
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 256:
        raise ValueError("labels must lie in 0 .. 255")
    written = Path(path).with_suffix(f".{os.getpid()}.tmp")
    Image.fromarray(labels.astype(np.uint8)).save(written, format="PNG")
    written.replace(path)


def _open(path: PathLike) -> Image.Image:
    """Decode a whole file, upright, or say in one sentence why not."""
    file = Path(path)
    if file.is_dir():
        raise InputError(f"image {file} is a folder, expected a file")
    if not file.exists():
        raise InputError(f"image file {file} does not exist")
    try:
        if file.stat().st_size == 0:
            raise InputError(f"image file {file} is empty (0 bytes)")
        with Image.open(file) as image:
            image.load()
            return ImageOps.exif_transpose(image)
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


def _eight_bits(grey: NDArray[np.generic], path: PathLike) -> NDArray[np.uint8]:
    """Scale 16-bit grey values to 8 bits: 65535 -> 255, rounded to nearest."""
    values = grey.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"image {path} has 32-bit integer pixels beyond 0 .. 65535: convert it to 8-bit RGB"
        )
    return ((values + 128) // 257).astype(np.uint8)
