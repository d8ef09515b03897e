"""What every stage of every method costs on one device, against plain ways of doing the same.

Everything that is compared runs in turns in one process, on one image of random pixels and a
teacher of random weights: speed does not look at values. Fits include fresh weights, sampling and
the reading of the result; times are of the wall clock unless they say otherwise.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import torch
from torch import Tensor

from lqn_seg.adapt.calibration import calibrate
from lqn_seg.adapt.classification_methods import Adaptation, usual_views
from lqn_seg.adapt.threads import fixed_threads
from lqn_seg.classification.classifier import Classifier, ClassifierConfig
from lqn_seg.core.alignment import Calibration
from lqn_seg.core.config import LQNConfig, preset, with_variant
from lqn_seg.core.fit import visited_positions
from lqn_seg.core.kernel import share
from lqn_seg.core.precision import resolve_precision
from lqn_seg.core.student import parameter_count
from lqn_seg.engine.launch import keep_memory
from lqn_seg.engine.store import make_writable, write_atomically
from lqn_seg.errors import InputError
from lqn_seg.lab.benchmark.teachers import build_subject
from lqn_seg.lab.benchmark.ways import ApmsWay, PlainWay, Run, Scene
from lqn_seg.lab.cost.flops import fit_bytes, fit_gmacs, readout_gmacs
from lqn_seg.lab.cost.speed import (
    Roofline,
    Timing,
    device_name,
    exponent,
    interleaved,
    layer_times,
    query_times,
)
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.provenance import environment, json_numbers
from lqn_seg.teachers.clip import ClipTeacher

VARIANTS = ("lqn", "lqn-src", "apm", "default")
BASELINES = ("zero", "mta", "tps", "tpt")
_CALIBRATION_IMAGES = 4
_BATCHES = (1, 2, 4)
_DOUBLINGS = (0.5, 1, 2)
_SWEEP_STEPS = 4  # enough: a step costs what another does


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure.

    Attributes:
        teacher, image_size, classes: see `build_subject`.
        preset: recipe of the variants, but for "default", which is a recipe itself.
        variants: of `VARIANTS`.
        precisions: of the students; the first is the teacher's too, and the sweeps'.
        device: where.
        threads: of this process, on a CPU.
        repeats: turns of everything that is compared.
        steps: Adam steps instead of the preset's; 0 for those.
        references: the plain port, and APM's way, beside the variants.
        baselines: methods of `BASELINES`, with a CLIP teacher.
        views: that they look at.
        sweep: cost against positions, steps, batch, image side and layer.
    """

    teacher: str = "clip-b16"
    image_size: int = 0
    classes: int = 0
    preset: str = "paper"
    variants: tuple[str, ...] = VARIANTS
    precisions: tuple[str, ...] = ("auto", "float32")
    device: str = "cpu"
    threads: int = 1
    repeats: int = 3
    steps: int = 0
    references: bool = True
    baselines: tuple[str, ...] = ()
    views: int = 64
    sweep: bool = True

    def __post_init__(self) -> None:
        for name in self.variants:
            if name not in VARIANTS:
                raise InputError(f"unknown variant {name!r}: choices are {', '.join(VARIANTS)}")
        for name in self.baselines:
            if name not in BASELINES:
                raise InputError(f"unknown baseline {name!r}: choices are {', '.join(BASELINES)}")
        if not self.precisions or self.repeats < 1:
            raise InputError("a benchmark needs a precision, and repeats of at least 1")
        if self.baselines and not self.teacher.startswith("clip"):
            raise InputError(f"the baselines need a clip teacher, not {self.teacher}")


