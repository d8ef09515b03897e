"""Which files are images, by their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lqn_seg.data.images import enumeration, find_images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        *("b.JPG", "a.webp", "c.Tiff", "d.gif", "notes.txt", "._a.webp", ".b.jpg", ".DS_Store"),
        *("deep/e.png", "deep/er/f.bmp", ".ipynb_checkpoints/b.jpg", "__MACOSX/._b.jpg"),
        "folder.png/g.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    return tmp_path


def test_images_of_a_folder(tree: Path) -> None:
    result = find_images(tree)
    names = [path.name for path in result.images]
    assert names == ["a.webp", "b.JPG", "c.Tiff", "d.gif", "folder.png", "gone.jpg"]
    assert [path.name for path in result.hidden] == ["._a.webp", ".b.jpg"]
    assert result.problems("here") == [
        "here holds hidden files, which are no images: ._a.webp, .b.jpg"
    ]
    assert find_images(tree / "nowhere").images == []


def test_images_below_a_folder_once_each(tree: Path) -> None:
    result = [path.relative_to(tree).as_posix() for path in find_images(tree, below=True).images]
    deep = ["deep/e.png", "deep/er/f.bmp"]
    flat = ["a.webp", "b.JPG", "c.Tiff", "d.gif", "folder.png", "folder.png/g.jpg", "gone.jpg"]
    assert sorted(result) == sorted([*deep, *flat])


def test_many_names_in_one_sentence() -> None:
    assert enumeration(["a", "b", "c"]) == "a, b, c"
    assert enumeration(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_a_folder_that_may_not_be_read_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_images(tmp_path / "missing", below=True).images == []

    def scandir(folder: Any) -> Any:  # the superuser may read everything
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        find_images(tmp_path, below=True)
