"""Which files of a folder are images: one rule for data sets, calibration and pictures.

A name decides, by its suffix in any case; whether an image can be read is found when it is read, so
that a damaged file, a folder called x.jpg or a link to nowhere is named and not passed over. Hidden
files are none: macOS puts a "._x.jpg" beside every x.jpg on a foreign disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Also of images that Pillow may not read here: they are named, and not passed over.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".jp2", ".avif", ".heic", ".heif"),
)
_NOT_THE_USERS = {"__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN"}
_NAMED = 3  # of many files, in one sentence


@dataclass(frozen=True)
class ImageFiles:
    """What a folder holds, sorted.

    Attributes:
        images: by their names.
        hidden: would be images if their names did not start with a dot.
    """

    images: tuple[Path, ...]
    hidden: tuple[Path, ...]

    def problems(self, what: str) -> list[str]:
        """One sentence where there are hidden files; `what` holds them."""
        if not self.hidden:
            return []
        hidden = enumeration([path.name for path in self.hidden])
        return [f"{what} holds hidden files, which are no images: {hidden}"]


def find_images(folder: Path, below: bool = False) -> ImageFiles:
    """The image files of a folder, by name.

    Args:
        folder: may be missing; it then holds nothing.
        below: search the folders in it too, through links, but not those `is_junk` names.

    Raises:
        PermissionError: a folder may not be read.
    """
    paths = sorted(_walk(folder) if below else folder.iterdir() if folder.is_dir() else ())
    named = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    return ImageFiles(
        tuple(path for path in named if not is_hidden(path)),
        tuple(path for path in named if is_hidden(path)),
    )


def is_hidden(path: Path) -> bool:
    """By its name."""
    return path.name.startswith(".")


def is_junk(path: Path) -> bool:
    """Whether a folder is a system's or a tool's and not the user's, by its name."""
    return is_hidden(path) or path.name in _NOT_THE_USERS


def enumeration(names: Sequence[str]) -> str:
    """ "a, b, c and 4 more": names of files or folders in a sentence."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, and folders that are called like an image."""
    seen: set[str] = set()  # a link may lead back up
    for root, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_junk(Path(name))]
        yield from (Path(root, name) for name in (*files, *folders))


def _refuse(error: OSError) -> None:
    """A folder that may not be read is not empty."""
    if isinstance(error, PermissionError):
        raise error