class Benchmark:
    """One run: a teacher, a device, and what is measured on them.

    Args:
        config: what to measure.
        reference: the plain port, `tests/core/reference.py`; None where it is not wanted.
        say: is told what has been measured.

    Attributes:
        results: all of it so far, as `run` returns it; empty until the teacher has been timed.
    """

    def __init__(
        self,
        config: BenchmarkConfig,
        reference: ModuleType | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.config, self.reference, self.say = config, reference, say
        self.results: dict[str, Any] = {}
        self.device = torch.device(config.device)
        resolved = (resolve_precision(name, self.device) for name in config.precisions)
        self.precisions = tuple(dict.fromkeys(resolved))
        self.scene = self._scene(config.image_size)

    def _scene(self, image_size: int) -> Scene:
        """The teacher at an image side (0: its own), and an image of random pixels."""
        config, precision = self.config, self.precisions[0]
        subject = build_subject(config.teacher, image_size, config.classes, precision, self.device)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(1, 3, *subject.teacher.image_size, generator=generator)
        return Scene.of(subject, pixels)

    def run(self) -> dict[str, Any]:
        """Everything that was asked for, as it is written to ``benchmark.json``."""
        keep_memory()
        with fixed_threads(self.config.threads):
            self.roofline = Roofline.measure(self.device, self.precisions)
            results: dict[str, Any] = {
                "environment": self._environment(),
                "settings": asdict(self.config),
                "teacher": self._teacher(),
                "methods": [],
                "references": [],
                "baselines": [],
                "sweeps": {},
            }
            self.results = results
            self._hold_against_roofline()
            for variant in self.config.variants:
                methods, references = self._variant(variant)
                results["methods"] += methods
                results["references"] += references
                self._hold_against_roofline()
            if self.config.baselines:
                results["baselines"] = self._baselines()
            if self.config.sweep:
                sweeps, depth = self._sweeps(), self._depth()
                results |= {"sweeps": sweeps, "depth": depth}
            again = Roofline.measure(self.device, self.precisions)
            self.roofline = self.roofline.best(again)
            self._hold_against_roofline()
        return results

    def _hold_against_roofline(self) -> None:
        """What everything measured so far would take at the device's best, and the part of it that
        was reached."""
        teacher = self.results["teacher"]
        peak = self.roofline.gmacs_per_ms[teacher["precision"]]
        teacher["fraction"] = {
            stage: teacher["gmacs"][stage] / peak / timing["median_ms"]
            for stage, timing in teacher["times"].items()
        }
        for row in self.results["methods"]:
            arithmetic, memory = self.roofline.least_ms(
                row["precision"], row["gmacs"]["fit"], row["bytes"]
            )
            row["least_ms"] = {"arithmetic": arithmetic, "memory": memory}
            fit = row["times"]["fit"]
            row["fraction"] = (arithmetic + memory) / fit["median_ms"]
            row["fraction_busy"] = (arithmetic + memory) / fit["busy_ms"]
        self.results["roofline"] = asdict(self.roofline)

    def _environment(self) -> dict[str, Any]:
        about: dict[str, Any] = dict(environment(self.config.threads))
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        return {
            **about,
            "device": device_name(self.device),
            "date": date.today().isoformat(),
            "load": load,
        }

    # ---- stages ----------------------------------------------------------------------------------

    def _teacher(self) -> dict[str, Any]:
        scene, subject, last = self.scene, self.scene.subject, self.scene.field[:, -1]
        times = self._interleaved(
            {
                "teacher": lambda: subject.teacher.encode(scene.inputs),
                "head": lambda: subject.answer(last, scene.context),
            }
        )
        teacher = subject.teacher
        return {
            "name": subject.name,
            "precision": subject.teacher.precision,
            "image_size": teacher.image_size,
            "grid": subject.grid,
            "width": teacher.width,
            "parameters": sum(p.numel() for p in teacher.model.parameters()),
            "times": {stage: asdict(timing) for stage, timing in times.items()},
            "gmacs": subject.gmacs,
        }

    def recipe(self, variant: str, precision: str) -> LQNConfig:
        """The student and fit of a variant. What surrounds them (restoring the teacher's
        statistics, asking the gauge) is timed with the baselines."""
        base = preset("default" if variant == "default" else self.config.preset)
        base = base if variant == "default" else with_variant(base, variant)
        changes: dict[str, Any] = {"precision": precision}
        if self.config.steps:
            changes["steps"] = self.config.steps
        return replace(base, fit=replace(base.fit, **changes))

    def _variant(self, variant: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """A variant in every precision, and the plain ways of doing the same, in turns."""
        runs = {p: Run(self.scene, self.recipe(variant, p)) for p in self.precisions}
        functions: dict[str, Callable[[], Any]] = {}
        for precision, run in runs.items():
            functions[f"fit {precision}"] = run.fit
            functions[f"readout {precision}"] = run.readout
        plain = self._plain_ways(variant, runs[self.precisions[-1]].config)
        times = self._interleaved(functions | {n: way.run for n, way in plain.items()}, cold=plain)
        methods = [
            self._method(
                variant, precision, run, times[f"fit {precision}"], times[f"readout {precision}"]
            )
            for precision, run in runs.items()
        ]
        for row, drift in zip(methods, _drifts(runs, self.scene.field[:, -1])):
            row["drift"] = drift
        references = [
            self._reference(
                variant, name, times[name], methods, way.loss_difference(runs.get("float32"))
            )
            for name, way in plain.items()
        ]
        return methods, references

    def _method(
        self, variant: str, precision: str, run: Run, fit: Timing, readout: Timing
    ) -> dict[str, Any]:
        config, grid, width = run.config, self.scene.subject.grid, self.scene.subject.teacher.width
        gmacs = {
            "fit": fit_gmacs(config, grid, width),
            "readout": readout_gmacs(config, grid, width),
        }
        row = {
            "method": variant,
            "precision": precision,
            "parameters": parameter_count(config.student, width),
            "steps": config.fit.steps,
            "positions": visited_positions(config.fit, grid),
            "times": {"fit": asdict(fit), "readout": asdict(readout)},
            "gmacs": gmacs,
            "gmacs_literal": fit_gmacs(config, grid, width, literal=True),
            "peak_mib": attempt(
                f"the memory of {variant} {precision} could not be counted",
                lambda: run.peak_bytes() / 2**20,
                float("nan"),
            ),
            "bytes": fit_bytes(config, width, lowered=precision != "float32"),
        }
        self.say(
            f"{variant} {precision}: fit {fit.median_ms:.1f} ms, readout {readout.median_ms:.1f} ms"
        )
        return row

    # ---- plain ways of doing the same ------------------------------------------------------------

    def _plain_ways(self, variant: str, config: LQNConfig) -> dict[str, PlainWay]:
        # The port knows the paper's recipe: no guide, targets in the teacher's units.
        literal = not config.student.guide and config.fit.target_norm == "none"
        if not self.config.references or self.reference is None or not literal:
            return {}
        ways = {"plain port": PlainWay(self.scene, self.reference, config)}
        if variant == "apm":
            ways["APM's release"] = ApmsWay(self.scene, self.reference, config)
        return ways

    def _reference(
        self,
        variant: str,
        name: str,
        timing: Timing,
        methods: list[dict[str, Any]],
        loss_difference: float | None,
    ) -> dict[str, Any]:
        ours = {row["precision"]: row["times"]["fit"] for row in methods}
        ratio = {p: timing.median_ms / t["median_ms"] for p, t in ours.items()}
        row = {
            "method": variant,
            "reference": name,
            "times": {"fit": asdict(timing)},
            "ratio": ratio,
            "ratio_busy": {p: timing.busy_ms / t["busy_ms"] for p, t in ours.items()},
            "loss_difference": loss_difference,
        }
        ratios = ", ".join(f"{faster:.2f}x {p}" for p, faster in ratio.items())
        self.say(f"{variant}, {name}: fit {timing.median_ms:.1f} ms; ours is faster by {ratios}")
        return row

    # ---- the test-time methods of classification -------------------------------------------------

    def _baselines(self) -> list[dict[str, Any]]:
        """Whole methods on one CLIP, views and teacher included, and `default` among them."""
        teacher = self.scene.subject.teacher
        assert isinstance(teacher, ClipTeacher)
        count = self.config.classes or len(open_clip.IMAGENET_CLASSNAMES)
        names = open_clip.IMAGENET_CLASSNAMES[:count]
        text = torch.nn.functional.normalize(torch.randn(count, teacher.joint_width), dim=-1)
        text = text.to(self.device)
        recipes: dict[str, Adaptation | None] = dict.fromkeys(self.config.baselines)
        for variant in self.config.variants:
            recipes |= self._adaptations(variant)
        calibration = self._calibration(teacher)
        image = torch.randint(256, (*teacher.image_size, 3), dtype=torch.uint8).numpy()
        found: dict[str, list[dict[str, float]]] = {name: [] for name in recipes}
        rows = []
        # One at a time: each with a teacher's pass, and views, of its own.
        classifiers = {
            name: Classifier(
                teacher,
                names,
                {"text": text},
                {name: recipe},
                ClassifierConfig(views=self.config.views, threads=self.config.threads),
                calibration,
            )
            for name, recipe in recipes.items()
        }
        for turn in range(self.config.repeats + 1):
            for name, classifier in classifiers.items():
                stats = classifier([image])[0][name].stats
                if turn or name == "tpt":  # its text tower needs no warming up, but minutes
                    found[name].append(stats)
                if turn == self.config.repeats:
                    self.say(f"{name}: {stats['teacher_ms'] + stats['method_ms']:.1f} ms")
        for name, samples in found.items():
            middle = {
                key: statistics.median(sample[key] for sample in samples)
                for key in ("views_ms", "teacher_ms", "method_ms")
            }
            rows.append({"method": name, **middle, "adapted": samples[-1].get("blend", 1.0)})
        return rows

    def _adaptations(self, variant: str) -> dict[str, Adaptation]:
        """A variant as it classifies; one that adapts to several views also by its parts."""
        recipe = self.recipe(variant, self.precisions[0])
        views = usual_views(recipe)
        found = {variant: Adaptation(recipe, views=views)}
        if views > 1:
            found[f"{variant}, one view"] = Adaptation(recipe)
            alone = with_variant(recipe, "restore")
            found[f"{variant}, no student"] = Adaptation(alone, views=views)
        return found

    def _calibration(self, teacher: ClipTeacher) -> Calibration:
        """So that nothing is skipped, one that calls for a student every time."""
        clean = torch.rand(_CALIBRATION_IMAGES, 3, *teacher.image_size).to(self.device)
        return calibrate(teacher, lambda: [clean]).alarmed()

    # ---- cost against size -----------------------------------------------------------------------

    def _sweeps(self) -> dict[str, Any]:
        """Milliseconds and GMACs against each size, with the exponent of each."""
        recipe = self.recipe(self.config.variants[0], self.precisions[0])
        few = min(_SWEEP_STEPS, recipe.fit.steps)
        recipe = replace(recipe, fit=replace(recipe.fit, steps=few))
        positions = visited_positions(recipe.fit, self.scene.subject.grid)
        halves = [max(1, round(factor * positions)) for factor in _DOUBLINGS]
        sweeps = {
            "positions": self._fits(recipe, "positions_per_step", halves),
            "steps": self._fits(recipe, "steps", [few, 2 * few, 4 * few]),
            "batch": self._fits(recipe, None, _BATCHES),
        }
        return sweeps | self._image_sizes(recipe)

    def _fits(self, recipe: LQNConfig, what: str | None, sizes: Sequence[int]) -> dict[str, Any]:
        """Fits with an option at several sizes; None is the number of students side by side."""
        runs: dict[str, Callable[[], Callable[[], Any]]] = {}
        gmacs = []
        for size in sizes:
            changes: dict[str, Any] = {what: size} if what else {}
            changed = replace(recipe, fit=replace(recipe.fit, **changes))
            runs[str(size)] = partial(_fit_of, self.scene, changed, 1 if what else size)
            subject = self.scene.subject
            one = fit_gmacs(changed, subject.grid, subject.teacher.width)
            gmacs.append(one if what else size * one)
        return self._sweep("fit", runs, gmacs)

    def _image_sizes(self, recipe: LQNConfig) -> dict[str, Any]:
        """Teacher and read-out against the teacher's image side; the fit does not know it."""
        own = self.scene.subject.teacher.image_size[0]
        short = replace(recipe, fit=replace(recipe.fit, steps=1))
        teachers: dict[str, Callable[[], Callable[[], Any]]] = {}
        readouts: dict[str, Callable[[], Callable[[], Any]]] = {}
        gmacs: dict[str, list[float]] = {"teacher": [], "readout": []}
        for factor in _DOUBLINGS:
            scene = self.scene if factor == 1 else self._scene(round(factor * own))
            side, subject = str(scene.subject.teacher.image_size[0]), scene.subject
            teachers[side] = partial(_encoding_of, scene)
            readouts[side] = partial(_readout_of, scene, short)
            gmacs["teacher"].append(subject.gmacs["teacher"])
            gmacs["readout"].append(readout_gmacs(recipe, subject.grid, subject.teacher.width))
        return {
            "image_side_teacher": self._sweep("teacher", teachers, gmacs["teacher"]),
            "image_side_readout": self._sweep("readout", readouts, gmacs["readout"]),
        }

    def _sweep(
        self, stage: str, makers: Mapping[str, Callable[[], Callable[[], Any]]], gmacs: list[float]
    ) -> dict[str, Any]:
        """One size after the other: storage for all of them at once may be more than there is."""
        times = [self._interleaved({size: make()})[size] for size, make in makers.items()]
        sizes = [float(size) for size in makers]
        ms, busy_ms = [t.median_ms for t in times], [t.busy_ms for t in times]
        return {
            "stage": stage,
            "sizes": sizes,
            "ms": ms,
            "busy_ms": busy_ms,
            "gmacs": gmacs,
            "exponent": exponent(sizes, busy_ms if self.device.type == "cpu" else ms),
            "exponent_gmacs": exponent(sizes, gmacs),
        }

    def _depth(self) -> dict[str, Any]:
        """When the teacher arrives at each layer, and how long a student takes to answer for it."""
        scene, repeats = self.scene, self.config.repeats
        config = with_variant(self.recipe("lqn", self.precisions[0]), "lqn-src")
        run = Run(scene, replace(config, fit=replace(config.fit, steps=1, layers=None)))
        depth = scene.subject.grid[0]
        encode = partial(scene.subject.teacher.encode, scene.inputs)
        return {
            "layers": list(range(1, depth + 1)),
            "teacher_ms": layer_times(encode, self.device, repeats),
            "student_ms": query_times(run.fit().query_layer, depth, self.device, repeats),
        }

    def _interleaved(
        self, functions: Mapping[str, Callable[[], Any]], cold: Mapping[str, Any] | tuple[()] = ()
    ) -> dict[str, Timing]:
        return interleaved(functions, self.config.repeats, self.device, tuple(cold))


def write_numbers(results: Mapping[str, Any], folder: Path) -> Path:
    """``benchmark.json`` in a folder.

    Raises:
        InputError: it cannot be written.
    """
    make_writable(folder)
    numbers = folder / "benchmark.json"
    write_atomically(numbers, json.dumps(json_numbers(results), indent=1) + "\n")
    return numbers


def _drifts(runs: Mapping[str, Run], tokens: Tensor) -> list[float | None]:
    """By precision, how far the last layer that a student answers with is from what the same
    student answers in float32, over the variance of the teacher's `tokens`: a part of what an
    answer's error over variance is. None where float32 was not measured."""
    if "float32" not in runs:
        return [None] * len(runs)
    exact = runs["float32"].readout()
    return [share(run.readout() - exact, tokens.float()) for run in runs.values()]


def _fit_of(scene: Scene, recipe: LQNConfig, batch: int) -> Callable[[], Any]:
    return Run(scene, recipe, batch).fit


def _encoding_of(scene: Scene) -> Callable[[], Any]:
    return partial(scene.subject.teacher.encode, scene.inputs)


def _readout_of(scene: Scene, recipe: LQNConfig) -> Callable[[], Any]:
    run = Run(scene, recipe)
    run.fit()
    return run.readout
