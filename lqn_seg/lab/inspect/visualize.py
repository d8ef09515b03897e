"""The figures of `tools/visualize.py`: each runs what it needs and writes PNG and SVG files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lqn_seg.adapt.ineffective import UNTRAINED, shown
from lqn_seg.adapt.methods import Method
from lqn_seg.config.nodes import load_any_cfg, method_config, segmentation_config
from lqn_seg.core.alignment import Calibration, Restorer, noise_share
from lqn_seg.core.config import LQNConfig
from lqn_seg.core.lqn import FittedStudents
from lqn_seg.data.catalog import Category, Metadata, get_dataset
from lqn_seg.data.corruptions import CORRUPTIONS
from lqn_seg.data.file_names import file_name
from lqn_seg.engine.acquaintance import UNLIKE, is_unlike, known_classes
from lqn_seg.engine.build import (
    build_calibration,
    build_segmenter,
    build_teacher,
    describe_calibration,
    describe_teacher,
)
from lqn_seg.engine.evaluate import CLEAN, Condition, build_evaluators
from lqn_seg.engine.probe import (
    Probe,
    Source,
    readers,
    student_method,
)
from lqn_seg.engine.store import say, write_atomically
from lqn_seg.errors import InputError, nearest
from lqn_seg.lab.cost import speed
from lqn_seg.lab.report.pictures import Seen, comparison_panel, one_each, segmentation
from lqn_seg.lab.report.wording import title
from lqn_seg.segmentation.segmenter import Prediction, Segmenter
from lqn_seg.teachers.base import Teacher
from lqn_seg.visualization import figures
from lqn_seg.visualization.captions import captioned
from lqn_seg.visualization.panels import (
    Cell,
    Row,
    Segmentation,
    cell_size,
    overlay,
    panel,
)
from lqn_seg.visualization.token_maps import (
    position_error,
    shared_basis,
    standardised,
    tsne_maps,
)

# Steps after which the prediction is looked at, as shares of all steps.
_STOPS = (0, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 1)
ORIGINS = "origins.json"  # in the output folder: which path each name stands for


@dataclass(frozen=True)
class Request:
    """What a figure is made of and where it goes; `tools/visualize.py` documents its options.

    Attributes:
        output: folder.
        config_file: YAML configuration.
        inputs: image files or folders; none: the first `images` of the configuration's data set.
        conditions: what is done to the images, ``clean`` or corruptions.
        methods: method names; none: the figure's own.
        layers: layers of token maps; none: six, evenly.
        projection: of token maps, ``pca`` or ``tsne``.
        results: a study's ``results.json``; none: a small study is run.
    """

    output: Path
    config_file: str
    inputs: Sequence[str] = ()
    images: int = 1
    conditions: Sequence[str] = ()
    severity: int = 3
    methods: Sequence[str] = ()
    layers: Sequence[int] = ()
    projection: str = "pca"
    results: Path | None = None
    overrides: Sequence[str] = ()
    device: str = ""


class Studio:
    """A request's configuration, teacher and images; each is loaded when it is first asked for.

    Attributes:
        failed: images that could not be read; each was named.
    """

    def __init__(self, request: Request) -> None:
        self.request, self.failed = request, 0
        # One image at a time: students beside it would be copies, and a user would wait for them.
        overrides = ["MODEL.LQN.BATCH", "1", *request.overrides]
        self.cfg = load_any_cfg(request.config_file, overrides, request.device)
        torch.set_num_threads(self.cfg.MODEL.LQN.EVAL.THREADS)
        self.config = segmentation_config(self.cfg)

    @cached_property
    def metadata(self) -> Metadata | None:
        """Of the configuration's data set; its table is known even where its files are not."""
        try:
            names = self.cfg.DATASETS.TEST
            return get_dataset(names[0]).metadata if names else None
        except InputError as error:
            print(f"no data set, so class names are the teacher's: {error}", file=sys.stderr)
            return None

    @cached_property
    def teacher(self) -> Teacher[Any]:
        """The teacher alone: one without a mask head will do."""
        if "segmenter" in self.__dict__:
            return self.segmenter.teacher
        teacher = build_teacher(self.cfg)
        print(describe_teacher(self.cfg, teacher), flush=True)
        return teacher

    @cached_property
    def segmenter(self) -> Segmenter:
        """Teacher and head, with no method yet."""
        return self.build({})

    def build(self, chosen: dict[str, Method]) -> Segmenter:
        """Teacher, head and methods, other models among them."""
        known = self.metadata
        things, classes = (known.thing_ids, known.num_classes) if known else (frozenset(), None)
        names = known.class_names if known else ()
        built = build_segmenter(self.cfg, things, classes, chosen, names)
        calibration = describe_calibration(self.cfg, built.calibration)
        print(f"{describe_teacher(self.cfg, built.teacher)}; {calibration}", flush=True)
        for sentence in shown(built.ineffective.values()):
            print(f"warning: {sentence}", flush=True)
        if self.request.inputs:  # of one's own: anything may be on them
            print(self.known, flush=True)
        return built

    def segmenter_of(self, methods: dict[str, Method]) -> Segmenter:
        """The segmenter with other methods, on the same teacher."""
        base = self.segmenter
        return Segmenter(
            base.teacher, base.head, methods, base.thing_ids, base.config, base.calibration
        )

    @cached_property
    def categories(self) -> tuple[Category, ...]:
        """Of the data set, or else the teacher's own."""
        if self.metadata is not None:
            return self.metadata.categories
        names = self.segmenter.teacher.model.config.id2label
        return tuple(Category(index, names[index], False) for index in sorted(names))

    @property
    def known(self) -> str:
        """Which classes the teacher knows, in words."""
        names = self.metadata.class_names if self.metadata else None
        return known_classes(names or [category.name for category in self.categories])

    def unlike(self, source: Source, segmenter: Segmenter | None = None) -> bool:
        """Whether the teacher was calibrated on nothing like an image; the console says so too."""
        of = segmenter or self.segmenter
        found = is_unlike(of.teacher, of.calibration, source.tensor, self.config.inference)
        if found:
            say(strangeness(source))
        return found

    def images(self) -> Iterator[Source]:
        """The request's images; one that cannot be read is named, and the others go on."""
        found = readers(self.cfg, self.request.inputs, self.request.images)
        for read in tqdm(found, unit="image", leave=False, disable=len(found) < 2):
            try:
                yield read()
            except InputError as error:
                self.failed += 1
                say(f"error: {error}")

    def conditions(self, default: Sequence[str] = (CLEAN,)) -> list[Condition]:
        """What is done to every image.

        Raises:
            InputError: a corruption is unknown, or the severity not in 1..5.
        """
        severity = self.request.severity
        if not 1 <= severity <= 5:
            raise InputError(f"--severity must be in 1..5, not {severity}")
        asked = self.request.conditions or default
        for name in asked:
            nearest(name, (CLEAN, *CORRUPTIONS), "corruption in --corruption")
        return [Condition() if name == CLEAN else Condition(name, severity) for name in asked]

    def sources(self) -> Iterator[Source]:
        """The images under every condition, one image after the other."""
        conditions = self.conditions()
        for image in self.images():
            yield from (image.under(condition, self.config.seed) for condition in conditions)

    def probe(self, source: Source) -> Probe:
        """One image in the teacher; nothing is restored."""
        return Probe(self.teacher, [source.tensor], self.config.inference, self.config.seed)

    def students(self, default: Sequence[str]) -> dict[str, LQNConfig]:
        """Recipes of the request's methods, which must have students of all layers."""
        names = self.request.methods or default
        return {name: student_method(name, method_config(self.cfg, name)) for name in names}

    def truth(self, source: Source) -> Segmentation | None:
        """Ground truth, where the image has any."""
        if source.record is None or self.metadata is None:
            return None
        if self.config.panoptic:
            ids = self.metadata.read_panoptic(source.record)
            return Segmentation(ids, source.record["segments_info"])
        labels = self.metadata.read_semantic(source.record)
        known = np.where(labels < self.metadata.num_classes, labels + 1, 0).astype(np.int32)
        return Segmentation(known, one_each(known))

    def score(self, source: Source, prediction: Prediction) -> float | None:
        """`metric` of one image, where it has ground truth."""
        if source.record is None or self.metadata is None:
            return None
        task, key = ("panoptic_seg", "PQ") if self.config.panoptic else ("sem_seg", "mIoU")
        evaluator = build_evaluators(self.cfg, self.metadata)[task]
        found = evaluator.statistics(source.record, prediction.output)
        return evaluator.summarize([found])[key]

    @property
    def metric(self) -> str:
        """What `score` is."""
        return "PQ" if self.config.panoptic else "mIoU"

    def stem(self, kind: str, image: Source, *parts: object) -> Path:
        """A file in the output folder, without suffix; another image's figures never take it."""
        name = self.claim(image.file_name, image.origin)
        return self.request.output / "_".join([kind, name, *map(file_name, parts)])

    def claim(self, name: str, origin: str) -> str:
        """A name for an origin's figures: another one where an earlier command has used it in this
        folder for another origin, which ``origins.json`` there says."""
        path, key = self.request.output / ORIGINS, name.casefold()
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        known = known if isinstance(known, dict) else {}
        if known.setdefault(key, origin) != origin:
            return file_name(name, origin)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known, indent=1) + "\n")
        return name


