"""Train a teacher: an EoMT, a linear head on a frozen DINOv2, or a CLIP on labelled images.

MODEL.LQN.TEACHER.NAME selects it: eomt, dinov2 or clip. The finished teacher is written to
OUTPUT_DIR/teacher.

Examples:
    lqn-seg train demo_teacher --resume
    lqn-seg train cityscapes256_linear MODEL.LQN.TRAIN.BACKBONE facebook/dinov2-small
    lqn-seg train classification/demo_teacher
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lqn_seg.cli.parser import Namespace, Parser, add_config_flags, check_config, exit_status
from lqn_seg.engine.interruption import is_launched
from lqn_seg.errors import InputError


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg train", description=__doc__)
    add_config_flags(parser)
    parser.add("--resume", False, "continue from the checkpoint in OUTPUT_DIR")
    return parser.parse(words)


def train(arguments: Namespace) -> None:
    cfg = check_config(arguments)
    if is_launched():
        raise InputError("training runs in one process; torchrun is for eval")
    print(plan(cfg), flush=True)  # before torch is imported, which takes seconds
    from lqn_seg.config.nodes import load_any_cfg

    cfg = load_any_cfg(arguments.config_file, arguments.overrides, arguments.device)
    trainer = trainer_for(cfg)
    print(f"device: {cfg.MODEL.DEVICE}\nprecision: {trainer.precision(cfg)}", flush=True)
    print(f"teacher: {trainer(cfg).train(arguments.resume)}")


def plan(cfg: Any) -> str:
    """What a training is about to do, and where its files go."""
    teacher, train, solver = cfg.MODEL.LQN.TEACHER, cfg.MODEL.LQN.TRAIN, cfg.SOLVER
    kind = {"clip": "a CLIP", "dinov2": "a linear head on a frozen DINOv2"}.get(teacher.NAME)
    start, output = train.BACKBONE or cfg.MODEL.WEIGHTS, Path(cfg.OUTPUT_DIR)
    lines = {
        "training": f"{kind or 'an EoMT'}, from {start or f'random weights ({teacher.CONFIG})'}",
        "data": ", ".join(cfg.DATASETS.TRAIN) or "none (set DATASETS.TRAIN)",
        "iterations": f"{solver.MAX_ITER} of {solver.IMS_PER_BATCH} images",
        "checkpoints": f"{output / 'checkpoint.pt'}, every {solver.CHECKPOINT_PERIOD} iterations "
        "and at Ctrl-C; --resume continues from it",
        "finished teacher": f"{output / 'teacher'}",
    }
    return "\n".join(f"{key}: {value}" for key, value in lines.items())


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
