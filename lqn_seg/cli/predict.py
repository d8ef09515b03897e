"""Segment or classify images, folders of them, globs and videos.

Examples:
    lqn-seg predict street.jpg --out out/
    lqn-seg predict photos/ drive.mp4 --out out/ --model tue-mps/coco_panoptic_eomt_large_640
    lqn-seg predict photos/ --out out/ --model eomt/ --compare teacher,lqn --resume
    lqn-seg predict cat.jpg --out out/ --model ViT-B-16-quickgelu:openai --classes cat,dog

Writes an overlay, the label map, the panoptic map with COCO's JSON, and results.json; for a video,
an overlay video and JSON. Unreadable files are reported and left out, and the exit status is 2.

The shipped model, demo, was trained on 13 classes of drawn scenes and does not work on photographs.
"""

from collections.abc import Sequence
from pathlib import Path

from lqn_seg.cli.parser import Namespace, Parser, exit_status, names


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg predict", description=__doc__)
    what = "image or video files, folders, globs"
    parser.add_argument("inputs", nargs="+", metavar="PATH", help=what)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    model = "folder, file or hub id of an EoMT, folder of a DINOv2 with a linear head, folder or "
    model += "ARCHITECTURE:TAG of a CLIP, or a configuration"
    parser.add("--model", "demo", model, metavar="NAME")
    parser.add(
        "--method",
        "lqn",
        "whose prediction is written; a wrong name lists the methods",
        metavar="NAME",
    )
    parser.add(
        "--compare", "", "further methods to show side by side, comma-separated", metavar="NAMES"
    )
    parser.add("--classes", "", "class names for a CLIP, comma-separated", metavar="NAMES")
    parser.add(
        "--calibration",
        "",
        "calibration file (default: the one beside local weights)",
        metavar="FILE",
    )
    parser.add("--device", "auto", "auto, cpu, cuda or mps")
    parser.add("--threads", 0, "CPU threads; 0 is PyTorch's default")
    parser.add("--every", 1, "of a video, use every N-th frame")
    parser.add("--resume", False, "skip files that are already in the folder")
    parser.add("--strict", False, "stop at the first unreadable file")
    parser.add_overrides()
    return parser.parse_intermixed_args(words)


def predict(arguments: Namespace) -> int:
    from lqn_seg.data.inputs import find_files

    find_files(arguments.inputs)  # what is missing is said before PyTorch is imported
    from lqn_seg.api.files import predict_files
    from lqn_seg.api.loading import load
    from lqn_seg.engine.probe import known_classes
    from lqn_seg.lab.report.wording import wrapped

    model = load(
        arguments.model,
        method=arguments.method,
        compare=names(arguments.compare),
        classes=names(arguments.classes) or None,
        calibration=arguments.calibration,
        device=arguments.device,
        threads=arguments.threads,
        overrides=arguments.overrides,
    )
    who = "this run" if arguments.classes else "this model"
    print(wrapped(f"{model}\n{known_classes(model.classes, who)}"), flush=True)
    given = arguments.inputs, arguments.out, arguments.resume, arguments.strict, arguments.every
    summary = predict_files(model, *given)
    files = "1 file" if summary.done == 1 else f"{summary.done} files"
    left = f"{summary.skipped} already there, {summary.failed} left out"
    print(f"{files} predicted, {left}: {arguments.out}")
    return 2 if summary.failed else 0


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    return exit_status(
        lambda: predict(arguments), "finished files are kept; continue with --resume"
    )
