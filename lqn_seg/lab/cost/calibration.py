"""What a calibration cost, and what that of an EoMT-L would cost on the same machine."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch

from lqn_seg.adapt.calibration import DIRECTIONS, PASSES, calibrated_layers, look
from lqn_seg.adapt.style import LOOKS
from lqn_seg.engine.calibrate import Calibrated
from lqn_seg.lab.cost.cost import UncountedOperatorError, measure
from lqn_seg.lab.cost.flops import EomtShape, eomt_gmacs
from lqn_seg.lab.cost.flops_report import load_eomt_config

_SIDE, _QUERIES = 512, 100  # of the published EoMT-L on ADE20K


def calibration_line(made: Calibrated) -> str:
    """Images, seconds, their quotient, and an estimate of the seconds that the same number of
    teacher inputs would take of an EoMT-L at 512 px: both cost what their multiply-adds do."""
    line = (
        f"{made.images} images in {made.seconds:.1f} s, {made.images / made.seconds:.2f} images/s"
    )
    try:
        gmacs = made.inputs * input_gmacs(made)
    except UncountedOperatorError:
        return line
    rate, large = gmacs / made.seconds, made.inputs * large_input_gmacs()
    return (
        f"{line}, {rate:.1f} GMACs/s; about {large / rate:.0f} s for an EoMT-L at {_SIDE} px on "
        "this machine"
    )


@torch.no_grad()
def input_gmacs(made: Calibrated) -> float:
    """GMACs of all passes on one input of the teacher that was calibrated."""
    teacher = made.teacher
    blank = torch.zeros(1, 3, *teacher.image_size, device=teacher.device)
    layers = calibrated_layers(teacher.num_layers, teacher.num_query_layers)
    seen = measure(lambda: look(teacher, blank, lambda *_: None, layers[-1])).gmacs
    whole = measure(lambda: teacher.encode(blank)).gmacs
    return _passes_gmacs(seen, whole, len(layers), prod(teacher.grid), teacher.width)


def large_input_gmacs() -> float:
    """`input_gmacs` of an EoMT-L at 512 px, in closed form."""
    config = load_eomt_config()
    config.image_size, config.num_queries = _SIDE, _QUERIES
    shape = EomtShape.from_config(config)
    layers = calibrated_layers(shape.layers, shape.num_blocks)
    seen, whole = replace(shape, layers=layers[-1]).gmacs, eomt_gmacs(shape)["teacher"]
    return _passes_gmacs(seen, whole, len(layers), shape.patches, shape.width)


def _passes_gmacs(seen: float, whole: float, layers: int, patches: int, width: int) -> float:
    """All runs of the teacher but the last pass's end at the last calibrated layer. The tokens of
    each such layer go through a square product for the covariance, and to the strongest directions
    in each of the other runs, in the last there and back."""
    runs, rank = PASSES + LOOKS, min(DIRECTIONS, width)
    products = layers * patches * width * (width + runs * rank) / 1e9
    return (runs - 1) * seen + whole + products
