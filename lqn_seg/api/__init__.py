"""The public face: `lqn_seg.load`, and what it and its models give."""

from lqn_seg.api.loading import load
from lqn_seg.api.model import Model
from lqn_seg.api.result import Result

__all__ = ["Model", "Result", "load"]
