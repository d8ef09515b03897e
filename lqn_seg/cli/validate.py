"""Check a data set and the evaluators.

Checks files, sizes, ids and that JSON and PNG agree. Scores the ground truth as prediction (100
everywhere), compares the scores of a damaged copy with pycocotools, cityscapesscripts and, if
installed, panopticapi, and a stored prediction with stored scores. The exit status is 1 if
anything is wrong.

Examples:
    lqn-seg validate demo_panoptic_val
    lqn-seg validate coco_2017_val_panoptic --max-images 100
    lqn-seg validate my_val --config-file my.yaml   # one of MODEL.LQN.DATASETS
"""

from collections.abc import Sequence

from lqn_seg.cli.parser import Namespace, Parser, exit_status


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg validate", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="name of a data set, see datasets/README.md")
    parser.add_argument("--config-file", metavar="FILE", help="YAML that describes the data set")
    parser.add("--max-images", 0, "number of images to check; 0 is all")
    return parser.parse_args(words)


def check(arguments: Namespace) -> int:
    from lqn_seg.config.nodes import load_cfg
    from lqn_seg.data.catalog import get_dataset
    from lqn_seg.lab.validate.validate import validate

    if arguments.config_file:
        load_cfg(arguments.config_file)  # makes its data sets known
    result = validate(get_dataset(arguments.name), arguments.max_images)
    print(result.text())
    if result.interrupted:
        raise KeyboardInterrupt(f"{result.images} of {result.total} images were checked")
    return 1 if result.problems else 0


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(lambda: check(parse_arguments(words)), "nothing has been checked yet")
