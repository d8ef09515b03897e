"""Stream the demo data set: scenes with things and stuff, in COCO-panoptic layout.

Every scene is drawn from ``(seed, split, index)`` alone, with NumPy only, so the same command makes
the same files anywhere. Classes are told apart by shape and texture; every class is drawn in any
hue, so colour alone decides nothing. The validation split is shipped with the repository; the
training split is only needed to train the teacher. With ``--objects``, pictures of one thing on one
stuff instead, for classification.

Examples:
    python datasets/prepare_demo.py --split train --count 14000
    python datasets/prepare_demo.py --split val --count 64     # rewrites what is shipped
    python datasets/prepare_demo.py --objects --split train --count 20000
    python datasets/prepare_demo.py --objects --split val --count 160  # rewrites what is shipped
"""

import colorsys
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from lqn_seg.cli.parser import Parser, exit_status
from lqn_seg.data.images import write_id_map
from lqn_seg.data.masks import describe_segment
from lqn_seg.data.metadata import Category

SIZE = 96  # pixels, both sides
OBJECT_SIZE = 64  # of a picture of a single thing
SPLITS = ("train", "val", "tune", "report")  # the order is part of every scene's seed: append only
MIN_VISIBLE_PIXELS = 30  # a thing with fewer visible pixels is not drawn at all
MIN_VISIBLE_FRACTION = 0.35  # nor one that is hidden by more than this leaves

Array = np.ndarray
_KINDS = {
    "disc": (220, 20, 60), "ball": (255, 140, 0), "ring": (148, 0, 211), "square": (30, 144, 255),
    "crate": (139, 69, 19), "triangle": (255, 215, 0), "star": (255, 105, 180),
    "rod": (0, 206, 209), "sky": (135, 206, 235), "grass": (60, 179, 60), "water": (40, 80, 160),
    "brick": (178, 80, 60), "sand": (210, 190, 140),
}  # fmt: skip
CATEGORIES = tuple(
    Category(i, name, i <= 8, color) for i, (name, color) in enumerate(_KINDS.items(), 1)
)
THINGS = tuple(c.name for c in CATEGORIES if c.isthing)
STUFF = tuple(c.name for c in CATEGORIES if not c.isthing)
CATEGORY_ID = {c.name: c.id for c in CATEGORIES}

ROWS, COLUMNS = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5, indexing="ij")


class Scene(NamedTuple):
    """One drawn image and its segments."""

    image: Array  # (SIZE, SIZE, 3) uint8
    segment_ids: Array  # (SIZE, SIZE) int32, every pixel belongs to a segment
    categories: dict[int, str]  # segment id -> category name


def random_color(rng: np.random.Generator, low: float, high: float) -> Array:
    """A colour of any hue, (3,) in 0..1, with HSV value within ``low`` .. ``high``."""
    hsv = (rng.uniform(), rng.uniform(0.15, 0.75), rng.uniform(low, high))
    return np.array(colorsys.hsv_to_rgb(*hsv))


def smooth_noise(rng: np.random.Generator, cells: int) -> Array:
    """Bilinear value noise, (SIZE, SIZE) in -1..1, with ``cells`` lattice cells a side."""
    lattice = rng.uniform(-1, 1, (cells + 2, cells + 2))
    position = np.arange(SIZE) / SIZE * cells
    low = position.astype(int)
    t = position - low
    t = t * t * (3 - 2 * t)
    rows = lattice[low] * (1 - t)[:, None] + lattice[low + 1] * t[:, None]
    return rows[:, low] * (1 - t) + rows[:, low + 1] * t


