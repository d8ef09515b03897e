"""What every stage of every method costs on one device, and of APM's release.

Everything that is compared runs in turns in one process, on one image of random pixels and a
teacher of random weights: speed does not look at values. Fits include fresh weights, sampling and
the reading of the result; times are of the wall clock unless they say otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from lqn_seg.adapt.classification_methods import Adaptation
from lqn_seg.adapt.threads import fixed_threads
from lqn_seg.classification.classifier import ClassifierConfig
from lqn_seg.core.config import FitConfig, LQNConfig, preset, with_variant
from lqn_seg.core.precision import resolve_precision
from lqn_seg.engine.launch import keep_memory
from lqn_seg.engine.store import make_writable
from lqn_seg.errors import InputError, nearest
from lqn_seg.lab.benchmark.classification import adaptations, time_classifiers
from lqn_seg.lab.benchmark.references import ApmReference, Run, drifts, with_fit
from lqn_seg.lab.benchmark.teachers import build_scene
from lqn_seg.lab.cost.flops import fit_bytes, fit_gmacs, parameter_count, query_gmacs
from lqn_seg.lab.cost.speed import Roofline, device_name, interleaved
from lqn_seg.lab.report.attempt import attempt
from lqn_seg.lab.report.provenance import environment, write_json
from lqn_seg.teachers.clip import ClipTeacher

VARIANTS = ("lqn", "lqn-src", "apm", "default")
BASELINES = ("zero", "mta", "tps", "tpt")
_GMACS = {"fit": fit_gmacs, "query": query_gmacs}


@dataclass(frozen=True)
class BenchmarkConfig:
    teacher: str = "clip-b16"  # this and the next two: see `build_scene`
    image_size: int = 0
    classes: int = 0
    preset: str = "paper"  # of the variants, but for "default", which is a recipe itself
    variants: tuple[str, ...] = VARIANTS
    precisions: tuple[str, ...] = ("auto", "float32")  # the first is the teacher's too
    device: str = "cpu"
    threads: int = 1  # on a CPU
    repeats: int = 3  # turns of everything that is compared
    steps: int = 0  # of Adam, instead of the preset's
    references: bool = True  # APM's release beside the variants
    baselines: tuple[str, ...] = ()  # of `BASELINES`, with a CLIP teacher
    views: int = 64  # that they look at

    def __post_init__(self) -> None:
        for name in self.variants:
            nearest(name, VARIANTS, "variant")
        for name in self.baselines:
            nearest(name, BASELINES, "baseline")
        for name in self.precisions:
            FitConfig(precision=name)  # type: ignore[arg-type]  # which students must have too
        if not self.precisions or self.repeats < 1:
            raise InputError("a benchmark needs a precision, and repeats of at least 1")
        if self.baselines and not self.teacher.startswith("clip"):
            raise InputError(f"the baselines need a clip teacher, not {self.teacher}")


class Benchmark:
    """One run: a teacher, a device, and what is measured on them. `say` is told as it goes."""

    def __init__(self, config: BenchmarkConfig, say: Callable[[str], None] = print) -> None:
        self.config, self.say = config, say
        self.results: dict[str, Any] = {}  # so far; empty until the teacher has been timed
        self.device = torch.device(config.device)
        resolved = (resolve_precision(name, self.device) for name in config.precisions)
        self.precisions = tuple(dict.fromkeys(resolved))
        size = config.image_size, config.classes
        self.scene = build_scene(config.teacher, *size, self.precisions[0], self.device)

    def run(self) -> dict[str, Any]:
        """Everything that was asked for, as it is written to ``benchmark.json``."""
        keep_memory()
        with fixed_threads(self.config.threads):
            self.roofline = Roofline.measure(self.device, self.precisions)
            results: dict[str, Any] = {
                "environment": machine(self.config.threads, self.device),
                "settings": asdict(self.config),
                "teacher": self._teacher(),
                "methods": [],
                "references": [],
                "baselines": [],
            }
            self.results = results
            try:
                for variant in self.config.variants:
                    self._variant(variant)
                if self.config.baselines:
                    results["baselines"] = self._baselines()
                again = Roofline.measure(self.device, self.precisions)
                self.roofline = self.roofline.best(again)
            finally:
                self._hold_against_roofline()
        return results

    def _hold_against_roofline(self) -> None:
        """What everything would take at the device's best, and the part of it that was reached."""
        self.results["roofline"] = asdict(self.roofline)
        teacher = self.results["teacher"]
        peak = self.roofline.gmacs_per_ms[teacher["precision"]]
        teacher["fraction"] = {
            stage: teacher["gmacs"][stage] / peak / timing["median_ms"]
            for stage, timing in teacher["times"].items()
        }
        for row in self.results["methods"]:
            work = row["precision"], row["gmacs"]["fit"], row["bytes"]
            arithmetic, memory = self.roofline.least_ms(*work)
            row["least_ms"] = {"arithmetic": arithmetic, "memory": memory}
            row["fraction_busy"] = (arithmetic + memory) / row["times"]["fit"]["busy_ms"]

    def _teacher(self) -> dict[str, Any]:
        scene, teacher = self.scene, self.scene.teacher
        stages = {"teacher": scene.encode, "head": scene.answer}
        times = interleaved(stages, self.config.repeats, self.device)
        return {
            "name": scene.name,
            "precision": teacher.precision,
            "image_size": teacher.image_size,
            "grid": scene.grid,
            "width": teacher.width,
            "parameters": sum(p.numel() for p in teacher.model.parameters()),
            "times": {stage: asdict(timing) for stage, timing in times.items()},
            "gmacs": scene.gmacs,
        }

    # ---- students, beside APM's release ----------------------------------------------------------

    def recipe(self, variant: str, precision: str) -> LQNConfig:
        """The student and fit of a variant; alignment is timed with the baselines."""
        recipe, is_default = self.config.preset, variant == "default"
        base = preset("default") if is_default else with_variant(preset(recipe), variant)
        steps = self.config.steps or base.fit.steps
        return with_fit(base, precision=precision, steps=steps)

    def _variant(self, variant: str) -> None:
        runs = {p: Run(self.scene, self.recipe(variant, p)) for p in self.precisions}
        functions: dict[str, Callable[[], Any]] = {}
        for precision, run in runs.items():
            functions |= {f"fit {precision}": run.fit, f"query {precision}": run.query}
        others = self._references(variant, runs[self.precisions[-1]].config)
        functions |= {name: reference.run for name, reference in others.items()}
        times = interleaved(functions, self.config.repeats, self.device, cold=others)
        fits = {precision: times[f"fit {precision}"] for precision in runs}
        drift = drifts(runs, self.scene.field[:, -1].float())
        for precision, run in runs.items():
            both = {stage: times[f"{stage} {precision}"] for stage in ("fit", "query")}
            row = self._method(variant, precision, run)
            row["times"] = {stage: asdict(timing) for stage, timing in both.items()}
            self.results["methods"].append({**row, "drift": drift.get(precision)})
            stages = ", ".join(f"{stage} {t.median_ms:.1f} ms" for stage, t in both.items())
            self.say(f"{variant} {precision}: {stages}")
        for name in others:
            row = {
                "method": variant,
                "reference": name,
                "times": {"fit": asdict(times[name])},
                "ratio": {p: times[name].median_ms / t.median_ms for p, t in fits.items()},
                "ratio_busy": {p: times[name].busy_ms / t.busy_ms for p, t in fits.items()},
            }
            self.results["references"].append(row)
            ratios = ", ".join(f"{faster:.2f}x {p}" for p, faster in row["ratio"].items())
            took = f"fit {times[name].median_ms:.1f} ms"
            self.say(f"{variant}, {name}: {took}; ours is faster by {ratios}")

    def _method(self, variant: str, precision: str, run: Run) -> dict[str, Any]:
        config, grid, width = run.config, run.grid, run.width
        complaint = f"the memory of {variant} {precision} could not be counted"
        return {
            "method": variant,
            "precision": precision,
            "parameters": parameter_count(config.student, width),
            "steps": config.fit.steps,
            "positions": config.fit.visited(grid),
            "gmacs": {stage: count(config, grid, width) for stage, count in _GMACS.items()},
            "peak_mib": attempt(complaint, lambda: run.peak_bytes() / 2**20, float("nan")),
            "bytes": fit_bytes(config, width, lowered=precision != "float32"),
        }

    def _references(self, variant: str, config: LQNConfig) -> dict[str, ApmReference]:
        # The release knows the paper's recipe: no guide, targets in the teacher's units.
        literal = not config.student.guide and config.fit.target_norm == "none"
        if not self.config.references or not literal or variant != "apm":
            return {}
        return {"APM's release": ApmReference(self.scene, config)}

    def _baselines(self) -> list[dict[str, Any]]:
        config, teacher = self.config, self.scene.teacher
        assert isinstance(teacher, ClipTeacher)
        methods: dict[str, Adaptation | None] = dict.fromkeys(config.baselines)
        for variant in config.variants:
            methods |= adaptations(variant, self.recipe(variant, self.precisions[0]))
        settings = ClassifierConfig(views=config.views, threads=config.threads)
        return time_classifiers(
            teacher, methods, config.classes, settings, config.repeats, self.say
        )


def machine(threads: int, device: torch.device) -> dict[str, Any]:
    """What numbers were measured on, and when."""
    return {
        **environment(threads),
        "device": device_name(device),
        "date": date.today().isoformat(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
    }


def write_numbers(results: Mapping[str, Any], folder: Path) -> Path:
    """``benchmark.json`` in a folder; an InputError where it cannot be written."""
    make_writable(folder)
    return write_json(folder / "benchmark.json", results)