def draw_tokens(studio: Studio) -> list[Path]:
    """Token maps of teacher, student and the error between them, per image and method."""
    request, written = studio.request, []
    for name, recipe in studio.students(["lqn@distill"]).items():
        for source in studio.sources():
            probe = studio.probe(source)
            students = probe.fit(recipe)
            layers = request.layers or _evenly(probe.depth, 6)
            if not all(1 <= layer <= probe.depth for layer in layers):
                raise InputError(f"--layers must be in 1..{probe.depth}, not {list(layers)}")
            teacher, student = (
                [probe.visible(ask(layer)) for layer in layers]
                for ask in (probe.at, students.query_layer)
            )
            maps = [standardised(s, t) for s, t in zip([*teacher, *student], [*teacher, *teacher])]
            if request.projection == "tsne":
                colors, what = tsne_maps(maps), "t-SNE (three dimensions)"
            else:
                basis = shared_basis(maps)
                colors, what = [basis(m) for m in maps], "PCA basis (three components)"
            written += figures.draw_token_maps(
                probe.picture(),
                layers,
                colors[: len(layers)],
                colors[len(layers) :],
                [position_error(s, t) for s, t in zip(student, teacher)],
                studio.stem("tokens", source, source.condition, name),
                name=title(name),
                heading=f"{source.heading}: tokens in one shared {what}",
            )
    return written


