"""Draw what test-time training does: the paper's figures, for the demo or for your images.

Figures (each lists its options with --help):
    panels       EoMT, APM, LQN and ground truth side by side, with changes outlined and scores
    tokens       token maps of teacher and student by layer, and the error between them
    error        the student's error over variance by layer; the JSON also has the loss of every
                 step and how much the tokens vary with position
    steps        the prediction after each step of the fit: a strip with its curve, and a GIF
    depth        measured time to a layer's tokens: teacher O(l), student O(1)
    alignment    damage of an image under every corruption, and the resulting mixing weight
    reconstruct  RGB reconstruction by the students, next to the input
    curves       curves of a study, from its results.json

panels and steps need a teacher with a mask head (EoMT); the others also take a CLIP or a DINOv2.
The command lists every file that it writes.

Examples:
    lqn-seg figures tokens --output out/
    lqn-seg figures panels --output out/ --input photo.jpg \\
        --config coco_panoptic
    lqn-seg figures steps --output out/ --corruption fog --methods lqn,lqn@distill
    lqn-seg figures error --output out/ MODEL.LQN.TEACHER.WEIGHTS path/to/eomt
    lqn-seg figures tokens --output out/ --config classification/demo
    lqn-seg figures curves --output out/ --results output/study/demo/results.json
"""

from collections.abc import Sequence
from pathlib import Path

from lqn_seg.cli.parser import (
    DEMO,
    Namespace,
    Parser,
    add_config_flags,
    check_config,
    exit_status,
    names,
)

# figure -> what it is, and its default methods
FIGURES = {
    "panels": ("methods and ground truth side by side", "teacher,apm,lqn; the last is compared"),
    "tokens": ("token maps of teacher and student by layer", "lqn@distill"),
    "error": ("error over variance by layer", "lqn@paper,lqn@distill,lqn-src@distill"),
    "steps": ("the prediction after each step of the fit", "lqn@distill"),
    "depth": ("measured time to a layer's tokens", "lqn@distill"),
    "alignment": ("damage and mixing weight by corruption", ""),
    "reconstruct": (
        "RGB reconstruction by the students",
        "apm@paper,lqn@paper,apm@distill,lqn@distill",
    ),
    "curves": ("curves of a study", ""),
}


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg figures", description=__doc__)
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    for name, (what, methods) in FIGURES.items():
        command = figures.add_parser(
            name,
            description=f"Draw {what}, as PNG and SVG.",
            epilog=f"example: lqn-seg figures {name} --output out/",
        )
        add_options(command, name, methods)
    return parser.parse_args(words)


def add_options(parser: Parser, name: str, methods: str) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="output folder")
    if name == "curves":
        results = "results.json of a study (default: run study/quick, which takes a minute)"
        parser.add_argument("--results", type=Path, metavar="FILE", help=results)
        return
    files = "image files or folders (default: the first image of the data set)"
    parser.add_argument("--input", nargs="+", default=[], metavar="PATH", help=files)
    parser.add("--images", 1, "number of images from the data set, without --input")
    parser.add("--corruption", "", "comma-separated; clean is allowed", metavar="NAMES")
    if name != "alignment":
        parser.add("--severity", 3, "severity of corruptions, 1..5")
        parser.add("--methods", "", f"comma-separated (default: {methods})", metavar="NAMES")
    if name == "tokens":
        layers = "layers to show (default: six, evenly spaced)"
        parser.add_argument("--layers", type=int, nargs="+", default=[], help=layers)
    add_config_flags(parser, DEMO)


def study_curves(arguments: Namespace) -> list[Path]:
    from lqn_seg.lab.inspect.visualize import draw_curves
    from lqn_seg.lab.study.study_report import run_study

    results = arguments.results
    if results is None:
        folder = arguments.output / "study"
        run_study("study/quick", ["OUTPUT_DIR", str(folder)], resume=True)
        results = folder / "results.json"
    return draw_curves(results, arguments.output)


def draw(arguments: Namespace) -> int:
    if "config_file" in arguments:
        check_config(arguments)
    from lqn_seg.engine.store import make_writable
    from lqn_seg.engine.studio import ORIGINS, Studio
    from lqn_seg.lab.inspect.visualize import FIGURES as DRAW

    if arguments.figure == "curves":
        make_writable(arguments.output)
        for path in study_curves(arguments):
            print(f"written: {path}")
        return 0
    given = vars(arguments)
    studio = Studio(
        arguments.config_file,
        arguments.output,
        arguments.input,
        arguments.images,
        names(arguments.corruption),
        given.get("severity", 3),
        names(given.get("methods", "")),
        arguments.overrides,
        arguments.device,
    )
    make_writable(arguments.output)
    options = {"layers": given["layers"]} if "layers" in given else {}
    for path in DRAW[arguments.figure](studio, **options):
        print(f"written: {path}", flush=True)
    if (origins := arguments.output / ORIGINS).is_file():
        print(f"written: {origins} (the image that each file name stands for)")
    return 2 if studio.failed else 0


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(lambda: draw(parse_arguments(words)), "figures written so far are kept")
