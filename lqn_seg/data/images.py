"""Image files: which files are images, and reading and writing images, label maps and id maps.

What a picture shows upright, its EXIF orientation applied, is the picture.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lqn_seg.errors import InputError

PathLike = str | os.PathLike[str]

# Also of images that Pillow may not read here: they are named and not passed over.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".jp2", ".avif", ".heic", ".heif"),
)
_OF_TOOLS = {"__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN"}
# What Pillow raises on files that are cut short or damaged, depending on the format.
_DAMAGED = (OSError, SyntaxError, EOFError, struct.error, zlib.error, ValueError, IndexError)
_GREY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_ORIENTATION = 0x0112  # EXIF's tag
_T = Image.Transpose
_UPRIGHT = {
    **{2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM},
    **{5: _T.TRANSPOSE, 6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90},
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that swap height and width
# Formats that keep pixels as they are. What writes GIF gives palettes another order.
_EXACT = ("PNG", "TIFF", "BMP", "PPM")
# How a file stores grey, in Pillow's words -> what Pillow multiplies it by, so that white is 255.
_SCALED = {"L;2": 85, "L;4": 17}


class ImageFiles(NamedTuple):
    """Image files of a folder, and those whose names start with a dot, which are none: macOS puts a
    "._x.jpg" beside every x.jpg on a foreign disk."""

    images: list[Path]
    hidden: list[Path]

    def problems(self, what: str) -> list[str]:
        """One sentence where there are hidden files; `what` holds them."""
        if not self.hidden:
            return []
        names = enumeration([path.name for path in self.hidden])
        return [f"{what} holds hidden files, which are no images: {names}"]


def find_images(folder: Path, below: bool = False) -> ImageFiles:
    """The image files of a folder by their suffixes, sorted; a missing folder holds none. `below`
    searches the folders in it too, through links; one that may not be read is a PermissionError."""
    paths = sorted(_walk(folder) if below else folder.iterdir() if folder.is_dir() else ())
    return split_hidden(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)


def split_hidden(paths: Iterable[Path]) -> ImageFiles:
    """Those that count, and those whose names start with a dot."""
    result = ImageFiles([], [])
    for path in paths:
        (result.hidden if path.name.startswith(".") else result.images).append(path)
    return result


def is_junk(path: Path) -> bool:
    """Whether a folder is a system's or a tool's and not the user's, by its name."""
    return path.name.startswith(".") or path.name in _OF_TOOLS


def enumeration(names: Sequence[str], most: int = 3) -> str:
    """ "a, b, c and 4 more": names of files or folders in a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()  # a link may lead back up

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):  # such a folder is not empty
            raise error

    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_junk(Path(name))]
        yield from (Path(root, name) for name in (*files, *folders))


def read_bytes(path: PathLike) -> bytes:
    """An image file's content, for `decode`, or an InputError on why it cannot be read."""
    with _sentences(path):
        return Path(path).read_bytes()


def read_image(path: PathLike) -> NDArray[np.uint8]:
    """Read an image upright: (H, W, 3) uint8, RGB, contiguous.

    Grey, palette and CMYK files become RGB, transparency is dropped, 16-bit grey is scaled to 8
    bits (65535 -> 255), and of an animation the first frame is taken. A file that is missing,
    damaged, or has no 8-bit meaning (32-bit float) is an InputError.
    """
    return decode(read_bytes(path), path)


def decode(data: bytes, path: PathLike) -> NDArray[np.uint8]:
    """`read_image` of a file's content; sentences call it `path`."""
    return _rgb(_upright(path, data)[0], path)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """`read_image` of an image that Pillow has opened, whose EXIF turns it upright too."""
    with _sentences("given"):
        turn = _UPRIGHT.get(_orientation(image))
        return _rgb(image if turn is None else image.transpose(turn), "given")


def _rgb(image: Image.Image, path: PathLike) -> NDArray[np.uint8]:
    convert = "convert it to 8-bit RGB"
    if image.mode == "F":
        why = "pixels (mode F), which have no defined 8-bit range"
        raise InputError(f"image {path} has 32-bit floating-point {why}: {convert}")
    if image.mode in _GREY_16_BIT:
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(f"image {path} has 32-bit integer pixels beyond 0 .. 65535: {convert}")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # rounded to nearest
    return np.array(image.convert("RGB"))  # a copy: Pillow's own buffer is read-only


def read_record(record: Mapping[str, Any], data: bytes | None = None) -> NDArray[np.uint8]:
    """`read_image` of a data set's record, from the file's content where it has been read;
    InputError where the upright image is not the record's `height` x `width`."""
    path = record["file_name"]
    image = decode(read_bytes(path) if data is None else data, path)
    height, width = image.shape[:2]
    expected = int(record.get("height", height)), int(record.get("width", width))
    if (height, width) != expected:
        raise InputError(
            f"image {path} is {height} x {width} (height x width){describe_turn(path)}, but its "
            f"annotation says {expected[0]} x {expected[1]}"
        )
    return image


