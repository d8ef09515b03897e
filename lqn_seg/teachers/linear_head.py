"""A linear classifier of a frozen ViT's patch tokens: the simplest head, a folder's worth of which
is ``head.safetensors`` and ``head.json`` beside the weights of the ViT."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Size
from lqn_seg.teachers.files import find_file, read_json, read_weights
from lqn_seg.teachers.modules import products_in

WEIGHTS, ABOUT = "head.safetensors", "head.json"


class LinearHead:
    """Final norm and classifier of one of timm's ViTs that has been given a head (`attach`): what
    is to a ViT with a linear probe what `EomtHead` is to an EoMT."""

    def __init__(self, model: Any, precision: str = "float32") -> None:
        self.model, self.precision = model, precision
        self.class_names: tuple[str, ...] = model.class_names

    def __call__(self, patch_tokens: Tensor, _: Tensor | None = None) -> tuple[Tensor, None]:
        """(B, C, H, W) class logits of last-layer tokens (B, H, W, D) before the final norm, in
        float32, differentiable in the tokens. There are no queries, so there is nothing else."""
        with products_in(self.precision, patch_tokens.device):
            logits = self.model.head(self.model.norm(patch_tokens))
        return logits.float().movedim(-1, 1), None


@dataclass(frozen=True)
class StoredHead:
    """``weight`` (C, D), ``bias`` (C,), the C class names, and the (height, width) of the images
    that it was trained on."""

    weight: Tensor
    bias: Tensor
    class_names: tuple[str, ...]
    image_size: Size


def read_linear_head(weights: str, key: str) -> StoredHead | None:
    """The linear head in a local directory; None without one. An `InputError`, which begins with
    the configuration's ``key``, where its two files are malformed or do not fit."""
    folder = Path(weights)
    if not weights or not folder.is_dir() or not (folder / WEIGHTS).is_file():
        return None
    path = find_file(weights, (ABOUT,), key)
    if path is None:
        raise InputError(f"{key}: {folder} holds {WEIGHTS}, but no {ABOUT} that names its classes")
    about, state = read_json(path, key), read_weights(folder / WEIGHTS, key)
    names, size = about.get("class_names"), about.get("image_size")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise InputError(f"{key}: {path}: class_names must be a list of names, not {names!r}")
    sides = [side for side in size if type(side) is int] if isinstance(size, list) else []
    if sides != size or len(sides) != 2 or min(sides) < 1:
        raise InputError(f"{key}: {path}: image_size must be [height, width], not {size!r}")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    width = shapes.get("weight", (0, 0))[-1]
    if shapes != {"weight": (len(names), width), "bias": (len(names),)}:
        raise InputError(
            f"{key}: {folder / WEIGHTS} must hold a weight ({len(names)}, D) and a bias "
            f"({len(names)},) for the classes of {ABOUT}, not {shapes}"
        )
    return StoredHead(state["weight"], state["bias"], tuple(names), (sides[0], sides[1]))


def attach(head: StoredHead, model: Any) -> None:
    """Give one of timm's ViTs a head; an `InputError` where their widths differ."""
    count, width = head.weight.shape
    if width != model.embed_dim:
        raise InputError(
            f"{WEIGHTS} is for tokens of width {width}, but the ViT's width is {model.embed_dim}"
        )
    model.head, model.class_names = nn.Linear(width, count), head.class_names
    model.head.load_state_dict({"weight": head.weight, "bias": head.bias})


def write_linear_head(folder: Path, head: StoredHead) -> None:
    """Write the two files that `read_linear_head` reads."""
    tensors = {"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}
    save_file({name: x.float().contiguous() for name, x in tensors.items()}, folder / WEIGHTS)
    about = {"class_names": head.class_names, "image_size": head.image_size}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
