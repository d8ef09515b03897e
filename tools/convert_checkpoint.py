#!/usr/bin/env python
"""Turn an EoMT checkpoint of either layout into transformers', as safetensors.

Reads the original release's files (pytorch_model.bin, flat or under state_dict, on DINOv2, or on
DINOv3 as a difference to Meta's weights), strictly and without executing what is in them, and
writes config.json, preprocessor_config.json and model.safetensors. Then both are run on one random
image and must agree.

Examples:
    python tools/convert_checkpoint.py pytorch_model.bin eomt_large/
    python tools/convert_checkpoint.py tue-mps/coco_panoptic_eomt_large_640_dinov3 eomt_dinov3/ \\
        --base facebook/dinov3-vitl16-pretrain-lvd1689m --image-size 640 640
    python tools/convert_checkpoint.py eomt_large/ eomt_large_wide/ --image-size 512 1024
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lqn_seg.cli import Parser, exit_status
from lqn_seg.errors import InputError

# What the loader calls its sources, and what they are called here.
_NAMES = {
    "MODEL.LQN.TEACHER.WEIGHTS": "INPUT",
    "MODEL.LQN.TEACHER.CONFIG": "--config",
    "MODEL.LQN.TEACHER.BASE": "--base",
}


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("input", metavar="INPUT", help="file, directory or hub id")
    parser.add_argument("output", metavar="OUTPUT", help="directory to write; must not exist")
    parser.add_argument("--base", default="", help="DINOv3 weights, for deltas, or 'absolute'")
    parser.add_argument("--config", default="", help="JSON with what shapes do not say (heads)")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="pixels; resamples position embeddings (default: as they are; DINOv3 has none)",
    )
    return parser.parse_args()


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Raises:
    InputError: the block could not write.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"OUTPUT: cannot write {output} ({error.strerror})") from error


def convert(arguments: argparse.Namespace) -> None:
    import torch

    from lqn_seg.engine.evaluate import weights_hash
    from lqn_seg.teachers.eomt import EomtTeacher, load_eomt
    from lqn_seg.teachers.eomt_head import EomtHead
    from lqn_seg.teachers.preprocessing import described, write_preprocessor

    output = Path(arguments.output)
    if output.exists():
        raise InputError(f"OUTPUT: {output} is there already")
    size = tuple(arguments.image_size) if arguments.image_size else None
    teacher = load_eomt(arguments.input, arguments.config, "cpu", size, arguments.base)
    print(f"loaded: {arguments.input}; converting and comparing ...", flush=True)
    image = torch.randn(1, 3, *teacher.image_size, generator=torch.Generator().manual_seed(0))

    def logits(model: EomtTeacher) -> tuple[torch.Tensor, torch.Tensor]:
        field, context = model.encode(image)
        return EomtHead(model.model)(field[:, -1], context.last_queries)

    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.TemporaryDirectory(dir=output.parent)
    with partial as folder:
        # In there until it has been compared: OUTPUT is whole, or it is not there.
        converted = Path(folder) / "model"
        with writing(output):
            teacher.model.save_pretrained(converted)
            write_preprocessor(converted, teacher.preprocessing, teacher.image_size)
        again = load_eomt(str(converted))
        if not all(torch.equal(a, b) for a, b in zip(logits(teacher), logits(again))):
            raise InputError(f"OUTPUT: {output} would not give INPUT's logits")
        with writing(output):
            converted.rename(output)
    config = teacher.model.config
    height, width = size = teacher.image_size
    print(
        f"{output}: {config.model_type}, {teacher.num_layers} layers of width {teacher.width}, "
        f"{height}x{width} px, {teacher.num_queries} queries, {config.num_labels} classes, "
        f"masked attention {'off' if not any(teacher.model.attn_mask_probs) else 'on'}, "
        f"weights {weights_hash(teacher.model)}; {described(teacher.preprocessing, size)}; same "
        "logits as INPUT, bit for bit"
    )


def run(arguments: argparse.Namespace) -> None:
    try:
        convert(arguments)
    except InputError as error:
        text = str(error)
        for key, name in _NAMES.items():
            text = text.replace(key, name)
        raise InputError(text) from error


def main() -> int:
    arguments = parse_arguments()
    return exit_status(lambda: run(arguments), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
