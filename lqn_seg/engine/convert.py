"""An EoMT checkpoint of either layout as transformers' directory, compared before it is there."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lqn_seg.engine.evaluate import weights_hash
from lqn_seg.errors import InputError
from lqn_seg.teachers import eomt
from lqn_seg.teachers.eomt_head import EomtHead
from lqn_seg.teachers.preprocessing import described, write_preprocessor

# What the loader calls its sources, and what the command calls them.
_NAMES = {
    "MODEL.LQN.TEACHER.WEIGHTS": "INPUT",
    "MODEL.LQN.TEACHER.CONFIG": "--config",
    "MODEL.LQN.TEACHER.BASE": "--base",
}


def convert(
    source: str, target: str, config: str = "", size: tuple[int, int] | None = None, base: str = ""
) -> str:
    """Write a directory that gives the logits of another checkpoint (a file, directory or hub id),
    bit for bit, whole or not at all; says what it wrote. The other arguments are `load_eomt`'s."""
    output = Path(target)
    if output.exists():
        raise InputError(f"OUTPUT: {output} already exists")
    teacher = _load(source, config, size, base)
    print(f"loaded: {source}; converting and comparing ...", flush=True)
    image = torch.randn(1, 3, *teacher.image_size, generator=torch.Generator().manual_seed(0))
    with _writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.TemporaryDirectory(dir=output.parent)
    with partial as folder:
        converted = Path(folder) / "model"
        with _writing(output):
            teacher.model.save_pretrained(converted)
            write_preprocessor(converted, teacher.preprocessing, teacher.image_size)
        pairs = zip(_logits(teacher, image), _logits(eomt.load_eomt(str(converted)), image))
        if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
            raise InputError(f"OUTPUT: {output} would not give the same logits as INPUT")
        with _writing(output):
            converted.rename(output)
    shape, (height, width) = teacher.model.config, teacher.image_size
    return (
        f"{output}: {shape.model_type}, {teacher.num_layers} layers of width {teacher.width}, "
        f"{height}x{width} px, {teacher.num_queries} queries, {shape.num_labels} classes, "
        f"masked attention {'on' if any(teacher.model.attn_mask_probs) else 'off'}, "
        f"weights {weights_hash(teacher.model)}; "
        f"{described(teacher.preprocessing, teacher.image_size)}; same logits as INPUT, bit for bit"
    )


def _load(source: str, config: str, size: tuple[int, int] | None, base: str) -> eomt.EomtTeacher:
    try:
        return eomt.load_eomt(source, config, "cpu", size, base)
    except InputError as error:
        text = str(error)
        for key, name in _NAMES.items():
            text = text.replace(key, name)
        raise InputError(text) from error


def _logits(teacher: eomt.EomtTeacher, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    field, context = teacher.encode(image)
    return EomtHead(teacher.model)(field[:, -1], context.last_queries)


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"OUTPUT: cannot write {output} ({error.strerror})") from error
