"""Segment or classify images, folders of them, globs and videos.

Examples:
    lqn-seg predict street.jpg --out out/
    lqn-seg predict photos/ drive.mp4 --out out/ --model tue-mps/coco_panoptic_eomt_large_640
    lqn-seg predict photos/ --out out/ --model eomt/ --compare teacher,lqn --resume
    lqn-seg predict cat.jpg --out out/ --model ViT-B-16-quickgelu:openai --classes cat,dog

Writes an overlay, the label map, the panoptic map with COCO's JSON, and results.json; of a video an
overlay video and JSON. What cannot be read is named and left out, and the exit status is 2.

The model that is shipped, demo, knows 13 classes of drawn scenes and nothing of photographs.
"""

from collections.abc import Sequence
from pathlib import Path

from lqn_seg.cli.parser import Namespace, Parser, exit_status, names


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg predict", description=__doc__)
    what = "image or video files, folders, globs"
    parser.add_argument("inputs", nargs="+", metavar="PATH", help=what)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the files")
    model = "folder, file or hub id of an EoMT, ARCHITECTURE:TAG of a CLIP, or a configuration"
    parser.add("--model", "demo", model, metavar="NAME")
    parser.add("--method", "lqn", "whose answer is written; a wrong one lists them", metavar="NAME")
    parser.add("--compare", "", "comma-separated: further methods, side by side", metavar="NAMES")
    parser.add("--classes", "", "comma-separated: what a CLIP looks for", metavar="NAMES")
    parser.add("--calibration", "", "file (default: beside local weights)", metavar="FILE")
    parser.add("--device", "auto", "auto, cpu, cuda or mps")
    parser.add("--threads", 0, "on a CPU; 0 is PyTorch's own number")
    parser.add("--every", 1, "of a video, each so-many-th frame")
    parser.add("--resume", False, "leave out what is in the folder already")
    parser.add("--strict", False, "stop at the first file that cannot be read")
    parser.add_overrides()
    return parser.parse_intermixed_args(words)


def predict(arguments: Namespace) -> int:
    from lqn_seg.api.files import find_files, predict_files
    from lqn_seg.api.loading import load
    from lqn_seg.engine.probe import known_classes

    find_files(arguments.inputs)  # what is missing is said before the model is loaded
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
    print(f"{model}\n{known_classes(model.classes, 'this model')}", flush=True)
    given = arguments.inputs, arguments.out, arguments.resume, arguments.strict, arguments.every
    summary = predict_files(model, *given)
    print(
        f"{summary.done} files predicted, {summary.skipped} were there already, "
        f"{summary.failed} left out: {arguments.out}"
    )
    return 2 if summary.failed else 0


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    return exit_status(lambda: predict(arguments), "what is done is kept: go on with --resume")
