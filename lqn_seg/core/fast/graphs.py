"""Work that a GPU can do without its host: constants already there, and captured CUDA graphs.

A fit is thousands of small kernels. Started one by one they would leave the GPU idle between them;
captured once per shape, they are started as one. What is captured is the code that runs everywhere:
it only has to keep from waiting for the device, and from sending it numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lqn_seg.core.timing import is_out_of_memory

# PyTorch asks for a few before a capture: libraries set themselves up in them.
_WARM_UPS = 2


@lru_cache(maxsize=1024)
def constant(
    values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """A few numbers as a tensor, sent to the device once. Not to be written to."""
    # The type is asked for by name: a cache takes (0.0, 1.0) for (0, 1).
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)


class Replay:
    """A function of tensors, captured at its first call and replayed ever after.

    The function gives the same shapes for the same shapes, and may write to storage of its own. Its
    inputs are copied to where they were at the capture; what it returns is there until the next
    call. Where it cannot be captured it is run as it is, with a warning once.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._shapes: list[tuple[torch.Size, torch.dtype]] = []
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Any = None
        self._replay: Callable[[], None] | None = None
        self._refused = False

    def __call__(self, device: torch.device, *inputs: Tensor) -> Any:
        """`function(*inputs)`, on that device."""
        shapes = [(x.shape, x.dtype) for x in inputs]
        if not self._refused and (self._replay is None or shapes != self._shapes):
            self._capture(device, inputs)
        if self._refused or self._replay is None:
            return self._function(*inputs)
        for place, given in zip(self._inputs, inputs):
            place.copy_(given)
        self._replay()
        return self._outputs

    def _capture(self, device: torch.device, inputs: tuple[Tensor, ...]) -> None:
        # The capture before makes room for this one, and is not there to be replayed if it fails.
        self._replay, self._outputs, self._inputs, self._shapes = None, None, (), []
        places = tuple(x.detach().to(device, copy=True) for x in inputs)
        try:
            self._outputs, self._replay = record(self._function, places)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._refused = True
            reason = str(error).partition("\n")[0]
            warnings.warn(f"not run as a CUDA graph, so more slowly: {reason}", stacklevel=2)
            return
        self._inputs, self._shapes = places, [(x.shape, x.dtype) for x in places]


def record(
    function: Callable[..., Any], inputs: tuple[Tensor, ...]
) -> tuple[Any, Callable[[], None]]:
    """Capture `function(*inputs)` as a CUDA graph: what it returns, and how to do it again."""
    device = inputs[0].device
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function(*inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function(*inputs)
    return outputs, graph.replay