def draw_error(studio: Studio) -> list[Path]:
    """Error over variance by layer, one line per method; and the numbers."""
    written = []
    recipes = studio.students(["lqn@paper", "lqn@distill", "lqn-src@distill"])
    for source in studio.sources():
        probe = studio.probe(source)
        curves = {title(name): probe.errors(probe.fit(recipe)) for name, recipe in recipes.items()}
        stem = studio.stem("error", source, source.condition)
        written += figures.draw_layer_errors(curves, stem, source.heading)
        written.append(_write_json(stem, curves))
    return written


def stops(steps: int) -> list[int]:
    """Steps of a fit after which to look, from 0 to all of them, closer at the start."""
    return sorted({round(part * steps) for part in _STOPS})


def steps_of(studio: Studio, name: str) -> LQNConfig:
    """The recipe of a method whose steps can be looked at.

    Raises:
        InputError: the method has no student, or makes no step.
    """
    method = method_config(studio.cfg, name)
    if not isinstance(method, LQNConfig) or method.fit.variant not in ("lqn", "lqn-src", "apm"):
        raise InputError(f"--methods: {name} has no student whose steps could be looked at")
    if not method.fit.steps:
        raise InputError(f"--methods: {name} makes no step")
    return method


def after(studio: Studio, image: Tensor, method: LQNConfig, steps: int) -> Prediction:
    """A method's prediction after so many steps of its fit.

    It is a fit of its own that ends there. Random numbers are counted by step, so it is the same
    fit, cut short (a test).
    """
    cut = replace(method, fit=replace(method.fit, steps=steps))
    name = "cut" if steps else UNTRAINED  # which is not warned of
    (predictions,) = studio.segmenter_of({name: cut})([image])
    return predictions[name]


