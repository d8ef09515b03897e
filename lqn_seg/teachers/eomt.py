"""The EoMT teacher: transformers' model, opened up so that every layer's tokens can be read.

EoMT (Kerssies et al., CVPR 2025) is a plain ViT whose last ``num_blocks`` layers also carry object
queries. Sequence order inside those layers is ``[queries | prefix | patches]``; before them it is
``[prefix | patches]``, where the prefix is the CLS token followed by the register tokens.

Shapes: B images, L layers, H x W patches, D features, Q queries, P prefix tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from lqn_seg.core.precision import resolve_precision
from lqn_seg.errors import InputError
from lqn_seg.teachers.base import Hook, Preprocessing, Teacher
from lqn_seg.teachers.eomt_model import (
    Size,
    build_eomt,
    eomt_classes,
    image_size_of,
    set_image_size,
)
from lqn_seg.teachers.files import WEIGHT_FILES, find_file, first_line, read_json, read_weights
from lqn_seg.teachers.modules import accelerate, lower_weights
from lqn_seg.teachers.original_eomt import (
    convert_original,
    is_original,
    load_strictly,
    pixel_tensors,
)
from lqn_seg.teachers.preprocessing import (
    FILE_NAME,
    of_original,
    preprocessing_of,
    read_preprocessor,
    window_of,
)

_KEY = "MODEL.LQN.TEACHER"
_BAD_CHECKPOINT = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    SafetensorError,
    StrictDataclassError,
)
ABSOLUTE = "absolute"  # in place of a base: the file is no difference to anything


@dataclass(frozen=True)
class EomtContext:
    """What the frozen rest of the teacher needs beside the patch tokens.

    prefix: (B, L + 1, P, D) CLS and register tokens after each layer; index 0 is the embedding.
    queries: (B, num_blocks + 1, Q, D) query tokens after each query layer; index 0 is as learned.
    masks: attention mask that each query layer ran under, index 0 before any; None where it is off.
        (A layer whose own mask is off keeps the one before it, as in transformers.)
    """

    prefix: Tensor
    queries: Tensor
    masks: tuple[Tensor | None, ...]

    @property
    def last_queries(self) -> Tensor:
        """(B, Q, D) query tokens after the last layer, before the final norm."""
        return self.queries[:, -1]


class EomtTeacher(Teacher[EomtContext]):
    """A frozen EoMT that hands out its tokens at every layer and can resume from any of them.

    Args:
        model: transformers' ``EomtForUniversalSegmentation``, or its sister on DINOv3.
        precision: of the matrix products: "float32", "bfloat16" or "float16".
        preprocessing: what the checkpoint says of its input; None is ImageNet's statistics.
    """

    name = "EoMT"

    def __init__(
        self, model: Any, precision: str = "float32", preprocessing: Preprocessing | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        accelerate(model)
        self.precision = precision
        config = model.config
        self.num_layers: int = config.num_hidden_layers
        self.num_query_layers: int = config.num_blocks
        self.num_queries: int = config.num_queries
        self.width: int = config.hidden_size
        self.grid: tuple[int, int] = model.grid_size
        rows, columns = self.grid
        self.image_size: tuple[int, int] = (rows * config.patch_size, columns * config.patch_size)
        self.preprocessing = preprocessing or Preprocessing()
        self.pixel_mean: tuple[float, ...] = self.preprocessing.mean
        self.pixel_std: tuple[float, ...] = self.preprocessing.std
        self.refresh()

    def refresh(self) -> None:
        """Read again which layers mask their attention: training changes it beside the weights."""
        # Not where it is used: asking a tensor for its value in the layer loop would stall a GPU.
        self._mask_probabilities: list[float] = self.model.attn_mask_probs.tolist()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def blocks(self) -> Iterable[nn.Module]:
        return self.model.layers

    @torch.no_grad()
    def encode(self, images: Tensor, hook: Hook | None = None) -> tuple[Tensor, EomtContext]:
        """Token field of a batch, in one forward pass.

        Args:
            images: (B, 3, h, w) normalised with ``pixel_mean`` and ``pixel_std``.
            hook: replaces the patch tokens of the embedding and of each layer as they come.

        Returns:
            The token field (B, L, H, W, D), block outputs of layers 1..L, and its context.

        Raises:
            InputError: the image size is not the one that the position embeddings were learned at.
        """
        self.check_images(images)
        embedded, prefix, queries = self._embed(images)
        if hook is not None:
            embedded = hook(0, embedded.unflatten(1, self.grid)).flatten(1, 2)
        patches, prefix, queries, masks = self._run(0, embedded, prefix, queries, None, hook)
        return patches.unflatten(2, self.grid), EomtContext(prefix, queries, masks)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Layer 0 alone: (B, 3, h, w) normalised images to (B, H, W, D) patch embeddings."""
        return self._embed(images)[0].unflatten(1, self.grid)

    @torch.no_grad()
    def resume(
        self, layer: int, tokens: Tensor, context: EomtContext
    ) -> tuple[Tensor, EomtContext]:
        """Run the frozen rest of the teacher on patch tokens put in place at ``layer``.

        Args:
            layer: 0 (the embedding) to L; the tokens are what that layer gave out.
            tokens: (B, H, W, D) patch tokens.
            context: prefix and query tokens of the same images, from :meth:`encode`.

        Returns:
            Last-layer patch tokens (B, H, W, D) and the context as it is after the resumed layers.

        Raises:
            InputError: ``layer`` is not one of the teacher's.
        """
        self.check_layer(layer)
        first_query_layer = self.num_layers - self.num_query_layers
        passed = max(layer - first_query_layer, 0)
        patches, prefix, queries, masks = self._run(
            layer,
            tokens.flatten(1, 2),
            context.prefix[:, layer],
            context.queries[:, passed],
            context.masks[passed],
        )
        last = patches[:, -1].unflatten(1, self.grid) if layer < self.num_layers else tokens
        return last, EomtContext(
            torch.cat([context.prefix[:, : layer + 1], prefix[:, 1:]], 1),
            torch.cat([context.queries[:, : passed + 1], queries[:, 1:]], 1),
            (*context.masks[: passed + 1], *masks[1:]),
        )

    def resized(self, size: Size) -> EomtTeacher:
        """The same weights for images of another (height, width), all but the positions shared.

        Raises:
            InputError: a side is no multiple of the patch size.
        """
        own = {id(x): x for x in (*self.model.parameters(), *self.model.buffers())}
        model = copy.deepcopy(self.model, own)
        set_image_size(model, size)
        return EomtTeacher(model, self.precision, self.preprocessing)

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self.products():
            embedded = self.model.embeddings(images)
        count = self.model.embeddings.num_prefix_tokens
        queries = self.model.query.weight.expand(images.shape[0], -1, -1)
        return embedded[:, count:], embedded[:, :count], queries

    def _run(
        self,
        layer: int,
        patches: Tensor,
        prefix: Tensor,
        queries: Tensor,
        mask: Tensor | None,
        hook: Hook | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Layers ``layer + 1`` to L on (B, N, D) patches, (B, P, D) prefix and (B, Q, D) queries.

        Returns patches of the layers run (B, layers, N, D), prefix (B, 1 + layers, P, D), queries
        (B, 1 + query layers run, Q, D) and as many masks; these three start with what came in.
        """
        first_query_layer = self.num_layers - self.num_query_layers
        sizes = [prefix.shape[1], patches.shape[1]]
        positions = self._positions()
        state = torch.cat([prefix, patches], 1)
        if layer > first_query_layer:
            state, sizes = torch.cat([queries, state], 1), [queries.shape[1], *sizes]
        fields, prefixes, query_states, masks = [], [prefix], [queries], [mask]
        for index in range(layer, self.num_layers):
            if index == first_query_layer:
                state, sizes = torch.cat([queries, state], 1), [queries.shape[1], *sizes]
            if index >= first_query_layer:
                mask = self._attention_mask(state, index - first_query_layer, mask)
                masks.append(mask)
            with self.products():
                state = self.model.layers[index](state, mask, **positions)
            *query_part, prefix_part, patch_part = state.split(sizes, 1)
            if hook is not None:
                patch_part = hook(index + 1, patch_part.unflatten(1, self.grid)).flatten(1, 2)
                state = torch.cat([*query_part, prefix_part, patch_part], 1)
            fields.append(patch_part)
            prefixes.append(prefix_part)
            query_states.extend(query_part)
        field = torch.stack(fields, 1) if fields else patches[:, None][:, :0]
        return field, torch.stack(prefixes, 1), torch.stack(query_states, 1), tuple(masks)

    def _positions(self) -> dict[str, Any]:
        """What layers with rotary position embeddings (DINOv3) want beside their input."""
        if self.model.config.model_type != "eomt_dinov3":
            return {}
        # Its cosines depend on the size of the image alone.
        size = torch.empty(1, 1, *self.image_size, device=self.device)
        return {"position_embeddings": self.model.rope_embeddings(size)}

    def _attention_mask(self, state: Tensor, block: int, mask: Tensor | None) -> Tensor | None:
        """Additive mask (B, heads, N, N) of a query layer, or the previous one where it is off.

        Each query attends only to the patches that its current mask covers; off (probability 0)
        in every published checkpoint. Probabilities between 0 and 1 exist during training only.
        """
        if self._mask_probabilities[block] <= 0:
            return mask
        with self.products():
            mask_logits, _ = self.model.predict(self.model.layernorm(state))
        covered = F.interpolate(mask_logits, size=self.grid, mode="bilinear").flatten(2) > 0
        allowed = torch.ones(
            state.shape[0], state.shape[1], state.shape[1], dtype=torch.bool, device=state.device
        )
        first_patch = self.num_queries + self.model.embeddings.num_prefix_tokens
        allowed[:, : self.num_queries, first_patch:] = covered
        heads = self.model.config.num_attention_heads
        blocked = ~allowed[:, None].expand(-1, heads, -1, -1)
        return torch.zeros(blocked.shape, dtype=state.dtype, device=state.device).masked_fill(
            blocked, -1e9
        )


def load_eomt(
    weights: str,
    config: str = "",
    device: str | torch.device = "cpu",
    image_size: Size | None = None,
    base: str = "",
    precision: str = "float32",
) -> EomtTeacher:
    """Load a frozen EoMT teacher.

    Args:
        weights: a local directory, a file or a hub id, in transformers' layout (``config.json`` and
            ``model.safetensors``) or in the original release's (``pytorch_model.bin``); empty for
            random weights of the shape that ``config`` gives.
        config: path of an ``EomtConfig`` JSON file; read where ``weights`` is empty, and for
            what the tensors of an original file do not say (attention heads that are not 64 wide).
        image_size: (height, width) in pixels in place of the checkpoint's; see `set_image_size`.
        base: of delta weights (every published EoMT on DINOv3), a directory, file or hub id of the
            DINOv3 weights that they are the difference to, or ``absolute``.
        precision: of the matrix products, or "auto"; the weights are lowered to it, whatever they
            are stored in.

    How pixels become its input is what ``preprocessor_config.json`` says, or an original file's
    ``encoder.pixel_mean`` and ``encoder.pixel_std``.

    Raises:
        InputError: a file is missing, is no EoMT, or does not fit its config.
    """
    model, preprocessing = _load(weights, config, image_size, base)
    model = model.to(device)
    named = resolve_precision(precision, torch.device(device))
    teacher = EomtTeacher(model, named, preprocessing)
    lower_weights(model, teacher.precision)
    return teacher


def _load(
    weights: str, config: str, image_size: Size | None, base: str
) -> tuple[Any, Preprocessing | None]:
    """The model, in float32, and what its checkpoint says of its input."""
    if not weights:
        return _random_eomt(config, image_size), None
    path = Path(weights)
    if not path.is_file():
        found = find_file(weights, ("config.json", *WEIGHT_FILES), f"{_KEY}.WEIGHTS")
        if path.is_dir() and found is None:
            raise InputError(
                f"{_KEY}.WEIGHTS: {weights} holds no config.json and no {' or '.join(WEIGHT_FILES)}"
            )
        named = found is not None and found.name == "config.json"
        # The original's repositories may hold some config.json of their own.
        if found is None or (named and "model_type" in read_json(found, f"{_KEY}.WEIGHTS")):
            return _transformers_eomt(weights, image_size)
        if named:
            found = find_file(weights, WEIGHT_FILES[::-1], f"{_KEY}.WEIGHTS")
        if found is None:
            raise InputError(f"{_KEY}.WEIGHTS: {weights} holds no {' or '.join(WEIGHT_FILES)}")
        path = found
    return _original_eomt(path, config, image_size, base)


def _random_eomt(config: str, image_size: Size | None) -> Any:
    try:
        model = build_eomt(read_eomt_config(config))
        if image_size is not None:
            set_image_size(model, image_size)
    except _BAD_CHECKPOINT as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{_KEY}.CONFIG: no EoMT has the shape of {config} ({first_line(error)})"
        ) from error
    nn.init.zeros_(model.attn_mask_probs)  # transformers starts it at 1: masked attention on
    return model


def _transformers_eomt(weights: str, image_size: Size | None) -> tuple[Any, Preprocessing | None]:
    """A model in transformers' layout, from a directory or the hub, loaded strictly; its input."""
    model = _transformers_model(weights)
    found = read_preprocessor(weights, f"{_KEY}.WEIGHTS")
    if found is None:
        preprocessing, stated = None, None
    else:
        content, path = found
        where = f"{_KEY}.WEIGHTS: {path}"
        preprocessing, stated = preprocessing_of(content, where), window_of(content, where)
    own = image_size_of(model.config)
    if image_size is None and stated not in (None, own):
        assert stated is not None
        if model.config.model_type == "eomt":  # positions were learned at one size
            raise InputError(
                f"{where}: size is {stated[0]}x{stated[1]}, but config.json's image_size is "
                f"{own[0]}x{own[1]}: say which by {_KEY}.IMAGE_SIZE"
            )
        image_size = stated
    if image_size is not None:
        set_image_size(model, image_size)
    return model, preprocessing


