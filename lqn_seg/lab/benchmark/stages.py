"""Which stage of an evaluation the time goes to, by timing the functions that evaluation calls.

A stage's time is exclusive: what a function of another stage takes inside of it is that one's. So
the stages and "other" add up to the whole.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import torch

from lqn_seg.adapt.timing import Clock

OTHER = "other"  # what no function below takes
# Functions below `lqn_seg`, as module:name, by stage; in the order of an image's journey.
STAGES = {
    "decode": ("data.images:read_bytes", "data.labelled_images:read_labelled_image"),
    "decode truth": ("engine.evaluate:DatasetRun._read",),
    "stamp": ("data.input_hash:input_hash",),
    "corrupt": ("engine.evaluate:Condition.apply",),
    "resize, crops": (
        "segmentation.windows:layout_of",
        "segmentation.windows:PaddedWindow.crops",
        "segmentation.windows:SlidingWindows.crops",
        "adapt.views:centre_view",
        "core.random:image_key",
    ),
    "views": (
        "segmentation.views:views_of",
        "adapt.views:corner_view",
        "adapt.views:random_views",
    ),
    "denoise": ("adapt.denoise:remove_noise",),
    "teacher": (
        "adapt.journey:Images.inputs",
        "teachers.base:Teacher.encode",
        "teachers.base:Teacher.embed",
    ),
    "align": ("core.alignment:Aligner.__call__",),
    "fit": ("adapt.lqn:LQN.mixing_weight", "adapt.lqn:LQN.fit"),
    "query": ("core.lqn:FittedStudents.query_layer", "adapt.journey:mix"),
    "head": (
        "teachers.eomt_head:EomtHead.__call__",
        "teachers.linear_head:LinearHead.__call__",
        "classification.pooling:image_features",
        "adapt.baselines.zero_shot:class_probabilities",
    ),
    "join views": (
        "segmentation.views:join",
        "segmentation.bilateral:upsample",
        "adapt.baselines.zero_shot:mean_direction",
    ),
    "statistics": (
        "segmentation.segmenter:window_stats",
        "classification.classifier:_readings",
    ),
    "post-processing": ("segmentation.segmenter:Segmenter._finish",),
    "metrics": ("engine.evaluate:DatasetRun._line",),
    "mask hash": ("segmentation.postprocess:mask_hash",),
    "write": ("engine.store:ResultStore.append",),
}


class StageClock:
    """Milliseconds by stage, of one thread; a GPU's queue is emptied where a stage begins or ends.

    Attributes:
        ms: of the wall clock.
        busy_ms: processor time of all threads.
        calls: of each stage's functions.
    """

    def __init__(self, device: torch.device) -> None:
        self.clock, self.busy = Clock(device), time.process_time()
        self.ms, self.busy_ms = ({**dict.fromkeys(STAGES, 0.0), OTHER: 0.0} for _ in range(2))
        self.calls = dict.fromkeys(self.ms, 0)
        self.running = [OTHER]

    def lap(self) -> None:
        """Give the time since the last lap to the stage that is running."""
        stage, before = self.running[-1], self.busy
        self.busy = time.process_time()
        self.ms[stage] += self.clock.lap()
        self.busy_ms[stage] += 1e3 * (self.busy - before)

    @contextmanager
    def within(self, stage: str) -> Iterator[None]:
        self.lap()
        self.running.append(stage)
        self.calls[stage] += 1
        try:
            yield
        finally:
            self.lap()
            self.running.pop()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time being the stage's."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.within(stage):
                return function(*arguments, **options)

        return call


@contextmanager
def stages_timed(device: torch.device) -> Iterator[StageClock]:
    """Time the functions of `STAGES` from here on, wherever they were imported to."""
    places = [
        (stage, *place) for stage, names in STAGES.items() for name in names for place in _of(name)
    ]
    clock = StageClock(device)
    with ExitStack() as stack:
        for stage, owner, name, function in places:
            stack.callback(setattr, owner, name, function)
            setattr(owner, name, clock.timed(stage, function))
        clock.lap()
        clock.ms[OTHER] = clock.busy_ms[OTHER] = 0.0  # the patching
        yield clock
        clock.lap()


def _of(where: str) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Every (owner, name, function) under which callers find a method or a function."""
    module, _, path = where.partition(":")
    owner: Any = import_module(f"lqn_seg.{module}")
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    function = vars(owner)[name]
    if classes:
        return [(owner, name, function)]
    ours = [m for key, m in list(sys.modules.items()) if key.startswith("lqn_seg.") and m]
    return [
        (module, key, function)
        for module in ours
        for key, value in list(vars(module).items())
        if value is function
    ]
