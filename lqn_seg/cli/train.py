"""Train a teacher: an EoMT, or by MODEL.LQN.TEACHER.NAME a linear head on a frozen DINOv2
(dinov2) or a small CLIP (clip: open_clip's class and tokenizer, on labelled images).

Examples:
    lqn-seg train demo_teacher --resume
    lqn-seg train cityscapes256_linear MODEL.LQN.TRAIN.BACKBONE facebook/dinov2-small
    lqn-seg train classification/demo_teacher
"""

from collections.abc import Sequence
from typing import Any

from lqn_seg.cli.parser import Namespace, Parser, add_config_flags, check_config, exit_status
from lqn_seg.engine.interruption import is_launched
from lqn_seg.errors import InputError


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg train", description=__doc__)
    add_config_flags(parser)
    parser.add("--resume", False, "go on from the checkpoint in OUTPUT_DIR")
    return parser.parse(words)


def train(arguments: Namespace) -> None:
    check_config(arguments)
    if is_launched():
        raise InputError("a teacher is trained in one process: torchrun is for eval")
    from lqn_seg.config.nodes import load_any_cfg

    cfg = load_any_cfg(arguments.config_file, arguments.overrides, arguments.device)
    print(f"teacher: {trainer_for(cfg)(cfg).train(arguments.resume)}")


def trainer_for(cfg: Any) -> Any:
    """The class that trains a configuration's teacher."""
    if cfg.MODEL.LQN.TEACHER.NAME == "clip":
        from lqn_seg.engine.training.train_clip import ClipTrainer

        return ClipTrainer
    if cfg.MODEL.LQN.TEACHER.NAME == "dinov2":
        from lqn_seg.engine.training.train_linear import LinearTrainer

        return LinearTrainer
    from lqn_seg.engine.training.train import TeacherTrainer

    return TeacherTrainer


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    return exit_status(lambda: train(arguments))