def finish(rng: np.random.Generator, image: Array) -> Array:
    """Sensor noise over an image in 0..1, as uint8."""
    image = image + rng.normal(0, 0.012, image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def sky(rng: np.random.Generator) -> Array:
    """Smooth vertical ramp with faint clouds; a texture covers the image, and is cut later."""
    return 0.8 * (ROWS / SIZE * 2 - 1) * rng.choice([-1, 1]) + 0.5 * smooth_noise(rng, 3)


def grass(rng: np.random.Generator) -> Array:
    """Short upright strokes: noise that varies fast along columns and slowly along rows."""
    strokes = rng.uniform(-1, 1, (SIZE // 6 + 2, SIZE // 2))
    shift = rng.integers(0, 6, SIZE // 2)
    rows = (np.arange(SIZE)[:, None] + shift[None]) // 6
    return np.repeat(strokes[rows, np.arange(SIZE // 2)[None]], 2, axis=1)[:, :SIZE]


def water(rng: np.random.Generator) -> Array:
    """Wavy horizontal stripes."""
    period, phase = rng.uniform(6, 9), rng.uniform(0, 2 * np.pi)
    wobble = 1.8 * np.sin(COLUMNS / rng.uniform(6, 10) + phase)
    return np.sin(2 * np.pi * (ROWS + wobble) / period + phase)


def brick(rng: np.random.Generator) -> Array:
    """Courses of bricks, dark mortar between them."""
    height, width = rng.integers(7, 10), rng.integers(13, 19)
    row, column = ROWS + rng.uniform(0, height), COLUMNS + rng.uniform(0, width)
    course = (row // height).astype(int)
    column = column + (course % 2) * width / 2
    mortar = (row % height < 1.6) | (column % width < 1.6)
    tone = rng.uniform(-0.2, 0.9, (64, 64))[course % 64, (column // width).astype(int) % 64]
    return np.where(mortar, -1.0, tone)


def sand(rng: np.random.Generator) -> Array:
    """Round grains on a flat ground."""
    texture = 0.25 * smooth_noise(rng, 5)
    lattice = 6
    for row in range(0, SIZE + lattice, lattice):
        for column in range(0, SIZE + lattice, lattice):
            y, x = row + rng.uniform(-2, 2), column + rng.uniform(-2, 2)
            grain, radius = rng.choice([-1.0, 1.0]), rng.uniform(0.9, 1.7)
            r0, r1 = max(int(y) - 3, 0), max(int(y) + 4, 0)
            c0, c1 = max(int(x) - 3, 0), max(int(x) + 4, 0)
            near = np.hypot(ROWS[r0:r1, c0:c1] - y, COLUMNS[r0:r1, c0:c1] - x) < radius
            texture[r0:r1, c0:c1][near] = grain
    return texture


TEXTURES = {"sky": sky, "grass": grass, "water": water, "brick": brick, "sand": sand}


def paint_stuff(rng: np.random.Generator, name: str) -> Array:
    """The stuff ``name`` over the whole image: (SIZE, SIZE, 3) in 0..1."""
    color = random_color(rng, 0.45, 0.85)
    texture = TEXTURES[name](rng)[..., None]
    return color * (1 + rng.uniform(0.22, 0.34) * texture)


def paint_background(rng: np.random.Generator) -> tuple[Array, Array, dict[int, str]]:
    """Two or three stuff regions with wavy borders: image (SIZE, SIZE, 3) in 0..1, region map
    (SIZE, SIZE) int32 from 1, and names."""
    count = int(rng.integers(2, 4))
    names = [str(n) for n in rng.choice(STUFF, count, replace=False)]
    angle = rng.normal(0, 0.35) + rng.choice([0, 0, np.pi / 2])
    height = np.cos(angle) * (ROWS - SIZE / 2) + np.sin(angle) * (COLUMNS - SIZE / 2)
    height = height / SIZE + 0.10 * smooth_noise(rng, 3)
    cuts = {2: [0.0], 3: [-0.18, 0.18]}[count] + rng.uniform(-0.09, 0.09, count - 1)
    region = 1 + sum((height > cut).astype(np.int32) for cut in cuts)
    layers = np.stack([paint_stuff(rng, name) for name in names])
    image = np.take_along_axis(layers, region[None, ..., None] - 1, axis=0)[0]
    return image, region, {index + 1: name for index, name in enumerate(names)}


def polygon_distance(y: Array, x: Array, corners: Array) -> Array:
    """Signed distance to a polygon given by its corners (N, 2) as (y, x)."""
    points = np.stack([y, x], -1)
    distance = np.full(y.shape, np.inf)
    inside = np.zeros(y.shape, bool)
    for a, b in zip(corners, np.roll(corners, -1, axis=0)):
        edge, offset = b - a, points - a
        t = np.clip((offset @ edge) / (edge @ edge), 0, 1)
        distance = np.minimum(distance, np.linalg.norm(offset - t[..., None] * edge, axis=-1))
        crosses = (a[0] > y) != (b[0] > y)
        slope = np.where(crosses, (y - a[0]) / (b[0] - a[0] + 1e-12), 0) * (b[1] - a[1]) + a[1]
        inside ^= crosses & (x < slope)
    return np.where(inside, -distance, distance)


def regular_corners(count: int, radii: tuple[float, ...]) -> Array:
    """Corners (count, 2) at equal angles, radii taken in turn."""
    angles = np.arange(count) / count * 2 * np.pi
    radius = np.array([radii[k % len(radii)] for k in range(count)])
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], -1)


def box_distance(y: Array, x: Array, half_height: float, half_width: float) -> Array:
    qy, qx = np.abs(y) - half_height, np.abs(x) - half_width
    outside = np.hypot(np.maximum(qy, 0), np.maximum(qx, 0))
    return outside + np.minimum(np.maximum(qy, qx), 0)


def thing_distance(name: str, y: Array, x: Array, r: float, rng: np.random.Generator) -> Array:
    """Signed distance of the thing ``name`` of radius ``r`` pixels, centred and turned already."""
    if name in ("disc", "ball"):
        return np.hypot(y, x) - r
    if name == "ring":
        return np.abs(np.hypot(y, x) - 0.75 * r) - 0.25 * r
    if name in ("square", "crate"):
        return box_distance(y, x, 0.85 * r, 0.85 * r)
    if name == "triangle":
        return polygon_distance(y, x, regular_corners(3, (1.15 * r,)))
    if name == "star":
        return polygon_distance(y, x, regular_corners(10, (1.2 * r, 0.52 * r)))
    return box_distance(y, x, 1.45 * r, rng.uniform(1.7, 2.6))  # rod


def thing_tone(name: str, y: Array, x: Array, r: float) -> Array:
    """Surface tone, about -1..1: dots for a ball, diagonal boards for a crate, else shading."""
    if name == "ball":
        period = max(r / 1.6, 5.0)
        dots = np.hypot((y % period) - period / 2, (x % period) - period / 2) < 0.30 * period
        return np.where(dots, -1.3, 0.35)
    if name == "crate":
        y, x = np.abs(y), np.abs(x)
        boards = (np.abs(y - x) < 0.16 * r) | (np.maximum(y, x) > 0.66 * r)
        return np.where(boards, -1.2, 0.4)
    return -0.45 * (y + x) / (1.5 * r)


def draw_thing(rng: np.random.Generator, image: Array, name: str) -> tuple[Array, Array]:
    """Stream one thing over ``image``; returns the new image and its mask (SIZE, SIZE) bool."""
    r = rng.uniform(7.5, 17.0) if rng.uniform() < 0.8 else rng.uniform(5.5, 7.5)
    cy, cx = rng.uniform(6, SIZE - 6, 2)
    angle = rng.uniform(0, 2 * np.pi)
    y = np.cos(angle) * (ROWS - cy) + np.sin(angle) * (COLUMNS - cx)
    x = -np.sin(angle) * (ROWS - cy) + np.cos(angle) * (COLUMNS - cx)
    distance = thing_distance(name, y, x, r, rng)
    # A colour that stands off from what it covers: camouflage would be a colour-blindness test.
    covered = image[distance < 0].mean(0) if (distance < 0).any() else image.mean((0, 1))
    color = max(
        (random_color(rng, 0.3, 1.0) for _ in range(3)), key=lambda c: abs(c - covered).sum()
    )
    surface = color * (1 + 0.30 * thing_tone(name, y, x, r))[..., None]
    shadow = 1 - 0.35 * np.clip(1 - np.maximum(distance, 0) / 2.5, 0, 1)[..., None]
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    return image * shadow * (1 - alpha) + surface * alpha, distance < 0


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """The scene ``index`` of a split; depends on nothing but the three arguments."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image, segment_ids, categories = paint_background(rng)
    segment_ids = segment_ids.copy()
    visible = {key: int((segment_ids == key).sum()) for key in categories}
    for name in map(str, rng.choice(THINGS, int(rng.integers(2, 6)))):
        drawn, mask = draw_thing(rng, image, name)
        after = np.where(mask, len(visible) + 1, segment_ids)
        full = {**visible, len(visible) + 1: int(mask.sum())}
        # Keep the new thing only if it and all that it covers stay visible enough to be labelled.
        least = {k: max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * n) for k, n in full.items()}
        if all((after == key).sum() >= pixels for key, pixels in least.items()):
            image, segment_ids = drawn, after
            categories[len(full)] = name
            visible = full
    light = 1 + 0.12 * smooth_noise(rng, 2)[..., None]
    return Scene(finish(rng, image * light), segment_ids.astype(np.int32), categories)


def object_class(index: int) -> tuple[str, str]:
    """(thing, stuff) of the picture ``index``: every pair in turn."""
    return THINGS[index % len(THINGS)], STUFF[index // len(THINGS) % len(STUFF)]


def draw_object(seed: int, split: str, index: int) -> Array:
    """(OBJECT_SIZE, OBJECT_SIZE, 3) uint8: one thing somewhere near the middle of one stuff."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, OBJECT_SIZE])
    thing, stuff = object_class(index)
    ground = paint_stuff(rng, stuff)
    while True:
        image, mask = draw_thing(rng, ground, thing)
        if mask.sum() >= 4 * MIN_VISIBLE_PIXELS:
            break
    centre = np.argwhere(mask).mean(0) - OBJECT_SIZE / 2 + rng.uniform(-12, 12, 2)
    top, left = np.clip(np.round(centre).astype(int), 0, SIZE - OBJECT_SIZE)
    light = 1 + 0.12 * smooth_noise(rng, 2)[..., None]
    return finish(rng, (image * light)[top : top + OBJECT_SIZE, left : left + OBJECT_SIZE])


def write_objects(root: Path, split: str, count: int, seed: int) -> Path:
    """Write ``count`` pictures as ``root/split/<thing>/*.png``; returns the folder."""
    for index in tqdm(range(count), split, unit="image"):
        folder = root / split / object_class(index)[0]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(draw_object(seed, split, index))
        picture.save(folder / f"{index:06d}.png", optimize=split != "train")
    return root / split


def write_split(root: Path, split: str, count: int, seed: int) -> Path:
    """Write ``count`` scenes of ``split`` under ``root``; returns the annotation file."""
    images, annotations = [], []
    for folder in (split, f"panoptic_{split}", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(count), split, unit="image"):
        scene = draw_scene(seed, split, index)
        name = f"{index:06d}.png"
        Image.fromarray(scene.image).save(root / split / name, optimize=split != "train")
        write_id_map(root / f"panoptic_{split}" / name, scene.segment_ids)
        segments = [
            describe_segment(scene.segment_ids, segment, CATEGORY_ID[category])
            for segment, category in scene.categories.items()
        ]
        images.append({"id": index, "file_name": name, "height": SIZE, "width": SIZE})
        annotations.append({"image_id": index, "file_name": name, "segments_info": segments})
    categories = [
        {"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": c.color}
        for c in CATEGORIES
    ]
    info = {"description": "lqn_seg demo scenes", "split": split, "seed": seed, "count": count}
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    path = root / "annotations" / f"panoptic_{split}.json"
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    return path


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--split", choices=SPLITS, required=True, help="which to draw")
    parser.add_argument("--count", type=int, required=True, help="number of images")
    parser.add_argument("--seed", type=int, default=0, help="of every scene (default: 0)")
    parser.add_argument("--objects", action="store_true", help="pictures of one thing each")
    default = "default: demo, or demo_objects, beside this file"
    parser.add_argument("--root", type=Path, metavar="DIR", help=default)
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count must be at least 1, not {args.count}")
    folder = "demo_objects" if args.objects else "demo"
    write = write_objects if args.objects else write_split
    root = args.root or Path(__file__).parent / folder

    def draw() -> None:
        print(f"wrote {args.count}: {write(root, args.split, args.count, args.seed)}")

    return exit_status(draw, "start again, for the split is not whole")


if __name__ == "__main__":
    sys.exit(main())
