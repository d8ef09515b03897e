"""Test-time training by querying layers (LQN), for segmentation and classification.

    import lqn_seg
    model = lqn_seg.load("demo")   # or a folder, a model hub's id, a CLIP with classes
    result = model("street.jpg")   # a path, PIL image, (H, W, 3) uint8 array or tensor, or a list
    result.save("out/")

`help(lqn_seg.load)` says what there is to choose; `lqn-seg --help` is the same as a command.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lqn_seg.api import Model, Result, load

__version__ = "0.1.0"
__all__ = ["Model", "Result", "load"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: PyTorch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("lqn_seg.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
