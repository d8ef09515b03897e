"""The images and videos that words of a command name."""

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lqn_seg.data.images import IMAGE_SUFFIXES, find_images
from lqn_seg.data.shipped import find_local
from lqn_seg.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


@dataclass(frozen=True)
class File:
    """A file to predict: ``path``, and ``name``, what it is called in results."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_files(inputs: Iterable[str]) -> list[File]:
    """The images and videos that are named: files, folders, which are searched below, and globs. An
    `InputError` where one names nothing."""
    found: dict[Path, File] = {}
    for text in inputs:
        path = Path(find_local(text))
        if path.is_dir():
            below = sorted([*find_images(path, below=True).images, *_videos(path)])
            if not below:
                raise InputError(f"the folder {path} holds no image and no video")
            listed = [File(file, file.relative_to(path).as_posix()) for file in below]
        elif path.exists():
            listed = [File(path, path.name)]
        else:
            matches = sorted(map(Path, glob.glob(text, recursive=True)))
            endings = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
            listed = [File(m, m.name) for m in matches if m.suffix.lower() in endings]
            if not listed:
                raise InputError(f"there is no file, folder or match of {text}")
        for file in listed:
            found.setdefault(file.path.resolve(), file)
    return _named_apart(list(found.values()))


def _videos(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file()]


def _named_apart(files: list[File]) -> list[File]:
    """Files of one name keep their whole paths."""
    names = [file.name for file in files]
    return [f if names.count(f.name) == 1 else File(f.path, f.path.as_posix()) for f in files]