def _transformers_model(weights: str) -> Any:
    local = Path(weights).is_dir()
    try:
        found = find_file(weights, ("config.json",), f"{_KEY}.WEIGHTS")
        kind = read_json(found, f"{_KEY}.WEIGHTS").get("model_type", "") if found else "eomt"
        model, report = eomt_classes(kind)[1].from_pretrained(  # type: ignore[attr-defined]
            weights, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except _BAD_CHECKPOINT as error:
        if isinstance(error, InputError):
            raise
        how = (
            "its config.json or weights are damaged or not those of an EoMT"
            if local
            else "it is not in the model hub's cache and could not be fetched; download it on a "
            f"machine with internet by `hf download {weights}` and give the directory"
        )
        raise InputError(
            f"{_KEY}.WEIGHTS: {weights} could not be loaded: {how} ({first_line(error)})"
        ) from error
    bad = {
        key: sorted(map(str, report[key])) for key in report if key != "error_msgs" and report[key]
    }
    if bad:
        parts = "; ".join(f"{key}: {', '.join(names[:3])}" for key, names in bad.items())
        raise InputError(f"checkpoint {weights} does not fit its config.json ({parts})")
    return model


def _original_eomt(
    path: Path, config: str, image_size: Size | None, base: str
) -> tuple[Any, Preprocessing | None]:
    """A model and its input, from a file of the original release's or of Detectron2's training."""
    state = read_weights(path, f"{_KEY}.WEIGHTS")
    if not is_original(state):
        return _trained_eomt(state, path, config, image_size)
    overrides = read_json(Path(config), f"{_KEY}.CONFIG") if config else {}
    if any("pos_embed" in name for name in state):
        if base:
            raise InputError(f"{_KEY}.BASE: {path} is on DINOv2, it is no difference to {base}")
        found = None
    else:
        found, shape = _read_base(path, base)
        overrides = {**shape, **overrides}
    key = f"{_KEY}.WEIGHTS: {path}"
    model = convert_original(state, key, image_size=image_size, overrides=overrides, base=found)
    preprocessing = of_original(pixel_tensors(state), key, delta=found is not None)
    for place, where in ((str(path.parent), "WEIGHTS"), (base, "BASE")):
        beside = None
        if preprocessing is None and Path(place, FILE_NAME).is_file():
            beside = read_preprocessor(place, f"{_KEY}.{where}")
        if beside is not None:
            preprocessing = preprocessing_of(beside[0], f"{_KEY}.{where}: {beside[1]}")
    return model, preprocessing


def _trained_eomt(
    state: Mapping[str, Tensor], path: Path, config: str, image_size: Size | None
) -> tuple[Any, Preprocessing | None]:
    """A model and its input, from what Detectron2 saved of a model around an EoMT."""
    key = f"{_KEY}.WEIGHTS: {path}"
    inside = [name for name in state if name.endswith("attn_mask_probs")]
    if not inside:
        raise InputError(
            f"{key} could not be loaded: it has not the original release's keys, and transformers' "
            "layout is a directory with a config.json that names its model_type"
        )
    prefix = inside[0].removesuffix("attn_mask_probs")
    own = {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}
    if not config:
        raise InputError(
            f"{key} could not be loaded: it holds tensors alone, and {_KEY}.CONFIG must name "
            "their shape, as in its training"
        )
    shape = read_eomt_config(config)
    shape.num_labels = len(own.get("class_predictor.bias", [0, 0])) - 1
    model = build_eomt(shape)
    load_strictly(model, {n: x for n, x in own.items() if not n.startswith("criter")}, key)
    if image_size is not None:
        set_image_size(model, image_size)
    named = {
        f"encoder.{name}": state[name] for name in ("pixel_mean", "pixel_std") if name in state
    }
    return model, of_original(named, key, delta=False)


def _read_base(path: Path, base: str) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
    """Base weights of a delta checkpoint, and what their config.json says that tensors do not."""
    if base == ABSOLUTE:
        return None, {}
    if not base:
        raise InputError(
            f"{_KEY}.BASE: {path} is on DINOv3, whose published EoMT files are differences to "
            "Meta's weights: name their directory, file or hub id (such as "
            f"facebook/dinov3-vitl16-pretrain-lvd1689m), or '{ABSOLUTE}' for one that is not"
        )
    key = f"{_KEY}.BASE"
    file = Path(base) if Path(base).is_file() else find_file(base, WEIGHT_FILES, key)
    if file is None:
        raise InputError(
            f"{key}: {base} holds no {' or '.join(WEIGHT_FILES)}, or could not be fetched"
        )
    beside = None if Path(base).is_file() else find_file(base, ("config.json",), key)
    content = read_json(beside, key) if beside else {}
    wanted = ("num_attention_heads", "hidden_act", "layer_norm_eps")
    shape = {name: content[name] for name in wanted if name in content}
    if "rope_theta" in content:
        shape["rope_parameters"] = {"rope_type": "default", "rope_theta": content["rope_theta"]}
    return read_weights(file, key), shape


def read_eomt_config(path: str) -> Any:
    """An ``EomtConfig`` from a JSON file (an ``EomtDinov3Config`` where it says so).

    Raises:
        InputError: the file is missing or is not JSON.
    """
    if not Path(path).is_file():
        raise InputError(f"{_KEY}.CONFIG: there is no file {path or '(empty)'}")
    content = read_json(Path(path), f"{_KEY}.CONFIG")
    try:
        kind = eomt_classes(content.get("model_type", "eomt"))[0]
        unknown = sorted(set(content) - {*kind().to_dict(), "num_labels"})
        if unknown:
            raise InputError(f"{_KEY}.CONFIG: {path} has the unknown key {unknown[0]!r}")
        return kind(**content)
    except (TypeError, StrictDataclassError) as error:
        raise InputError(f"{_KEY}.CONFIG: {path} is no EomtConfig ({first_line(error)})") from error
