"""What a teacher is: a frozen ViT that gives its tokens at every layer and resumes from any.

Shapes: B images, L layers, H x W patches, D features, P prefix tokens (CLS, registers).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from lqn_seg.errors import InputError
from lqn_seg.teachers.modules import products_in, quantise

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# (layer, patch tokens (B, H, W, D)) -> what the teacher goes on with, of the same type; layer 0 is
# the embedding.
Hook = Callable[[int, Tensor], Tensor]
Size = tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a teacher's input.

    mean, std: of three channels, for pixels in 0..1.
    interpolation: Pillow's name of the filter that images are resized with.
    resize: "keep" the aspect ratio, "stretch" an image to the teacher's size, or "none".
    inference: "pad" or "windows" where the checkpoint was made for one of them; "" otherwise.
    source: the file or tensor that says so; "" where nothing does.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    resize: Literal["keep", "stretch", "none"] = "keep"
    inference: Literal["", "pad", "windows"] = ""
    source: str = ""


@dataclass(frozen=True)
class PrefixContext:
    """What the frozen rest of a teacher needs beside the patch tokens: ``prefix``, (B, L + 1, P, D)
    prefix tokens after each layer; index 0 is the embedding."""

    prefix: Tensor

    @property
    def last(self) -> Tensor:
        """(B, P, D) prefix tokens after the last layer."""
        return self.prefix[:, -1]

    def by_layer(self, layers: int) -> Tensor:
        """(B, L, P, D) prefix tokens after each layer."""
        return self.prefix[:, 1:]


ContextT = TypeVar("ContextT", bound=PrefixContext)


class Layers:
    """(B, H, W, D) tokens of so many layers, handed over one after the other, as a (B, L, H, W, D)
    field, or of the last one alone. They are in memory once: stacking them in the end would take
    them twice."""

    def __init__(self, count: int, last: bool = False) -> None:
        self._left_out = count - 1 if last else 0
        self._count, self._written = count - self._left_out, 0
        self._listed: list[Tensor] = []  # with gradients on, which writing in place would break
        self._field = torch.empty(0)

    def append(self, tokens: Tensor) -> None:
        if self._left_out:
            self._left_out -= 1
            return
        if torch.is_grad_enabled():
            self._listed.append(tokens)
            return
        if not self._written:
            self._field = tokens.new_empty(tokens.shape[0], self._count, *tokens.shape[1:])
        self._field[:, self._written] = tokens
        self._written += 1

    @property
    def field(self) -> Tensor:
        return torch.stack(self._listed, 1) if self._listed else self._field


class Teacher(ABC, Generic[ContextT]):
    """A frozen ViT. A sub-class gives `start`, and `run` where its layers take more than tokens.

    Attributes:
        blocks: the layers of `model`, in their order.
        num_layers: L; layers are numbered 1..L, 0 is the patch embedding.
        num_query_layers: how many of the last layers also carry object queries; 0 in a CLIP.
        width, grid: D and (H, W).
        image_size: (height, width) in pixels that `encode` takes.
        precision: of its matrix products: one of `DTYPES`.
    """

    name: ClassVar[str]

    def __init__(
        self,
        model: Any,
        blocks: Sequence[nn.Module] | nn.ModuleList,
        width: int,
        grid: Size,
        image_size: Size,
        precision: str = "float32",
        preprocessing: Preprocessing | None = None,
        num_query_layers: int = 0,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.blocks: Iterable[nn.Module] = blocks
        if precision == "int8":
            quantise(blocks)
        self.num_layers, self.num_query_layers = len(blocks), num_query_layers
        self.width, self.grid, self.image_size = width, grid, image_size
        self.precision = precision
        self.preprocessing = preprocessing or Preprocessing()
        self.layer_precision = precision  # "float32" while the layers' weights are learnt

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        return self.preprocessing.mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        return self.preprocessing.std

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def products(self) -> AbstractContextManager[None]:
        """Within, matrix products are computed in the teacher's precision."""
        return products_in(self.precision, self.device)

    @abstractmethod
    def start(self, images: Tensor) -> tuple[Tensor, ContextT]:
        """Layer 0: patch embeddings (B, H, W, D) of (B, 3, h, w), and the context at layer 0."""

    def enter(self, state: Tensor) -> Tensor:
        """(B, P + H W, D) tokens of layer 0 to what layer 1 takes."""
        return state

    def run(
        self,
        layer: int,
        patches: Tensor,
        context: ContextT,
        hook: Hook | None = None,
        last: bool = False,
    ) -> tuple[Tensor, ContextT]:
        """Layers ``layer + 1`` to L from patches (B, H, W, D) and the context up to ``layer``:
        patches of the layers run (B, L - layer, H, W, D), or of the ``last`` alone (B, 1, H, W, D),
        and the whole context."""
        prefixes = list(context.prefix[:, : layer + 1].unbind(1))
        count, layers = prefixes[0].shape[1], Layers(self.num_layers - layer, last)
        state = torch.cat([prefixes[-1], patches.flatten(1, 2)], 1)
        if layer == 0:
            state = self.enter(state)
        for index, block in enumerate(list(self.blocks)[layer:], layer + 1):
            with products_in(self.layer_precision, self.device):
                state = block(state)
            patches = state[:, count:].unflatten(1, self.grid)
            if hook is not None:
                patches = hook(index, patches)
                state = torch.cat([state[:, :count], patches.flatten(1, 2)], 1)
            layers.append(patches)
            prefixes.append(state[:, :count].clone())  # a part would hold all of the layer
        return layers.field, replace(context, prefix=torch.stack(prefixes, 1))

    def forward(
        self, images: Tensor, hook: Hook | None = None, last: bool = False
    ) -> tuple[Tensor, ContextT]:
        """`encode`, with gradients where they are on."""
        self.check_images(images)
        patches, context = self.start(images)
        return self.run(0, patches if hook is None else hook(0, patches), context, hook, last)

    @torch.no_grad()
    def encode(
        self, images: Tensor, hook: Hook | None = None, last: bool = False
    ) -> tuple[Tensor, ContextT]:
        """Token field (B, L, H, W, D), block outputs of layers 1..L, and its context, in one pass.

        Args:
            images: (B, 3, h, w) normalised with ``pixel_mean`` and ``pixel_std``; an `InputError`
                where they are not of the teacher's size.
            hook: replaces the patch tokens of the embedding and of each layer as they come.
            last: hold the last layer alone: (B, 1, H, W, D).
        """
        return self.forward(images, hook, last)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Layer 0 alone: (B, 3, h, w) normalised images to (B, H, W, D) patch embeddings."""
        self.check_images(images)
        return self.start(images)[0]

    @torch.no_grad()
    def resume(self, layer: int, tokens: Tensor, context: ContextT) -> tuple[Tensor, ContextT]:
        """The frozen rest on patch tokens (B, H, W, D) put in place at ``layer``, 0 to L.

        Returns last-layer patch tokens (B, H, W, D) and the images' context, from `encode`, as it
        is after the resumed layers; an `InputError` where the teacher has no such layer.
        """
        if not 0 <= layer <= self.num_layers:
            raise InputError(f"resume layer must be in 0..{self.num_layers}, not {layer}")
        if layer == self.num_layers:
            return tokens, context
        field, context = self.run(layer, tokens, context, last=True)
        return field[:, -1], context

    def resized(self, size: Size) -> Self:
        """The same teacher for images of another (height, width), multiples of the patch size, all
        but the positions shared; an `InputError` where its images have one size."""
        raise InputError(f"the {self.name} teacher takes images of one size")

    def at_scale(self, scale: float) -> Self:
        """`resized` by a factor, to whole patches."""
        height, width = (
            max(round(scale * tokens), 1) * (side // tokens)
            for side, tokens in zip(self.image_size, self.grid)
        )
        return self.resized((height, width))

    def check_images(self, images: Tensor) -> None:
        """Raises InputError where (B, 3, h, w) images are not of the teacher's size."""
        if tuple(images.shape[-2:]) != self.image_size:
            got, want = ("x".join(map(str, size)) for size in (images.shape[-2:], self.image_size))
            raise InputError(f"the {self.name} teacher takes images of {want} pixels, not {got}")


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, h, w) in 0..1 to zero mean and unit deviation per channel."""
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)
