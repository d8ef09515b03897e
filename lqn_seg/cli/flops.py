"""Count the cost of every method on an EoMT or a CLIP, in GMACs (multiply-add = 1, fvcore's FLOPs).

Examples:
    lqn-seg flops                                   # EoMT-L, 640 px, 200 queries
    lqn-seg flops --image-size 512 --queries 100 --labels 150 --windows 1.83
    lqn-seg flops --teacher path/to/eomt --preset default --count
    lqn-seg flops --clip ViT-B-16-quickgelu --count  # the paper's 20.5 + 14 x 10

Columns: teacher, align, fit, query and head count everything that runs, forward and backward;
"x teacher" is the total over the teacher's own. "paper" counts as the paper does: teacher, head,
and steps - 1 times one forward pass. --count compares the closed forms with a counter that runs
the real modules on the meta device, without weights (torch.utils.flop_counter's rules, halved,
because a multiply-add is 2 there).
"""

from collections.abc import Sequence

from lqn_seg.cli.parser import Namespace, Parser, exit_status
from lqn_seg.core.config import PRESETS


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg flops", description=__doc__)
    parser.add_argument(
        "--teacher", metavar="DIR", help="folder with an EoMT's config.json (default: EoMT-L)"
    )
    parser.add_argument(
        "--clip", metavar="MODEL", help="open_clip's name of a CLIP, instead of an EoMT"
    )
    parser.add_argument("--image-size", type=int, help="side of the square image in pixels")
    parser.add_argument("--queries", type=int, help="number of mask queries")
    parser.add_argument("--labels", type=int, help="number of classes, without 'no object'")
    parser.add("--preset", "paper", f"one of {', '.join(PRESETS)}")
    parser.add_argument("--steps", type=int, help="Adam steps (default: the preset's)")
    parser.add_argument("--positions", type=int, help="positions per step (default: the preset's)")
    parser.add("--windows", 1.0, "windows per image")
    parser.add("--literal", False, "count the student as the paper's Table 4 states it")
    parser.add("--count", False, "also count the real modules")
    return parser.parse_args(words)


def show(arguments: Namespace) -> None:
    from lqn_seg.lab.cost.flops_report import flops_lines

    print("\n".join(flops_lines(arguments)))


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(lambda: show(parse_arguments(words)), "nothing was printed")
