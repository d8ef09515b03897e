"""One visitor's question: an image under a condition, in a teacher, by a preset; and its answers.

Answers come in stages, each ready to be shown when it is done: the masks of teacher, APM and LQN,
then a student of all layers, then the predictions after steps of the fit. Everything of a job is
its own except the frozen teacher, so visitors do not mix.
"""

from __future__ import annotations

import base64
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from matplotlib import colormaps
from numpy.typing import NDArray

from lqn_seg.adapt.ineffective import shown
from lqn_seg.config.nodes import method_config
from lqn_seg.core.config import LQNConfig
from lqn_seg.core.fit import FittedStudents
from lqn_seg.engine.probe import Probe, Source, share, student_method
from lqn_seg.errors import InputError
from lqn_seg.lab.inspect.visualize import Studio, after, compare, steps_of, stops
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.costs import count_gmacs
from lqn_seg.lab.report.pictures import segmentation
from lqn_seg.lab.report.provenance import json_numbers
from lqn_seg.lab.report.wording import title
from lqn_seg.segmentation.segmenter import Prediction
from lqn_seg.visualization.figures import png_bytes
from lqn_seg.visualization.palette import SEQUENTIAL, category_color
from lqn_seg.visualization.panels import Segmentation, cell_size, overlay
from lqn_seg.visualization.token_maps import (
    ColorBasis,
    position_error,
    shared_basis,
    standardised,
)

TRUTH = "truth"
VARIANTS = ("teacher", "apm", "lqn")
_READINGS = ("damage", "restored", "blend")
_TIMES = ("teacher_ms", "fit_ms", "readout_ms", "head_ms")


@dataclass
class Depth:
    """A student of all layers beside its teacher."""

    probe: Probe
    students: FittedStudents
    basis: ColorBasis
    errors: list[float]


