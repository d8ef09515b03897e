"""The figures of `lqn-seg figures`: each runs what it needs and yields the files it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lqn_seg.adapt.journey import Images, centred, over_variance
from lqn_seg.adapt.noise import noise_fraction
from lqn_seg.config.nodes import method_config
from lqn_seg.core.alignment import Calibration
from lqn_seg.core.config import LQNConfig
from lqn_seg.data.corruptions import CORRUPTIONS
from lqn_seg.data.file_names import file_name
from lqn_seg.engine.evaluate import CLEAN, Condition
from lqn_seg.engine.probe import UNLIKE, Probe
from lqn_seg.engine.studio import Source, Studio, stops
from lqn_seg.errors import InputError
from lqn_seg.lab.cost import speed
from lqn_seg.lab.report.pictures import compare, segmentation
from lqn_seg.lab.report.provenance import write_json
from lqn_seg.lab.report.wording import title
from lqn_seg.segmentation.windows import layout_of
from lqn_seg.visualization import figures
from lqn_seg.visualization.curves import draw_study, draw_sweep
from lqn_seg.visualization.files import save_gif, save_picture, with_ending
from lqn_seg.visualization.panels import Cell, Row, cell_size, overlay, panel
from lqn_seg.visualization.token_maps import shared_basis, standardised

_REPEATS = 20  # of a measured time


def draw_tokens(studio: Studio, layers: Sequence[int] = ()) -> Iterator[Path]:
    """Token maps of teacher, student and their error; of no layers: six."""
    for name, recipe in studio.recipes(["lqn@distill"]).items():
        for source in studio.sources():
            probe = studio.probe(source)
            students = probe.fit(recipe)
            evenly = np.linspace(1, probe.depth, min(probe.depth, 6)).round().astype(int)
            layers = layers or evenly.tolist()
            if not all(1 <= layer <= probe.depth for layer in layers):
                raise InputError(f"--layers must be in 1..{probe.depth}, not {list(layers)}")
            teacher = [probe.visible(probe.at(layer)) for layer in layers]
            student = [probe.visible(students.query_layer(layer)) for layer in layers]
            maps = [standardised(s, t) for s, t in zip(teacher + student, teacher * 2)]
            colors = [*map(shared_basis(maps), maps)]
            count, stem = len(layers), studio.stem("tokens", source, source.condition, name)
            errors = [np.square(s - t).mean(-1) for t, s in zip(maps, maps[count:])]
            drawn = probe.picture(), layers, colors[:count], colors[count:], errors, stem
            heading = f"{source.heading}: tokens in one shared PCA basis (three components)"
            yield from figures.draw_token_maps(*drawn, name=title(name), heading=heading)


def draw_error(studio: Studio) -> Iterator[Path]:
    """Error over variance by layer, one line per method; and the numbers of `diagnose`."""
    recipes = studio.recipes(["lqn@paper", "lqn@distill", "lqn-src@distill"])
    for source in studio.sources():
        probe = studio.probe(source)
        numbers = {title(name): diagnose(probe, recipe) for name, recipe in recipes.items()}
        curves = {name: values["error"] for name, values in numbers.items()}
        stem = studio.stem("error", source, source.condition)
        yield from figures.draw_by_layer(curves, stem, source.heading)
        yield write_json(with_ending(stem, ".json"), numbers)


@torch.no_grad()
def diagnose(probe: Probe, recipe: LQNConfig) -> dict[str, list[float]]:
    """The loss before each step and, by layer, over the variance of the teacher's tokens: the
    student's squared error (1: the mean token) and its variance over positions (0: it does not see
    the address of its query)."""
    students, layers = probe.fit(recipe), range(1, probe.depth + 1)
    variances = (over_variance(centred(students.query_layer(k)), probe.at(k)) for k in layers)
    return {
        "loss": students.loss_curve.mean(0).tolist(),
        "error": probe.errors(students),
        "variance": list(variances),
    }


def draw_steps(studio: Studio) -> Iterator[Path]:
    """The prediction after some steps of the fit: a strip with its curve, and a GIF."""
    for name, recipe in studio.recipes(["lqn@distill"], all_layers=False).items():
        for source in studio.sources():
            steps = stops(recipe.fit.steps)
            bar = tqdm(steps, f"steps of {name}", unit="stop", leave=False)
            predictions = [studio.predict_after(source.tensor, recipe, k) for k in bar]
            maps = [segmentation(p.output) for p in predictions]
            size = cell_size(*source.pixels.shape[:2])
            pictures = [overlay(source.pixels, m, studio.categories, size) for m in maps]
            scores = [s for p in predictions if (s := studio.score(source, p)) is not None]
            heading = f"{source.heading}: {title(name)} after each step of its fit"
            heading += f"\n{UNLIKE}" if studio.unlike(source) else ""
            stem = studio.stem("steps", source, source.condition, name)
            errors = [p.stats["error_over_variance"] for p in predictions]
            drawn = steps, pictures, errors, scores, stem
            yield from figures.draw_steps(*drawn, metric=studio.metric, heading=heading)
            titles = [f"step {k} of {steps[-1]}" for k in steps]
            frames = [panel([Row([Cell(p, t)])]) for p, t in zip(pictures, titles)]
            yield save_gif(frames, with_ending(stem, ".gif"))


def draw_panels(studio: Studio) -> Iterator[Path]:
    """EoMT, APM, LQN and ground truth side by side; what changed is outlined, scores written."""
    names = studio.methods or ("teacher", "apm", "lqn")
    if len(names) < 2:
        raise InputError(
            "--methods must name at least two methods; the last is compared with the first"
        )
    segmenter = studio.build({name: method_config(studio.cfg, name) for name in names})
    default = (CLEAN,) if studio.inputs else (CLEAN, "gaussian_noise", "contrast")
    for image in studio.images():
        sources = studio.damaged(image, default)
        predictions = [segmenter([source.tensor])[0] for source in sources]
        unlike = [studio.unlike(source) for source in sources]
        drawn = compare(studio, sources, predictions, unlike)
        yield from save_picture(drawn, studio.stem("panel", image), image.name)


def draw_depth(studio: Studio) -> Iterator[Path]:
    """Milliseconds to each layer's tokens, teacher against student, measured; and the numbers."""
    device, threads = studio.cfg.MODEL.DEVICE, torch.get_num_threads()
    where = f"{device}, {threads} thread{'s' * (threads > 1)}" if device == "cpu" else device
    for name, recipe in studio.recipes(["lqn@distill"]).items():
        for source in studio.sources():
            probe = studio.probe(source)
            students = probe.fit(recipe)
            encode, on = partial(probe.teacher.encode, probe.normalised), probe.teacher.device
            teacher_ms = speed.layer_times(encode, on, _REPEATS)
            student_ms = speed.query_times(students.query_layer, probe.depth, on, _REPEATS)
            once = f"(once before: {probe.fit_ms:.0f} ms of fitting)"
            stem = studio.stem("depth", source, name)
            curves = {"teacher: all layers up to it, O(l)": teacher_ms}
            curves[f"student: one query, O(1)\n{once}"] = student_ms
            heading = f"{source.heading}: time to a layer's tokens, {title(name)} on {where}"
            labels = {"xlabel": "layer whose tokens are wanted", "ylabel": "milliseconds, median"}
            yield from figures.draw_by_layer(curves, stem, heading, **labels, mean_token=False)
            times = {"teacher_ms": teacher_ms, "student_ms": student_ms}
            yield write_json(with_ending(stem, ".json"), {**times, "fit_ms": probe.fit_ms})


