"""One visitor's image in a teacher, by a preset, and all that the page shows of it.

The masks of the chosen methods come first, then a student of all layers, then the predictions
after steps of the fit. Jobs share the frozen teacher and nothing else: visitors do not mix.
"""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from matplotlib import colormaps
from PIL import Image

from lqn_seg.adapt.ineffective import shown
from lqn_seg.adapt.journey import over_variance
from lqn_seg.adapt.methods import PIXEL_CONTROLS
from lqn_seg.config.methods import SEGMENTATION
from lqn_seg.config.nodes import method_config
from lqn_seg.core.config import ALIASES, CONTROLS, LQNConfig
from lqn_seg.core.lqn import FittedStudents
from lqn_seg.engine.probe import Probe, student_recipe
from lqn_seg.engine.studio import Source, Studio, stops
from lqn_seg.errors import InputError
from lqn_seg.lab.explorer.work import Piece, Work
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.costs import count_gmacs
from lqn_seg.lab.report.pictures import compare, segmentation
from lqn_seg.lab.report.provenance import json_numbers
from lqn_seg.lab.report.wording import title
from lqn_seg.segmentation.segmenter import Prediction
from lqn_seg.visualization.files import Pixels, png_bytes
from lqn_seg.visualization.palette import SEQUENTIAL, VOID_COLOR, category_color
from lqn_seg.visualization.panels import Segmentation, cell_size, legend_entries, overlay
from lqn_seg.visualization.token_maps import shared_basis, standardised

NO_LABEL = 255  # in a label PNG: no segment
# What is shown at first; the teacher is always there, for the others are compared with it.
SHOWN_FIRST = ("teacher", "restore", "apm", "lqn")
_READINGS = ("damage", "aligned", "mixing_weight")
_TIMES = ("teacher_ms", "fit_ms", "query_ms", "head_ms")
_FIDELITY = ("token_cos", "error_over_variance")
_MOST_ERROR = 2.0  # over variance, at the end of the colour scale
_FIT = 3.0  # expected time of a fit, in passes of the teacher


def offered(cfg: CfgNode) -> list[str]:
    """Methods to choose from: those of a configuration, and all that need nothing else."""
    own = [name for name in cfg.MODEL.LQN.METHODS if "=" not in name]
    return [n for n in dict.fromkeys([*SHOWN_FIRST, *SEGMENTATION, *own]) if n not in ALIASES]