class Job:
    """Runs in a thread of its own; every public method may be called while it does.

    Args:
        studio: of the teacher.
        source: the image, damaged already.
        preset: recipe of APM and LQN.
        turn: lock that one job's piece of work holds at a time.
    """

    def __init__(self, studio: Studio, source: Source, preset: str, turn: threading.Lock) -> None:
        self.studio, self.source, self.preset, self._turn = studio, source, preset, turn
        self.methods = {v: v if v == "teacher" else f"{v}@{preset}" for v in VARIANTS}
        if preset == studio.cfg.MODEL.LQN.PRESET:  # with the configuration's own changes to it
            self.methods = {v: v for v in VARIANTS}
        self.recipe = steps_of(studio, self.methods["lqn"])
        self.stops = stops(self.recipe.fit.steps)
        self.predictions: dict[str, Prediction] = {}
        self.gmacs: dict[str, dict[str, float]] = {}
        self.steps: dict[int, Prediction] = {}
        self.truth = studio.truth(source)
        self.unlike = False
        self.warnings: list[str] = []
        # What `status` says of each: it is asked often, and a score takes longer than a fit's step.
        self._numbers: dict[str, dict[str, Any]] = {}
        self._step_numbers: dict[int, dict[str, Any]] = {}
        self.depth: Depth | None = None
        self.error = ""
        self.cancelled = False
        self._stage, self._made, self._started = "waiting for its turn", 0, time.monotonic()
        self._total = len(VARIANTS) + 1 + len(self.stops)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin; `status` says how far it is."""
        self.thread.start()

    def _run(self) -> None:
        try:
            for name, method in self.methods.items():
                self._piece(title(name), partial(self._predict, name, method))
            self._piece("a student of all layers", self._fit_depth)
            for steps in self.stops:
                self._piece(f"step {steps} of the fit", partial(self._predict_step, steps))
        except InputError as error:
            self.error = str(error)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._stage = ""

    def _piece(self, stage: str, work: Callable[[], None]) -> None:
        with self._turn:
            if not self.cancelled:
                self._stage = stage
                work()
        self._made += 1

    def _predict(self, name: str, method: str) -> None:
        segmenter = self.studio.segmenter_of({name: method_config(self.studio.cfg, method)})
        self.warnings += segmenter.ineffective.values()
        shown(segmenter.ineffective.values())  # the page does, not the console
        if name == "teacher":
            self.unlike = self.studio.unlike(self.source)
        (found,) = segmenter([self.source.tensor])
        self.gmacs[name] = attempt(
            f"the cost of {title(name)} could not be counted",
            partial(count_gmacs, segmenter, name, found[name].stats),
            {},
        )
        self._numbers[name] = self._described(name, found[name])
        self.predictions[name] = found[name]

    def _fit_depth(self) -> None:
        recipe: LQNConfig = student_method(self.methods["lqn"], self.recipe)
        probe = self.studio.probe(self.source)
        students = probe.fit(recipe)
        layers = range(1, probe.depth + 1)
        teacher = [probe.visible(probe.at(layer)) for layer in layers]
        basis = shared_basis([standardised(tokens, tokens) for tokens in teacher])
        self.depth = Depth(probe, students, basis, probe.errors(students))

    def _predict_step(self, steps: int) -> None:
        found = after(self.studio, self.source.tensor, self.recipe, steps)
        self._step_numbers[steps] = {
            "error_over_variance": found.stats["error_over_variance"],
            "score": self.studio.score(self.source, found),
            "segments": self._segments(segmentation(found.output)),
        }
        self.steps[steps] = found

    # ---- what the page asks for ------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """How far the job is, and all numbers that are there."""
        done, made = not self._stage, self._made
        elapsed = time.monotonic() - self._started
        eta = elapsed * (self._total - made) / made if made and not done else None
        height, width = self.source.pixels.shape[:2]
        known: dict[str, Any] = {
            "done": done,
            "error": self.error,
            "stage": self._stage,
            "progress": 1.0 if done else made / self._total,
            "eta_s": eta,
            "image": self.source.heading,
            "file": f"{self.source.file_name}_{self.source.condition}_{self.preset}",
            "size": [height, width],
            "preset": self.preset,
            "known": self.studio.known,
            "unlike": self.unlike,
            "warnings": list(self.warnings),
            "metric": self.studio.metric,
            "maps": self._maps(),
            "steps": self._steps(),
        }
        if self.depth is not None:
            known["depth"] = {
                "layers": self.depth.probe.depth,
                "fit_ms": self.depth.students.fit_ms,
                "error_over_variance": self.depth.errors,
            }
        return json_numbers(known)

    def _maps(self) -> dict[str, Any]:
        maps = {name: self._numbers[name] for name in list(self.predictions)}
        if self.truth is not None:
            maps[TRUTH] = {"title": "ground truth", "segments": self._segments(self.truth)}
        return maps

    def _described(self, name: str, prediction: Prediction) -> dict[str, Any]:
        stats = prediction.stats
        return {
            "title": title(name),
            "segments": self._segments(segmentation(prediction.output)),
            "score": self.studio.score(self.source, prediction),
            "gauge": {key: stats[key] for key in _READINGS if key in stats},
            "milliseconds": {key: stats[key] for key in _TIMES},
            "gmacs": self.gmacs[name],
            "token_cos": stats["token_cos"],
            "error_over_variance": stats["error_over_variance"],
        }

    def _segments(self, found: Segmentation) -> list[dict[str, Any]]:
        categories = self.studio.categories
        return [
            {
                "id": int(segment["id"]),
                "name": categories[segment["category_id"]].name,
                "color": category_color(categories[segment["category_id"]], segment["category_id"]),
            }
            for segment in found.segments
        ]

    def _steps(self) -> dict[str, Any]:
        made = sorted(self.steps)
        keys = ("error_over_variance", "score", "segments")
        found = {key: [self._step_numbers[step][key] for step in made] for key in keys}
        return {"wanted": self.stops, "made": made, **found}

    def segmentation(self, name: str) -> Segmentation:
        """A map by name: a method's, ``truth``, or ``step-K``.

        Raises:
            InputError: there is none (yet).
        """
        if name == TRUTH and self.truth is not None:
            return self.truth
        if name in self.predictions:
            return segmentation(self.predictions[name].output)
        kind, _, number = name.partition("-")
        if kind == "step" and number.isdigit() and int(number) in self.steps:
            return segmentation(self.steps[int(number)].output)
        raise InputError(f"this job has no map {name!r}, or not yet")

    def image_png(self) -> bytes:
        """The image as the teacher got it."""
        return png_bytes(self.source.pixels)

    def map_png(self, name: str) -> bytes:
        """A map over the image; small images grow, so that borders stay thin."""
        found, pixels = self.segmentation(name), self.source.pixels
        size = pixels.shape[:2]
        size = max(size, cell_size(*size))
        return png_bytes(overlay(pixels, *found, self.studio.categories, size=size))

    def map_ids(self, name: str) -> bytes:
        """Segment ids of a map, row by row, little-endian 32-bit."""
        return self.segmentation(name).ids.astype("<i4").tobytes()

    def layer(self, layer: float) -> dict[str, Any]:
        """Token maps at a depth, fractions included, and the error between them.

        Between two layers there is no teacher; what is linear between them stands in for it.

        Raises:
            InputError: the layer is outside the teacher, or the student is not fitted yet.
        """
        found = self.depth
        if found is None:
            raise InputError("the student of all layers is not fitted yet")
        if not math.isfinite(layer):
            raise InputError("the layer must be a number")
        teacher, student = found.probe.at(layer), found.students.query_layer(layer)
        own, answer = found.probe.visible(teacher), found.probe.visible(student)
        error = position_error(answer, own)
        return {
            "layer": layer,
            "between": layer != int(layer),
            "error_over_variance": share(student - teacher, teacher),
            "token_cos": F.cosine_similarity(student, teacher, dim=-1).mean().item(),
            "most": 2.0,
            "teacher": _data_url(found.basis(standardised(own, own))),
            "student": _data_url(found.basis(standardised(answer, own))),
            "error": _data_url(_colored(error / 2.0)),
        }

    def panel_png(self) -> bytes:
        """The methods side by side, as `tools/visualize.py panels` draws them.

        Raises:
            InputError: the masks are not there yet.
        """
        predictions: Mapping[str, Prediction] = dict(self.predictions)
        if len(predictions) < len(VARIANTS):
            raise InputError("the masks are not ready yet")
        return png_bytes(compare(self.studio, [self.source], [dict(predictions)], [self.unlike]))


def _colored(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return (255 * colormaps[SEQUENTIAL](np.clip(values, 0, 1))[..., :3]).round().astype(np.uint8)


def _data_url(image: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