def draw_alignment(studio: Studio) -> Iterator[Path]:
    """Damage under every corruption, and the mixing weight that follows, by a calibration."""
    if studio.calibration is None:
        raise InputError(
            "this figure needs a calibration of the teacher: MODEL.LQN.CALIBRATION is empty, and "
            "there is none beside the weights (lqn-seg calibrate makes one from clean images)"
        )
    calibration = studio.calibration.to(studio.teacher.device)
    for image in studio.images():
        clean = damage_and_weight(studio, calibration, image)
        readings = {}
        names = studio.corruptions or CORRUPTIONS
        for name in tqdm(names, f"alignment, {image.name}", unit="corruption", leave=False):
            sources = [image.under(Condition(name, k), studio.config.seed) for k in range(1, 6)]
            damaged = [damage_and_weight(studio, calibration, source) for source in sources]
            readings[name] = [clean, *damaged]
        stem = studio.stem("alignment", image)
        heading = image.unlike if studio.unlike(image) else image.name
        yield from figures.draw_alignment(readings, calibration.undamaged, stem, heading)
        numbers = {"undamaged": calibration.undamaged, "damage_and_weight": readings}
        yield write_json(with_ending(stem, ".json"), numbers)


@torch.no_grad()
def damage_and_weight(
    studio: Studio, calibration: Calibration, source: Source
) -> tuple[float, float]:
    """Damage of an image, and the mixing weight that an aligned student's tokens would have."""
    teacher = studio.teacher
    window = layout_of(source.tensor, teacher, studio.config.inference).crops(source.tensor)[:1]
    images = Images(teacher, window.to(teacher.device).float() / 255, [], calibration)
    seen = images.encode(aligned=True)
    assert seen.damage is not None and seen.damaged is not None
    weight = noise_fraction(calibration, seen.field) * seen.damaged
    return seen.damage.item(), weight.item()


def draw_reconstruct(studio: Studio) -> Iterator[Path]:
    """RGB from students (the paper's Fig. 10): a patch's pixels in place of its tokens.

    The paper does not say how its student is made to predict pixels. Here the pixels of a patch are
    the token of its position, in a field of one layer; recipe and student are the method's.
    """
    default = ["apm@paper", "lqn@paper", "apm@distill", "lqn@distill"]
    recipes = studio.recipes(default, all_layers=False)
    for source in studio.sources():
        probe = studio.probe(source)
        field = probe.pixel_field()
        pictures = {
            title(name): probe.picture_of(probe.fit(recipe, field).query_layer(1))
            for name, recipe in recipes.items()
        }
        stem = studio.stem("reconstruct", source, source.condition)
        heading = f"{source.heading}: pixels predicted by students fitted to them"
        yield from figures.draw_reconstruction(probe.picture(), pictures, stem, heading)


def draw_curves(results: Path, output: Path) -> list[Path]:
    """Curves of a study, from its ``results.json``, in a folder."""
    stem = output / f"curves_{file_name(results.parent.name)}"
    try:
        content = json.loads(results.read_text())
        return (draw_sweep if content["sweep"] else draw_study)(content, stem)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--results: {results} is not the results.json of a study ({error!r})"
        ) from error


FIGURES: dict[str, Callable[..., Iterator[Path]]] = {
    "tokens": draw_tokens,
    "error": draw_error,
    "steps": draw_steps,
    "panels": draw_panels,
    "depth": draw_depth,
    "alignment": draw_alignment,
    "reconstruct": draw_reconstruct,
}
