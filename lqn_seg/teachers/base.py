"""What a teacher is: the protocol that everything above the teachers relies on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lqn_seg.core.precision import products_in
from lqn_seg.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ContextT = TypeVar("ContextT")
# (layer, patch tokens (B, H, W, D)) -> what the teacher goes on with; layer 0 is the embedding.
Hook = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a teacher's input.

    Attributes:
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


class Teacher(Protocol[ContextT]):
    """A frozen ViT: images to a token field and whatever else its frozen rest needs.

    Attributes:
        name: what people call it.
        model: the network itself.
        num_layers: L; layers are numbered 1..L, 0 is the patch embedding.
        num_query_layers: how many of the last layers also carry object queries; 0 in a CLIP.
        width: D, features of a token.
        grid: (H, W) patches.
        image_size: (height, width) in pixels that :meth:`encode` takes.
        pixel_mean, pixel_std: normalisation of the teacher's input, for pixels in 0..1.
        precision: of its matrix products: "float32", "bfloat16" or "float16".
        preprocessing: what its checkpoint says of its input, ``pixel_mean`` and ``pixel_std``
            included.
    """

    name: ClassVar[str]
    model: nn.Module
    num_layers: int
    num_query_layers: int
    width: int
    grid: tuple[int, int]
    image_size: tuple[int, int]
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    precision: str = "float32"
    preprocessing: Preprocessing = Preprocessing()

    @property
    def device(self) -> torch.device: ...

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The layers, in their order."""

    def products(self) -> AbstractContextManager[None]:
        """Within, matrix products are computed in the teacher's precision."""
        return products_in(self.precision, self.device)

    def encode(self, images: Tensor, hook: Hook | None = None) -> tuple[Tensor, ContextT]:
        """(B, 3, h, w) normalised images to the token field (B, L, H, W, D) and its context.

        ``hook`` may replace the patch tokens of the embedding and of each layer as they come.
        """

    def embed(self, images: Tensor) -> Tensor:
        """Layer 0 alone: (B, 3, h, w) normalised images to (B, H, W, D) patch embeddings."""

    def resume(self, layer: int, tokens: Tensor, context: ContextT) -> tuple[Tensor, ContextT]:
        """The frozen rest from ``layer`` on: last-layer tokens (B, H, W, D) and their context."""

    def check_images(self, images: Tensor) -> None:
        """Raises InputError where (B, 3, h, w) images are not of the teacher's size."""
        if tuple(images.shape[-2:]) != self.image_size:
            got, want = ("x".join(map(str, size)) for size in (images.shape[-2:], self.image_size))
            raise InputError(f"the {self.name} teacher takes images of {want} pixels, not {got}")

    def check_layer(self, layer: int) -> None:
        """Raises InputError where ``layer``, to resume at, is not in 0 (the embedding) to L."""
        if not 0 <= layer <= self.num_layers:
            raise InputError(f"resume layer must be in 0..{self.num_layers}, not {layer}")


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, h, w) in 0..1 to zero mean and unit deviation per channel."""
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)