class Job:
    """Works in a thread of its own; every public method may be called meanwhile, and raises
    `InputError` for what is not there yet."""

    def __init__(
        self,
        studio: Studio,
        source: Source,
        preset: str,
        turn: threading.Lock,
        methods: Sequence[str] = SHOWN_FIRST,
    ) -> None:
        self.studio, self.source, self.preset = studio, source, preset
        self.methods = list(dict.fromkeys(["teacher", *methods]))
        self.recipe = student_recipe("lqn", method_config(studio.cfg, self._full_name("lqn")))
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
        self.unlike = ""
        self.work = Work(turn, self._pieces())

    def _pieces(self) -> list[Piece]:
        steps = max(self.stops[-1], 1)
        return [
            *map(self._method_piece, self.methods),
            Piece("fitting a student to all layers", 1 + _FIT, self._fit_depth),
            *(
                Piece(f"step {k} of the fit", 1 + _FIT * k / steps, partial(self._predict_step, k))
                for k in self.stops
            ),
        ]

    def _method_piece(self, name: str) -> Piece:
        recipe = method_config(self.studio.cfg, self._full_name(name))
        weight = 1.0
        if isinstance(recipe, LQNConfig) and recipe.fit.variant not in CONTROLS:
            weight += _FIT if recipe.fit.steps else 0
        return Piece(title(name), weight, partial(self._predict, name))

    def _full_name(self, name: str) -> str:
        """A method with the job's preset, where it has a recipe and none of its own. The
        configuration's preset keeps the configuration's own changes to it."""
        plain = name in (*PIXEL_CONTROLS, "teacher") or name not in SEGMENTATION
        is_usual = self.preset == self.studio.cfg.MODEL.LQN.PRESET
        return name if plain or is_usual else f"{name}@{self.preset}"

    def add(self, name: str) -> None:
        """Predict with one more method, before all that has not begun."""
        if name not in self.methods:
            piece = self._method_piece(name)
            self.methods.append(name)
            self.work.first(piece)

    def _predict(self, name: str) -> None:
        method = method_config(self.studio.cfg, self._full_name(name))
        segmenter = self.studio.segmenter_of({name: method})
        self.warnings += segmenter.ineffective.values()
        shown(segmenter.ineffective.values())  # the page does, not the console
        if name == "teacher":
            is_unlike = self.studio.unlike(self.source)
            self.unlike = self.source.unlike if is_unlike else ""
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
            **{key: stats.get(key) for key in _FIDELITY},
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
        steps, keys = dict(self.steps), ("error_over_variance", "score", "segments")
        by_step = {key: [step[key] for step in steps.values()] for key in keys}
        numbers = {
            "done": self.work.done,
            "error": self.work.error,
            "stage": self.work.stage,
            "progress": self.work.progress,
            "eta_s": self.work.eta_s,
            "image": self.source.heading,
            "file": f"{self.source.file_name}_{self.source.condition}_{self.preset}",
            "size": self.source.pixels.shape[:2],
            "preset": self.preset,
            "known": self.studio.known,
            "unlike": self.unlike,
            "warnings": list(self.warnings),
            "metric": self.studio.metric,
            "maps": dict(self.maps),
            "legend": self.legend,
            "steps": {"wanted": self.stops, "made": list(steps), **by_step},
        }
        return json_numbers(numbers | ({"depth": depth} if (depth := self.depth_numbers) else {}))

    def segmentation(self, name: str) -> Segmentation:
        if name not in self.segmentations:
            raise InputError(f"this job has no map {name!r}, or not yet")
        return self.segmentations[name]

    @property
    def legend(self) -> list[dict[str, Any]]:
        """Name, colour and label of every class in any map, and of "no segment" where there is
        such; labels are the values in `labels_png`."""
        labels = {category.name: k for k, category in enumerate(self.studio.categories)}
        entries = legend_entries(list(self.segmentations.values()), self.studio.categories)
        return [
            {"name": name, "color": color, "label": labels.get(name, NO_LABEL)}
            for name, color in entries
        ]

    def map_png(self, name: str) -> bytes:
        """A map's colours and borders on transparent ground, to be laid over the image; those of
        small images grow, so that borders stay thin."""
        height, width = self.source.pixels.shape[:2]
        size = max((height, width), cell_size(height, width))
        on_black, on_white = (
            overlay(ground, self.segmentation(name), self.studio.categories, size, 1.0)
            for ground in (np.full((height, width, 3), v, np.uint8) for v in (0, 255))
        )
        alpha = 255 - (on_white - on_black)[..., :1]
        colors = 255.0 * on_black / np.maximum(alpha, 1)
        return png_bytes(np.concatenate([colors.round().astype(np.uint8), alpha], -1))

    def labels_png(self, name: str) -> bytes:
        """The class of every pixel, as the value in a PNG whose palette has the classes' colours;
        `NO_LABEL` is no segment. An `InputError` where there are more classes than a PNG holds."""
        ids, segments = self.segmentation(name)
        categories = self.studio.categories
        if len(categories) > NO_LABEL:
            raise InputError(f"a label PNG holds {NO_LABEL} classes, not {len(categories)}")
        classes = {int(segment["id"]): int(segment["category_id"]) for segment in segments}
        unique, inverse = np.unique(ids, return_inverse=True)
        values = np.array([classes.get(int(i), NO_LABEL) for i in unique], np.uint8)
        picture = Image.fromarray(values[inverse.reshape(ids.shape)])
        colors = [category_color(category, k) for k, category in enumerate(categories)]
        colors += [VOID_COLOR] * (NO_LABEL + 1 - len(colors))
        picture.putpalette(np.array(colors, np.uint8).tobytes())
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()

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
        made, names = dict(self.predictions), list(self.methods)
        if not made.keys() >= set(names):
            raise InputError("the masks are not ready yet")
        predictions = {name: made[name] for name in names}
        return png_bytes(compare(self.studio, [self.source], [predictions], [bool(self.unlike)]))