def draw_steps(studio: Studio) -> list[Path]:
    """The prediction after chosen steps of the fit: a strip with its curve, and a GIF."""
    written = []
    for name in studio.request.methods or ["lqn@distill"]:
        method = steps_of(studio, name)
        for source in studio.sources():
            wanted = stops(method.fit.steps)
            bar = tqdm(wanted, f"steps of {name}", unit="stop", leave=False)
            found = [after(studio, source.tensor, method, steps) for steps in bar]
            size = cell_size(*source.pixels.shape[:2])
            pictures = [
                overlay(source.pixels, *segmentation(p.output), studio.categories, size=size)
                for p in found
            ]
            scores = [score for p in found if (score := studio.score(source, p)) is not None]
            remark = f"\n{UNLIKE}" if studio.unlike(source) else ""
            stem = studio.stem("steps", source, source.condition, name)
            written += figures.draw_steps(
                wanted,
                pictures,
                [p.stats["error_over_variance"] for p in found],
                scores or None,
                stem,
                metric=studio.metric,
                heading=f"{source.heading}: {title(name)} after each step of its fit{remark}",
            )
            cells = zip(wanted, pictures)
            frames = [panel([Row([Cell(p, f"step {k} of {wanted[-1]}")])]) for k, p in cells]
            written.append(figures.save_gif(frames, figures.with_ending(stem, ".gif")))
    return written


def draw_panels(studio: Studio) -> list[Path]:
    """EoMT, APM, LQN and ground truth side by side; what changed is outlined, scores written."""
    request = studio.request
    names = list(request.methods or ("teacher", "apm", "lqn"))
    if len(names) < 2:
        raise InputError("--methods must name at least two methods, the last is compared")
    segmenter = studio.build({name: method_config(studio.cfg, name) for name in names})
    conditions = studio.conditions(
        (CLEAN,) if request.inputs else (CLEAN, "gaussian_noise", "contrast")
    )
    written = []
    for image in studio.images():
        damaged = [image.under(condition, studio.config.seed) for condition in conditions]
        predicted = [segmenter([source.tensor])[0] for source in damaged]
        strange = [studio.unlike(source, segmenter) for source in damaged]
        drawn = compare(studio, damaged, predicted, strange)
        written += figures.save_picture(drawn, studio.stem("panel", image), image.name)
    return written


def strangeness(source: Source) -> str:
    """That the teacher was calibrated on nothing like an image, which is named."""
    clean = source.condition.corruption == CLEAN
    return f"{source.name if clean else source.heading}: {UNLIKE}"


def compare(
    studio: Studio,
    images: Sequence[Source],
    predicted: Sequence[dict[str, Prediction]],
    unlike: Sequence[bool],
) -> NDArray[np.uint8]:
    """A panel, a row per image: ground truth if there is any, and the predictions by method.

    With ground truth the scores are written, and how far each is from the first method's; without,
    which classes the teacher knows.

    Args:
        unlike: of each image, whether the teacher was calibrated on nothing like it.
    """
    seen = [
        Seen(
            source.pixels,
            predictions,
            studio.truth(source),
            partial(studio.score, source),
            source.condition.words if source.record or len(images) > 1 else "",
        )
        for source, predictions in zip(images, predicted)
    ]
    drawn = comparison_panel(seen, studio.categories, studio.metric)
    strange = [strangeness(source) for source, far in zip(images, unlike) if far]
    own = any(source.record is None for source in images)
    return captioned(drawn, [studio.known] if own else [], strange)


def draw_depth(studio: Studio) -> list[Path]:
    """Milliseconds to each layer's tokens, teacher against student, measured; and the numbers."""
    written = []
    for name, recipe in studio.students(["lqn@distill"]).items():
        for source in studio.sources():
            probe = studio.probe(source)
            students = probe.fit(recipe)
            teacher_ms, student_ms = layer_times(probe), query_times(probe, students)
            fit_ms = probe.fit_ms
            device, threads = studio.cfg.MODEL.DEVICE, torch.get_num_threads()
            where = (
                f"{device}, {threads} thread{'s' * (threads > 1)}" if device == "cpu" else device
            )
            stem = studio.stem("depth", source, name)
            written += figures.draw_depth_times(
                teacher_ms,
                student_ms,
                fit_ms,
                stem,
                f"{source.heading}: time to a layer's tokens, {title(name)} on {where}",
            )
            times = {"teacher_ms": teacher_ms, "student_ms": student_ms, "fit_ms": fit_ms}
            written.append(_write_json(stem, times))
    return written


