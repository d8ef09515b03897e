"""What a teacher can know of a picture: its classes, and whether anything alike was calibrated on.

A teacher gives every picture its own classes, with confidence, whatever the picture shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lqn_seg.adapt.familiarity import Acquaintance
from lqn_seg.core.alignment import Calibration
from lqn_seg.engine.probe import Probe
from lqn_seg.teachers.base import Teacher

UNLIKE = "unlike anything this teacher was calibrated on"
_NAMED = 16  # classes


def known_classes(names: Sequence[str], who: str = "this teacher") -> str:
    """Which classes a teacher knows, in words: whatever else is there gets one of these names too.

    Args:
        who: has them; of a CLIP, which knows as many as it is told, the run.
    """
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{who} knows {len(names)} classes and no other: {shown}"


def is_unlike(
    teacher: Teacher[Any], calibration: Calibration | None, image: Tensor, inference: str = "pad"
) -> bool:
    """Whether an image lies far outside what the teacher was calibrated on, damage apart.

    Args:
        calibration: of the teacher; without one, or with one that has not measured it, nothing is.
        image: (3, h, w) uint8; of one that needs several windows, the first.
        inference: how images meet the teacher.
    """
    if calibration is None:
        return False
    gauge = Acquaintance(calibration.to(teacher.device))
    probe = Probe(teacher, [image], inference, hook=gauge)
    return bool(gauge.unlike(probe.shown()))
