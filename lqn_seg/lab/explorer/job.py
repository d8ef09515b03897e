"""One visitor's image in a teacher, by a preset, and all that the page shows of it.

The masks of teacher, APM and LQN come first, then a student of all layers, then the predictions
after steps of the fit. Jobs share the frozen teacher and nothing else: visitors do not mix.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from matplotlib import colormaps

from lqn_seg.adapt.ineffective import shown
from lqn_seg.adapt.journey import over_variance
from lqn_seg.config.nodes import method_config
from lqn_seg.core.lqn import FittedStudents
from lqn_seg.engine.probe import Probe, student_recipe
from lqn_seg.engine.studio import Source, Studio, stops
from lqn_seg.errors import InputError
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.costs import count_gmacs
from lqn_seg.lab.report.pictures import compare, segmentation
from lqn_seg.lab.report.provenance import json_numbers
from lqn_seg.lab.report.wording import title
from lqn_seg.segmentation.segmenter import Prediction
from lqn_seg.visualization.files import Pixels, png_bytes
from lqn_seg.visualization.palette import SEQUENTIAL, category_color
from lqn_seg.visualization.panels import Segmentation, cell_size, overlay
from lqn_seg.visualization.token_maps import shared_basis, standardised

VARIANTS = ("teacher", "apm", "lqn")
_READINGS = ("damage", "aligned", "mixing_weight")
_TIMES = ("teacher_ms", "fit_ms", "query_ms", "head_ms")
_MOST_ERROR = 2.0  # over variance, at the end of the colour scale


class Job:
    """Runs in a thread of its own, and works while it holds the lock `turn`; every public method
    may be called while it does, and raises `InputError` for what is not there yet."""

    def __init__(self, studio: Studio, source: Source, preset: str, turn: threading.Lock) -> None:
        self.studio, self.source, self.preset, self.turn = studio, source, preset, turn
        self.methods = {v: v if v == "teacher" else f"{v}@{preset}" for v in VARIANTS}
        if preset == studio.cfg.MODEL.LQN.PRESET:  # with the configuration's own changes to it
            self.methods = {v: v for v in VARIANTS}
        self.recipe = student_recipe("lqn", method_config(studio.cfg, self.methods["lqn"]))
        self.stops = stops(self.recipe.fit.steps)
        self.predictions: dict[str, Prediction] = {}
        self.segmentations: dict[str, Segmentation] = {}  # of methods, "truth" and "step-K"
        self.maps: dict[str, dict[str, Any]] = {}  # what `status` says of methods and truth
        self.steps: dict[int, dict[str, Any]] = {}  # and of the predictions after steps
        if truth := studio.truth(source):
            self.segmentations["truth"] = truth
            self.maps["truth"] = {"title": "ground truth", "segments": self._segments(truth)}
        self.depth: tuple[Probe, FittedStudents, Callable[..., Pixels]] | None = None
        self.depth_numbers: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.error, self.unlike, self.cancelled = "", False, False
        self.stage, self.made, self.started = "waiting for its turn", 0, time.monotonic()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            for name in VARIANTS:
                self._piece(title(name), self._predict, name)
            self._piece("a student of all layers", self._fit_depth)
            for steps in self.stops:
                self._piece(f"step {steps} of the fit", self._predict_step, steps)
        except InputError as error:
            self.error = str(error)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.stage = ""

    def _piece(self, stage: str, work: Callable[..., None], *arguments: Any) -> None:
        with self.turn:
            if not self.cancelled:
                self.stage = stage
                work(*arguments)
        self.made += 1

    def _predict(self, name: str) -> None:
        method = method_config(self.studio.cfg, self.methods[name])
        segmenter = self.studio.segmenter_of({name: method})
        self.warnings += segmenter.ineffective.values()
        shown(segmenter.ineffective.values())  # the page does, not the console
        if name == "teacher":
            self.unlike = self.studio.unlike(self.source)
        prediction = segmenter([self.source.tensor])[0][name]
        stats, drawn = prediction.stats, segmentation(prediction.output)
        count = partial(count_gmacs, segmenter, name, stats)
        uncounted: dict[str, float] = {}
        self.segmentations[name] = drawn
        self.maps[name] = {
            "title": title(name),
            "segments": self._segments(drawn),
            "score": self.studio.score(self.source, prediction),
            "alignment": {key: stats[key] for key in _READINGS if key in stats},
            "milliseconds": {key: stats[key] for key in _TIMES},
            "gmacs": attempt(f"the cost of {title(name)} could not be counted", count, uncounted),
            "token_cos": stats["token_cos"],
            "error_over_variance": stats["error_over_variance"],
        }
        self.predictions[name] = prediction

    def _fit_depth(self) -> None:
        probe = self.studio.probe(self.source)
        students = probe.fit(self.recipe)
        teacher = [probe.visible(probe.at(layer)) for layer in range(1, probe.depth + 1)]
        basis = shared_basis([standardised(tokens, tokens) for tokens in teacher])
        self.depth = probe, students, basis
        numbers = {"layers": probe.depth, "fit_ms": probe.fit_ms}
        self.depth_numbers = {**numbers, "error_over_variance": probe.errors(students)}

    def _predict_step(self, steps: int) -> None:
        prediction = self.studio.predict_after(self.source.tensor, self.recipe, steps)
        self.segmentations[f"step-{steps}"] = drawn = segmentation(prediction.output)
        self.steps[steps] = {
            "error_over_variance": prediction.stats["error_over_variance"],
            "score": self.studio.score(self.source, prediction),
            "segments": self._segments(drawn),
        }

    def _segments(self, drawn: Segmentation) -> list[dict[str, Any]]:
        segments = []
        for segment in drawn.segments:
            k = segment["category_id"]
            category = self.studio.categories[k]
            color = category_color(category, k)
            segments.append({"id": int(segment["id"]), "name": category.name, "color": color})
        return segments

    # ---- what the page asks for ------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """How far the job is, and all numbers that are there."""
        done, total = not self.stage, len(VARIANTS) + 1 + len(self.stops)
        left_s = (time.monotonic() - self.started) * (total / max(self.made, 1) - 1)
        steps, keys = dict(self.steps), ("error_over_variance", "score", "segments")
        by_step = {key: [step[key] for step in steps.values()] for key in keys}
        numbers = {
            "done": done,
            "error": self.error,
            "stage": self.stage,
            "progress": 1.0 if done else self.made / total,
            "eta_s": left_s if self.made and not done else None,
            "image": self.source.heading,
            "file": f"{self.source.file_name}_{self.source.condition}_{self.preset}",
            "size": self.source.pixels.shape[:2],
            "preset": self.preset,
            "known": self.studio.known,
            "unlike": self.unlike,
            "warnings": list(self.warnings),
            "metric": self.studio.metric,
            "maps": dict(self.maps),
            "steps": {"wanted": self.stops, "made": list(steps), **by_step},
        }
        return json_numbers(numbers | ({"depth": depth} if (depth := self.depth_numbers) else {}))

    def segmentation(self, name: str) -> Segmentation:
        if name not in self.segmentations:
            raise InputError(f"this job has no map {name!r}, or not yet")
        return self.segmentations[name]

    def map_png(self, name: str) -> bytes:
        """A map over the image; small images grow, so that borders stay thin."""
        pixels, drawn = self.source.pixels, self.segmentation(name)
        size = max(pixels.shape[:2], cell_size(*pixels.shape[:2]))
        return png_bytes(overlay(pixels, drawn, self.studio.categories, size))

    def map_ids(self, name: str) -> bytes:
        """Segment ids of a map, row by row, little-endian 32-bit."""
        return self.segmentation(name).ids.astype("<i4").tobytes()

    def layer(self, text: str) -> dict[str, Any]:
        """Token maps at a depth, fractions included, and the error between them.

        Between two layers there is no teacher; what is linear between them stands in for it.
        """
        if self.depth is None:
            raise InputError("the student of all layers is not fitted yet")
        try:
            layer = float(text)
        except ValueError:
            raise InputError("the layer must be a number") from None
        probe, students, basis = self.depth
        teacher, student = probe.at(layer), students.query_layer(layer)
        seen, ours = probe.visible(teacher), probe.visible(student)
        expected, predicted = standardised(seen, seen), standardised(ours, seen)
        errors = np.square(predicted - expected).mean(-1) / _MOST_ERROR
        colors = (255 * colormaps[SEQUENTIAL](errors.clip(0, 1))[..., :3]).round().astype(np.uint8)
        pictures = {"teacher": basis(expected), "student": basis(predicted), "error": colors}
        encoded = {name: base64.b64encode(png_bytes(p)).decode() for name, p in pictures.items()}
        return {
            "layer": layer,
            "between": layer != int(layer),
            "error_over_variance": over_variance(student - teacher, teacher),
            "token_cos": F.cosine_similarity(student, teacher, dim=-1).mean().item(),
            "most": _MOST_ERROR,
            **{name: f"data:image/png;base64,{content}" for name, content in encoded.items()},
        }

    def panel_png(self) -> bytes:
        """The methods side by side, as `lqn-seg figures panels` draws them."""
        predictions = dict(self.predictions)
        if len(predictions) < len(VARIANTS):
            raise InputError("the masks are not ready yet")
        return png_bytes(compare(self.studio, [self.source], [predictions], [self.unlike]))