def draw_gauge(studio: Studio) -> list[Path]:
    """What the gauge saw of an image under every corruption, and what it decided; with numbers.

    Raises:
        InputError: the teacher has not been calibrated.
    """
    calibration = build_calibration(studio.cfg, studio.teacher)
    if calibration is None:
        raise InputError(
            "the gauge needs a calibration of the teacher (tools/calibrate.py makes one from clean "
            "images): MODEL.LQN.CALIBRATION names none, and none lies beside the weights"
        )
    calibration = calibration.to(studio.teacher.device)
    written = []
    names = studio.request.conditions or CORRUPTIONS
    for image in studio.images():
        clean = gauge_reading(studio, calibration, image)
        readings = {}
        for name in tqdm(names, f"gauge, {image.name}", unit="corruption", leave=False):
            severities = [image.under(Condition(name, k), studio.config.seed) for k in range(1, 6)]
            found = [gauge_reading(studio, calibration, source) for source in severities]
            readings[name] = [clean, *found]
        stem = studio.stem("gauge", image)
        heading = image.name
        if is_unlike(studio.teacher, calibration, image.tensor, studio.config.inference):
            heading = strangeness(image)
            say(heading)
        written += figures.draw_gauge(readings, calibration.undamaged, stem, heading)
        numbers = {"undamaged": calibration.undamaged, "damage_and_share": readings}
        written.append(_write_json(stem, numbers))
    return written


def gauge_reading(studio: Studio, calibration: Calibration, source: Source) -> tuple[float, float]:
    """Damage of an image, and the share of a gauged student's answer that would be taken."""
    restorer = Restorer(calibration)
    config = studio.config
    probe = Probe(studio.teacher, [source.tensor], config.inference, config.seed, restorer)
    share = noise_share(calibration, probe.field) * restorer.damaged
    return restorer.damage.item(), share.item()


def draw_reconstruct(studio: Studio) -> list[Path]:
    """RGB from students (the paper's Fig. 10): a patch's pixels in place of its tokens.

    The paper does not say how its student is made to predict pixels. Here the pixels of a patch are
    the token of its position, in a field of one layer; recipe and student are the method's own.
    """
    written = []
    names = studio.request.methods or ["apm@paper", "lqn@paper", "apm@distill", "lqn@distill"]
    recipes = {name: steps_of(studio, name) for name in names}
    for source in studio.sources():
        probe = studio.probe(source)
        field = probe.pixel_field()
        found = {}
        for name, recipe in recipes.items():
            answer = probe.fit(recipe, field).query_layer(1)
            found[title(name)] = probe.picture_of(answer)
        written += figures.draw_reconstruction(
            probe.picture(),
            found,
            studio.stem("reconstruct", source, source.condition),
            f"{source.heading}: pixels predicted by students fitted to them",
        )
    return written


def draw_curves(studio: Studio) -> list[Path]:
    """Curves of a study, from its ``results.json``; without one, a small study is run first."""
    from lqn_seg.engine.build import find_local
    from lqn_seg.lab.study.study_report import run_study
    from lqn_seg.visualization.curves import draw_study, draw_sweep

    request, path = studio.request, studio.request.results
    if path is None:
        folder = request.output / "study"
        run_study(find_local("configs/study/quick.yaml"), ["OUTPUT_DIR", str(folder)], resume=True)
        path = folder / "results.json"
    try:
        results = json.loads(path.read_text())
        draw = draw_sweep if results["sweep"] else draw_study
        name = studio.claim(file_name(path.parent.name), str(path.resolve()))
        return draw(results, request.output / f"curves_{name}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--results: {path} is no results.json of a study ({error!r})") from error


FIGURES: dict[str, Callable[[Studio], list[Path]]] = {
    "tokens": draw_tokens,
    "error": draw_error,
    "steps": draw_steps,
    "panels": draw_panels,
    "depth": draw_depth,
    "gauge": draw_gauge,
    "reconstruct": draw_reconstruct,
    "curves": draw_curves,
}


def _evenly(depth: int, count: int) -> list[int]:
    """Up to so many layers from 1 to the last, evenly."""
    return sorted({round(k) for k in np.linspace(1, depth, min(count, depth))})


def _write_json(stem: Path, numbers: Any) -> Path:
    path = figures.with_ending(stem, ".json")
    path.write_text(json.dumps(numbers, indent=1) + "\n")
    return path


def layer_times(probe: Probe, repeats: int = 20) -> list[float]:
    """Median milliseconds until the teacher has each layer's tokens, embedding included."""
    encode = partial(probe.teacher.encode, probe.normalised)
    return speed.layer_times(encode, probe.teacher.device, repeats)


def query_times(probe: Probe, students: FittedStudents, repeats: int = 20) -> list[float]:
    """Median milliseconds of asking a student for each layer's tokens."""
    return speed.query_times(students.query_layer, probe.depth, probe.teacher.device, repeats)
