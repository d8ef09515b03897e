"""Images of every kind that users have, and files that are broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data.images import read_id_map, read_image, read_label_map, write_id_map
from lqn_seg.errors import InputError


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_rgb_round_trip(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image, rgb)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


def test_exif_orientation_is_applied(tmp_path: Path, rgb: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(rgb, -1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_modes_become_rgb(tmp_path: Path, rgb: np.ndarray, mode: str) -> None:
    picture = Image.fromarray(rgb).convert(mode)
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.tif")  # red ink
    image = read_image(tmp_path / "a.tif")
    assert image.shape == (3, 4, 3)
    assert image[0, 0].tolist() == [255, 0, 0]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image[0, :, 0], [0, 0, 1, 128, 255])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_floating_point_pixels_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif.*floating-point"):
        read_image(tmp_path / "a.tif")


def test_integers_beyond_sixteen_bits_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.array([[70000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif.*32-bit integer"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.7])
def test_truncated_files_are_one_sentence(tmp_path: Path, suffix: str, fraction: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(InputError, match=rf"cut\.{suffix}") as error:
        read_image(file)
    assert "\n" not in str(error.value)


def test_missing_empty_folder_and_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    cases = {
        "none.png": "does not exist",
        "empty.png": "is empty",
        "text.png": "is not an image",
        ".": "is a folder",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            read_image(tmp_path / name)


def test_id_map_is_r_256g_65536b(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (7, 2, 1)).save(tmp_path / "a.png")
    assert read_id_map(tmp_path / "a.png").tolist() == [[7 + 2 * 256 + 65536]]
    ids = np.array([[0, 1, 255, 256, 65535, 65536, 2**24 - 1]], dtype=np.int32)
    write_id_map(tmp_path / "b.png", ids)
    np.testing.assert_array_equal(read_id_map(tmp_path / "b.png"), ids)
    with pytest.raises(ValueError, match="2\\*\\*24"):
        write_id_map(tmp_path / "c.png", ids + 1)


def test_maps_of_the_wrong_mode_are_named(tmp_path: Path) -> None:
    Image.new("L", (1, 1)).save(tmp_path / "grey.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match=r"grey\.png has mode L, expected RGB"):
        read_id_map(tmp_path / "grey.png")
    with pytest.raises(InputError, match=r"rgb\.png has mode RGB, expected one channel"):
        read_label_map(tmp_path / "rgb.png")


def test_palette_label_map_keeps_its_indices(tmp_path: Path) -> None:
    labels = np.array([[0, 3], [150, 255]], dtype=np.uint8)
    picture = Image.fromarray(labels, mode="L").convert("P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), labels)
