#!/usr/bin/env python
"""Draw panoptic panels of your own images: input, one picture per method, and where they differ.

Example:
    python tools/visualize.py --config configs/demo_lqn.yaml --input any.jpg --output out/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lqn_seg.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument("--input", required=True, nargs="+", help="image files or folders of them")
    parser.add_argument("--output", required=True, help="folder for the panels (PNG)")
    parser.add_argument(
        "--methods", default="teacher,apm,lqn", help="comma-separated, the last is compared"
    )
    parser.add_argument("--device", default="", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override config keys"
    )
    return parser.parse_args()


def image_files(inputs: list[str]) -> list[Path]:
    """The images named, and those in the folders named, sorted within each folder."""
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise InputError(f"--input: the folder {path} holds no image")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"--input: there is no file or folder {path}")
    return files


def main() -> int:
    arguments = parse_arguments()
    try:
        files = image_files(arguments.input)
        from lqn_seg.engine.visualize import draw_images

        drawn = draw_images(
            arguments.config_file,
            files,
            Path(arguments.output),
            chosen=arguments.methods.split(","),
            overrides=arguments.overrides,
            device=arguments.device,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if drawn == len(files) else 2


if __name__ == "__main__":
    sys.exit(main())
