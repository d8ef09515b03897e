"""Images of every kind that users have, and files that are broken."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data.images import (
    decode,
    read_bytes,
    read_id_map,
    read_image,
    read_label_map,
    read_orientation,
    read_record,
    untold_turn,
    upright_size,
    write_id_map,
    write_label_map,
)
from lqn_seg.errors import InputError


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_an_image_is_read_from_its_file_or_its_bytes(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    data = read_bytes(path)
    path.unlink()
    for image in (decode(data, path), read_record({"file_name": path}, data)):
        np.testing.assert_array_equal(image, rgb)
        assert image.dtype == np.uint8 and image.flags.c_contiguous
    for broken, words in ((b"", "is empty"), (data[:-30], "is damaged or truncated")):
        with pytest.raises(InputError, match=rf"a\.png {words}"):
            decode(broken, path)


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


@pytest.mark.parametrize("kind, words", [("float32", "floating-point"), ("int32", "32-bit")])
def test_pixels_without_an_8_bit_meaning_are_named(tmp_path: Path, kind: str, words: str) -> None:
    Image.fromarray(np.array([[70000]], kind)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=rf"a\.tif.*{words}"):
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
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    cases = {
        "link.jpg": r"does not exist \(a broken link\)",
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


def test_palette_label_map_keeps_its_indices(tmp_path: Path) -> None:
    labels = np.array([[0, 3], [150, 255]], dtype=np.uint8)
    picture = Image.fromarray(labels, mode="L").convert("P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), labels)


def corners() -> np.ndarray:
    """(32, 48, 3): a colour in each quarter, so that no turn leaves it as it is."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :16, 0] = pixels[:16, 16:, 1] = pixels[16:, :16, 2] = 255
    return pixels


# EXIF 2.32, table 4.6.4: what is done to the stored pixels to see the picture.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
FORMATS = {
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
    "tiff": {"compression": "tiff_lzw"},
    "jpg": {"quality": 95, "subsampling": 0},
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_of_every_format(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(corners()).save(file, exif=exif, **FORMATS[suffix])
    expected = UPRIGHT[orientation](corners())
    image = read_image(file)
    assert image.shape == expected.shape == (*upright_size(file), 3)
    np.testing.assert_allclose(image.astype(int), expected, atol=3)
    assert read_orientation(file) == orientation
    record = {"file_name": file, "height": expected.shape[0], "width": expected.shape[1]}
    np.testing.assert_array_equal(read_record(record), image)
    sideways = record | {"height": record["width"], "width": record["height"]}
    with pytest.raises(InputError, match=rf"a\.{suffix} is .* its annotation says") as error:
        read_record(sideways)
    assert (f"EXIF orientation {orientation} applied" in str(error.value)) == (orientation > 1)


def test_label_maps_are_turned_as_their_own_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(labels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), np.rot90(labels, -1))
    assert upright_size(tmp_path / "a.png") == (3, 2)


def test_damaged_exif_is_none(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=b"Exif\x00\x00nonsense")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb)
    assert upright_size(tmp_path / "a.png") == rgb.shape[:2]


def write_png(path: Path, bits: int, kind: int, values: np.ndarray) -> None:
    """A PNG by hand, for Pillow writes few depths: kind 0 is grey, 3 palette, 2 RGB."""
    rows = b""
    for row in values.reshape(len(values), -1):
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    height, width = values.shape[:2]
    palette = [(b"PLTE", bytes(range(200, 203)) * 2**bits)] if kind == 3 else []
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
        *palette,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    whole = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + whole)


@pytest.mark.parametrize(
    ("bits", "kind"), [*((b, 0) for b in (1, 2, 4, 8, 16)), *((b, 3) for b in (1, 2, 4, 8))]
)
def test_labels_of_any_depth_are_as_stored(tmp_path: Path, bits: int, kind: int) -> None:
    most = 2**bits - 1
    labels = np.linspace(0, most, 15).round().astype(int).reshape(3, 5)
    write_png(tmp_path / "a.png", bits, kind, labels)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), labels)
    assert labels.max() == most


def test_label_maps_beyond_255_take_sixteen_bits(tmp_path: Path) -> None:
    for labels in (np.array([[0, 255]]), np.array([[0, 255, 256, 65535]])):
        write_label_map(tmp_path / "a.b.png", labels)
        np.testing.assert_array_equal(read_label_map(tmp_path / "a.b.png"), labels)
    assert [path.name for path in tmp_path.iterdir()] == ["a.b.png"]
    with pytest.raises(ValueError, match="65535"):
        write_label_map(tmp_path / "b.png", np.array([[65536]]))


@pytest.mark.parametrize("mode", ["RGB", "LA", "RGBA", "CMYK"])
def test_colours_are_no_labels(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (2, 2)).save(file)
    with pytest.raises(InputError, match=f"a\\..* has mode {mode}, expected one channel"):
        read_label_map(file)
    if mode in ("LA", "CMYK"):
        with pytest.raises(InputError, match=f"a\\..* has mode {mode}, expected RGB"):
            read_id_map(file)


def test_ids_of_sixteen_bits_a_channel_are_named(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", 16, 2, np.full((2, 2, 3), 7))
    with pytest.raises(InputError, match=r"a\.png has mode RGB with 16 bits a channel"):
        read_id_map(tmp_path / "a.png")


def test_labels_in_formats_that_may_change_them_are_named(tmp_path: Path) -> None:
    labels = np.full((8, 8), 200, np.uint8)
    labels[2:5] = 7
    Image.fromarray(labels).save(tmp_path / "a.png", format="GIF")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "a.png")))) == 2
    with pytest.raises(InputError, match=r"label map .*a\.png is a GIF, which may change labels"):
        read_label_map(tmp_path / "a.png")
    Image.new("RGB", (8, 8), (3, 0, 0)).save(tmp_path / "b.png", format="WEBP", lossless=True)
    with pytest.raises(InputError, match=r"panoptic map .*b\.png is a WEBP, which may change"):
        read_id_map(tmp_path / "b.png")
    Image.fromarray(labels).save(tmp_path / "d.png", format="JPEG")
    with pytest.raises(InputError, match=r"label map .*d\.png is a JPEG, which changes labels"):
        read_label_map(tmp_path / "d.png")
    for kind in ("PNG", "TIFF", "BMP"):
        Image.fromarray(labels).save(tmp_path / "c.png", format=kind)
        np.testing.assert_array_equal(read_label_map(tmp_path / "c.png"), labels)


@pytest.mark.parametrize(
    "orientation, size, is_named",
    [(1, (4, 4), False), (3, (6, 4), True), (6, (4, 4), True), (6, (6, 4), False)],
)
def test_a_turn_that_no_size_tells_is_named(
    tmp_path: Path, orientation: int, size: tuple[int, int], is_named: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", size).save(tmp_path / name, exif=exif)
        sentence = untold_turn(tmp_path / name)
        assert (
            f"{name} has the EXIF orientation {orientation}: its labels" in sentence
        ) == is_named
