"""Convert an EoMT checkpoint of either layout to transformers' layout, as safetensors.

Reads the original release's files: pytorch_model.bin, flat or under state_dict, on DINOv2, or on
DINOv3 as a difference to Meta's weights. Loading is strict and executes no code from the file.
Writes config.json, preprocessor_config.json and model.safetensors, runs both models on one random
image, and compares their logits bit for bit.

Examples:
    lqn-seg convert pytorch_model.bin eomt_large/
    lqn-seg convert tue-mps/coco_panoptic_eomt_large_640_dinov3 eomt_dinov3/ \\
        --base facebook/dinov3-vitl16-pretrain-lvd1689m --image-size 640 640
    lqn-seg convert eomt_large/ eomt_large_wide/ --image-size 512 1024
"""

from collections.abc import Sequence

from lqn_seg.cli.parser import Namespace, Parser, exit_status


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg convert", description=__doc__)
    parser.add_argument("input", metavar="INPUT", help="file, directory or hub id")
    parser.add_argument("output", metavar="OUTPUT", help="directory to write; must not exist yet")
    parser.add("--base", "", "DINOv3 weights that INPUT is a difference to, or 'absolute'")
    parser.add("--config", "", "JSON with what tensor shapes do not show (heads)")
    size = "pixels; resamples position embeddings (default: unchanged; DINOv3 has none)"
    sides = ("HEIGHT", "WIDTH")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=sides, help=size)
    return parser.parse_args(words)


def run(arguments: Namespace) -> None:
    from lqn_seg.engine.convert import convert

    size = tuple(arguments.image_size) if arguments.image_size else None
    print(convert(arguments.input, arguments.output, arguments.config, size, arguments.base))


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(lambda: run(parse_arguments(words)), "nothing was written")