def upright_size(path: PathLike) -> tuple[int, int]:
    """(height, width) of the upright image, from the header alone where the format has it there."""
    with _opened(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow turns it while decoding, depending on its version
            width, height = _upright(path)[0].size
        elif _orientation(image, of_header=True) in _ON_ITS_SIDE:
            width, height = height, width
    return height, width


def read_orientation(path: PathLike) -> int:
    with _opened(path) as image:
        return _orientation(image)


def describe_turn(path: PathLike) -> str:
    """What EXIF says of an image's orientation, for a sentence about its size, or ""."""
    orientation = read_orientation(path)
    return f" with its EXIF orientation {orientation} applied" if orientation > 1 else ""


def untold_turn(path: PathLike) -> str:
    """A sentence where EXIF turns or mirrors an image and leaves its size as it is, or ""."""
    with _opened(path) as image:
        orientation = _orientation(image, of_header=True)
        if orientation == 1 or (orientation in _ON_ITS_SIDE and image.width != image.height):
            return ""
    return (
        f"image {path} has the EXIF orientation {orientation}: its labels must be those of the "
        "upright image, which its size cannot show"
    )


def read_id_map(path: PathLike) -> NDArray[np.int32]:
    """Read a panoptic PNG in COCO's format: (H, W) ids R + 256 G + 65536 B, 0 = void.

    InputError where its pixels are not 8-bit RGB, or its format may change them (JPEG, GIF, WebP).
    """
    image, kind, stored = _upright(path)
    if image.mode not in ("RGB", "RGBA") or ";16" in stored:
        mode = f"{image.mode} with 16 bits a channel" if ";16" in stored else image.mode
        expected = "RGB (id = R + 256 G + 65536 B, 8 bits each)"
        raise InputError(f"panoptic map {path} has mode {mode}, expected {expected}")
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
    """Read (H, W) semantic labels: one channel, grey of 1 to 16 bits or palette index, as stored.

    InputError where it has more channels, or its format may change labels (JPEG, GIF, WebP).
    """
    image, kind, stored = _upright(path)
    if image.mode not in ("L", "P", "1", *_GREY_16_BIT):
        expected = "one channel of class labels (grey, palette)"
        raise InputError(f"label map {path} has mode {image.mode}, expected {expected}")
    _check_exact(kind, f"label map {path}")
    return np.asarray(image).astype(np.int32) // _SCALED.get(stored, 1)


def write_label_map(path: PathLike, labels: NDArray[np.integer]) -> None:
    """Write (H, W) labels as a grey PNG of 8 bits, or 16 where one is beyond 255: inverse of
    `read_label_map`. Several processes may write the same file at once."""
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 1 << 16:
        raise ValueError("labels must lie in 0 .. 65535")
    bits = np.uint8 if not labels.size or labels.max() < 256 else np.uint16
    written = Path(path).with_name(f"{Path(path).name}.{os.getpid()}.tmp")
    Image.fromarray(labels.astype(bits)).save(written, format="PNG")
    written.replace(path)


def _check_exact(kind: str, what: str) -> None:
    if kind not in _EXACT:
        why = "changes labels at their borders" if kind in ("JPEG", "MPO") else "may change labels"
        raise InputError(f"{what} is a {kind.replace('MPO', 'JPEG')}, which {why}; save it as PNG")


@contextmanager
def _sentences(path: PathLike) -> Iterator[None]:
    """One sentence on why an image file cannot be read, whenever that shows."""
    try:
        yield
    except InputError:
        raise
    except IsADirectoryError:
        raise InputError(f"image {path} is a folder, expected a file") from None
    except (FileNotFoundError, NotADirectoryError):
        broken = " (a broken link)" if Path(path).is_symlink() else ""
        raise InputError(f"image file {path} does not exist{broken}") from None
    except PermissionError:
        raise InputError(f"image file {path} cannot be read (permission denied)") from None
    except UnidentifiedImageError:
        raise InputError(f"file {path} is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"image file {path} is too large: {error}") from None
    except _DAMAGED as error:
        raise InputError(f"image file {path} is damaged or truncated ({error})") from None


@contextmanager
def _opened(path: PathLike, data: bytes | None = None) -> Iterator[Image.Image]:
    """An image with its header read, from `data` or else from the file."""
    with _sentences(path), open(path, "rb") if data is None else BytesIO(data) as stream:
        if not stream.read(1):
            raise InputError(f"image file {path} is empty (0 bytes)")
        stream.seek(0)
        with Image.open(stream) as image:
            yield image


def _upright(path: PathLike, data: bytes | None = None) -> tuple[Image.Image, str, str]:
    """The upright image, its file's format, and Pillow's word for how pixels are stored there:
    "L;4", "RGB;16B", or "" where it has none."""
    with _opened(path, data) as image:
        tiles = getattr(image, "tile", ())  # gone after decoding
        how = tiles[0][3] if tiles else ""
        stored = str(how[0] if isinstance(how, tuple) and how else how or "")
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        upright = image.copy() if turn is None else image.transpose(turn)
        return upright, image.format or "", stored


def _orientation(image: Image.Image, of_header: bool = False) -> int:
    """EXIF's orientation, 1 .. 8; damaged EXIF data are none. `of_header` looks at the header
    alone; otherwise a PNG is decoded: EXIF may stand at its end."""
    try:
        exif = Image.Image.getexif(image) if of_header else image.getexif()
        orientation = exif.get(_ORIENTATION)
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1
