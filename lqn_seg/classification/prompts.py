"""Class names as unit vectors: one prompt, or open_clip's 80, from a frozen text tower, cached.

Shapes: C classes, E joint features.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lqn_seg.adapt.classification_methods import PROMPTS
from lqn_seg.data.classification_sets import COOP
from lqn_seg.errors import InputError
from lqn_seg.teachers.clip import ClipTeacher

SINGLE = "a photo of a {}."
_TEXTS_AT_ONCE = 256
Template = Callable[[str], str]


def templates(prompts: str, dataset: str = "") -> list[Template]:
    """How a class name becomes sentences.

    Args:
        prompts: "single" is "a photo of a {}." or, for the fine-grained sets, CoOp's own prompt;
            "ensemble" the 80 that open_clip ships; "train" both, for training a CLIP.
        dataset: the data set's name.

    Raises:
        InputError: there are no such prompts.
    """
    coop = COOP.get(dataset.removesuffix("_test"))
    single: list[Template] = [(coop.template if coop else SINGLE).format]
    if prompts == "single":
        return single
    if prompts == "ensemble":
        return list(OPENAI_IMAGENET_TEMPLATES)
    if prompts == "train":
        return [*single, *OPENAI_IMAGENET_TEMPLATES]
    raise InputError(f"CLASSIFICATION.PROMPTS must be {' or '.join(PROMPTS)}, not {prompts!r}")


@torch.no_grad()
def text_features(
    teacher: ClipTeacher,
    class_names: Sequence[str],
    sentences: Sequence[Template],
    cache: str | os.PathLike[str] | None = None,
) -> Tensor:
    """(C, E) unit vectors: each sentence's feature normalised, their mean normalised again.

    Args:
        sentences: class name -> sentence, one for each prompt of the ensemble.
        cache: folder in which answers are kept, by the text tower's weights and by the sentences;
            None keeps nothing.
    """
    texts = [sentence(name) for name in class_names for sentence in sentences]
    path = None
    if cache:
        path = Path(cache) / f"{_digest(teacher, texts, len(sentences))}.safetensors"
        stored = _read(path, (len(class_names), teacher.joint_width))
        if stored is not None:
            return stored.to(teacher.device)
    pieces = [
        teacher.encode_text(teacher.tokenize(texts[first : first + _TEXTS_AT_ONCE]))
        for first in range(0, len(texts), _TEXTS_AT_ONCE)
    ]
    features = torch.cat(pieces).unflatten(0, (len(class_names), len(sentences)))
    weights = F.normalize(features.mean(1), dim=-1)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file({"weights": weights.cpu().contiguous()}, partial)
        partial.replace(path)
    return weights


def cache_folder() -> Path:
    """``$LQN_SEG_CACHE``, or the user's cache."""
    return Path(os.environ.get("LQN_SEG_CACHE") or Path.home() / ".cache" / "lqn_seg") / "text"


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """What is stored, if it is there and whole."""
    try:
        weights = load_file(path)["weights"]
    except (OSError, SafetensorError, KeyError):
        return None
    return weights if tuple(weights.shape) == shape else None


def _digest(teacher: ClipTeacher, texts: Sequence[str], prompts: int) -> str:
    """SHA-256 over all that the features depend on: the text tower, its precision, the texts."""
    digest = hashlib.sha256(f"{teacher.precision} {teacher.device.type} {prompts}".encode())
    for name, tensor in sorted(teacher.model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update("\n".join(texts).encode())
    return digest.hexdigest()[:32]
