"""A whole evaluation on five small scenes: tables, files, resume, and what goes wrong."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lqn_seg.config.nodes import load_cfg
from lqn_seg.data import catalog
from lqn_seg.data.catalog import get_dataset, register_label_folders
from lqn_seg.data.images import read_image, write_label_map
from lqn_seg.data.labelled_images import read_labelled_image
from lqn_seg.data.metadata import Metadata
from lqn_seg.engine import evaluate as inference
from lqn_seg.engine.evaluate import Condition, Evaluation
from lqn_seg.errors import InputError
from lqn_seg.evaluation.bootstrap import (
    FEWEST_IMAGES,
    PairedDifference,
    paired_bootstrap,
)
from lqn_seg.lab.cost.cost import UncountedOperatorError, measure
from lqn_seg.lab.report import pictures, segmentation
from lqn_seg.lab.report import report as report_module
from lqn_seg.lab.report.costs import count_gmacs
from lqn_seg.lab.report.run import check_failed, evaluate
from lqn_seg.lab.report.segmentation import SegmentationReport
from lqn_seg.lab.report.wording import WIDTH, title
from lqn_seg.segmentation.segmenter import Segmenter


@pytest.fixture
def cfg(small_config):
    return load_cfg(str(small_config))


def run(cfg, resume=False) -> Evaluation:
    evaluation = Evaluation(cfg, get_dataset("demo_panoptic_val"), resume)
    evaluation.run(progress=False)
    return evaluation


def text(report: SegmentationReport) -> str:
    return "\n\n".join([*report.summary(), *report.tables()])


def quality(evaluation: Evaluation) -> dict:
    """Everything but the times, which differ from run to run."""
    result = {}
    for condition in evaluation.conditions:
        for method in evaluation.segmenter.methods:
            metrics = evaluation.metrics(condition, method)
            metrics["lqn"] = {k: v for k, v in metrics["lqn"].items() if not k.endswith("_ms")}
            hashes = [line["mask_hash"] for line in evaluation.lines(condition, method)]
            result[f"{condition}/{method}"] = [repr(metrics), hashes]
    return result


def test_the_whole_run(small_config, capsys):
    report = evaluate(str(small_config), full=True)
    printed = capsys.readouterr().out
    for words in ("PQ by condition", "95% interval", "milliseconds", "clean", "contrast"):
        assert words in printed
    assert report.sentence() in " ".join(printed.split())
    start, end = printed.index("scores 0-100"), printed.rindex("\nresults: ")
    assert max(map(len, printed[start:end].splitlines())) <= WIDTH
    last = printed.strip().splitlines()[-1]
    assert last.startswith("pictures: ") and last.endswith(".png")
    output = small_config.parent / "output"
    results = json.loads((output / "inference" / "results.json").read_text())
    assert results["images"] == 5 and results["subset_of"] is None
    assert results["metrics"]["clean"]["teacher"]["lqn"]["token_cos"] == pytest.approx(1)
    # Without a calibration no student is asked: that is said, and no fit is paid for.
    assert printed.count("warning: method lqn: without a calibration nothing is aligned") == 1
    assert results["warnings"] and results["warnings"][0] in printed
    assert printed.index("warning: method lqn") < printed.index("PQ by condition")
    assert "students fitted, of 10 images: LQN 0" in printed
    costs = results["gmacs"]
    assert costs["lqn"]["gmacs_fit"] == 0
    assert costs["lqn"]["gmacs_teacher"] == 2 * costs["teacher"]["gmacs_teacher"]  # two views
    assert (output / "log.txt").read_text() in printed and (output / "config.yaml").is_file()
    assert list((output / "panels").glob("*.png"))


def test_the_summary_comes_first_and_alone(small_config, capsys):
    report = evaluate(str(small_config))
    printed = capsys.readouterr().out
    assert "PQ by condition" not in printed and "--full" in printed
    log = (small_config.parent / "output" / "log.txt").read_text()
    summary = "\n\n".join(report.summary())
    assert summary in printed and log.startswith(summary) and "PQ by condition" in log
    row = next(line for line in summary.splitlines() if line.startswith("EoMT (teacher) "))
    assert row.split()[-2:] == ["-", "1.0"] and f"{report.cost_factor('lqn'):.1f}" in summary


def test_a_part_that_fails_takes_nothing_with_it(small_config, monkeypatch, capsys):
    """Whatever part: scores are written before it, printed, and every other part is there."""
    count, results_file = count_gmacs, small_config.parent / "output/inference/results.json"

    def uncounted(segmenter, method, stats):
        assert results_file.is_file()  # written before costs are counted
        if method == "lqn":
            raise UncountedOperatorError("aten.attention has no rule")
        return count(segmenter, method, stats)

    def broken(*_: object, **__: object):
        raise KeyError("broken")

    monkeypatch.setattr(segmentation, "count_gmacs", uncounted)
    monkeypatch.setattr(pictures, "comparison_panel", broken)
    monkeypatch.setattr(segmentation, "difference_table", broken)
    report = evaluate(str(small_config), full=True)
    said = capsys.readouterr()
    assert "the cost of LQN could not be counted: aten.attention has no rule" in said.err
    assert "could not be drawn: KeyError: 'broken'" in said.err
    assert said.err.count("Traceback") == 2  # of the two bugs
    counts, times = (line for line in cost_table(said.out) if line.startswith("LQN "))
    assert (counts + times).split()[1:7] == ["-"] * 6 and float(times.split()[-1]) > 0
    assert "PQ by condition" in said.out and "PQ minus the teacher's" not in said.out
    assert "times the teacher's multiply-adds" not in said.out
    assert "On these 5 images" in said.out and "pictures: " not in said.out
    results = json.loads(results_file.read_text())
    assert results["gmacs"]["lqn"] is None and results["gmacs"]["teacher"]["gmacs_total"] > 0
    assert len(results["report_failures"]) == 2  # the picture comes later, and changes no number
    assert len(report.failed) == 3

    monkeypatch.setattr(report_module, "resampled_totals", broken)
    evaluate(str(small_config), resume=True, full=True)
    said = capsys.readouterr()
    assert "the intervals could not be computed: KeyError" in said.err
    assert "minus the teacher's" not in said.out and "token_cos" in said.out


def cost_table(printed: str) -> list[str]:
    return printed[printed.index("cost per image") :].splitlines()


def test_prefetching_changes_no_result(cfg, monkeypatch, machine_root):
    image = machine_root / "val" / "000001.png"
    image.write_bytes(image.read_bytes()[:200])
    expected = run(cfg)
    assert expected.workers == 0 and len(expected.failures) == 2
    before = quality(expected), expected.failures
    monkeypatch.setattr(Evaluation, "workers", 1)
    evaluation = run(cfg)
    assert (quality(evaluation), evaluation.failures) == before
    with pytest.raises(InputError, match="another run writes there"):  # it lies on the disk alone
        quality(expected)


def test_each_image_is_read_and_each_truth_decoded_once(cfg, monkeypatch):
    reads = Counter()

    def counting(function):
        def read(*arguments):
            (record,) = (argument for argument in arguments if isinstance(argument, dict))
            reads[function.__name__, record["image_id"]] += 1
            return function(*arguments)

        return read

    readers = "read_panoptic", "read_instances"
    monkeypatch.setattr(inference, "read_labelled_image", counting(read_labelled_image))
    for name in readers:
        monkeypatch.setattr(Metadata, name, counting(getattr(Metadata, name)))
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    evaluation = run(cfg)
    assert len(evaluation.segmenter.methods) * len(evaluation.conditions) == 4
    once = {(name, k) for name in ("read_labelled_image", *readers) for k in range(5)}
    assert set(reads) == once and max(reads.values()) <= 2  # instances look at the same map


def test_an_error_in_a_batch_takes_no_other_image_with_it(cfg, monkeypatch, capsys):
    cfg.MODEL.LQN.BATCH = 3
    expected = quality(run(cfg))
    original = Evaluation.predict

    def failing(self, condition, samples):
        if any(sample.record["image_id"] == 1 for sample in samples):
            raise KeyError(1)
        return original(self, condition, samples)

    monkeypatch.setattr(Evaluation, "predict", failing)
    evaluation = run(cfg)
    said = capsys.readouterr().err
    assert "image 1 (clean) failed: KeyError: 1" in said and said.count("Traceback") == 2
    assert set(evaluation.failures) == {("clean", 1), ("contrast-3", 1)}
    for name, (_, hashes) in quality(evaluation).items():
        others = expected[name][1]
        assert hashes == [others[0], *others[2:]]


def test_a_killed_run_goes_on_where_it_stopped(cfg, executed):
    whole = quality(run(cfg))
    path = run(cfg).folder / "contrast-3.0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:100])  # killed while it wrote the third line
    executed.clear()
    assert quality(run(cfg, resume=True)) == whole
    assert executed == [("contrast-3", k) for k in (2, 3, 4)]


@pytest.fixture
def machine_root(scenes_root, tmp_path, monkeypatch) -> Path:
    """The five scenes, for a test to change."""
    root = tmp_path / "own"
    shutil.copytree(scenes_root, root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root / "demo"


def test_a_resume_evaluates_what_has_changed_since(
    cfg, machine_root, executed, capsys, monkeypatch
):
    run(cfg)
    names = [f"{k:06d}.png" for k in range(5)]
    executed.clear()

    def resumed() -> list[int]:
        evaluation = run(cfg, resume=True)
        assert len(list(evaluation.lines("clean", "lqn"))) == 5
        done = sorted({key for _, key in executed})
        assert len(executed) == 2 * len(done)  # under both conditions
        executed.clear()
        return done

    capsys.readouterr()
    assert resumed() == [] and "changed" not in capsys.readouterr().err
    # The image, with its size and time kept, as some tools of copying do.
    image = machine_root / "val" / names[1]
    was = image.stat()
    pixels = np.asarray(Image.open(image)).copy()
    content = image.read_bytes()
    Image.fromarray(255 - pixels).save(image)
    image.write_bytes(image.read_bytes().ljust(was.st_size, b"\0"))
    os.utime(image, ns=(was.st_atime_ns, was.st_mtime_ns))
    # The label, and the annotation.
    label = machine_root / "panoptic_val" / names[2]
    label.write_bytes(label.read_bytes() + b"\0")
    path = machine_root / "annotations" / "panoptic_val.json"
    annotations = json.loads(path.read_text())
    annotations["annotations"][4]["segments_info"][0]["iscrowd"] = 1
    path.write_text(json.dumps(annotations))
    assert resumed() == [1, 2, 4]
    said = capsys.readouterr().err
    assert "evaluated again: 3 of 5 images (1, 2, 4)" in said
    assert resumed() == []
    image.write_bytes(content)
    assert resumed() == []  # what was found of it first is there
    result = quality(run(cfg, resume=True))
    assert result == quality(run(cfg))
    # A copy of the data set is the same data set.
    copy = machine_root.parent.parent / "copy"
    shutil.copytree(machine_root.parent, copy)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(copy))
    executed.clear()
    assert resumed() == []


def test_starting_afresh_leaves_nothing_of_another_run(cfg):
    def stored(resume: bool) -> list[int]:
        evaluation = Evaluation(cfg, get_dataset("demo_panoptic_val"), resume)
        return [len(evaluation.store.results(name)) for name in ("clean", "contrast-3")]

    run(cfg)
    cfg.MODEL.LQN.FIT.STEPS, cfg.MODEL.LQN.EVAL.CORRUPTIONS = 6, ()
    folder = run(cfg).folder
    cfg.MODEL.LQN.EVAL.CORRUPTIONS = ("contrast",)
    assert stored(resume=True) == [5, 0]
    (folder / "run.json").unlink()  # lines without their configuration do not count
    assert stored(resume=True) == [0, 0]
    run(cfg)
    assert stored(resume=False) == [0, 0]


def test_an_unusable_output_folder_is_named(cfg, tmp_path):
    (tmp_path / "file").write_text("")
    cfg.OUTPUT_DIR = str(tmp_path / "file")
    with pytest.raises(InputError, match=r"OUTPUT_DIR: cannot use"):
        Evaluation(cfg, get_dataset("demo_panoptic_val"))


def test_resuming_another_configuration_is_refused(cfg):
    run(cfg)
    cfg.MODEL.LQN.FIT.STEPS = 6
    with pytest.raises(InputError, match=r"another configuration.*differs in: methods\)"):
        Evaluation(cfg, get_dataset("demo_panoptic_val"), resume=True)


@pytest.fixture
def damaged_root(machine_root) -> Path:
    """The five scenes with four of them spoilt, each in its own way."""
    path = machine_root / "annotations" / "panoptic_val.json"
    content = json.loads(path.read_text())
    scenes = content["annotations"]
    image = machine_root / "val" / content["images"][1]["file_name"]
    image.write_bytes(image.read_bytes()[:200])
    (machine_root / "panoptic_val" / scenes[2]["file_name"]).write_bytes(b"")
    scenes[3]["segments_info"].append({**scenes[3]["segments_info"][0], "id": 77777})
    scenes.append({**scenes[4], "image_id": 4444})
    path.write_text(json.dumps(content))
    return machine_root


@pytest.mark.parametrize("batch", [1, 3])
def test_what_cannot_be_evaluated_is_named_and_counted(
    cfg, small_config, damaged_root, capsys, batch
):
    overrides = ["MODEL.LQN.BATCH", str(batch)]
    report = evaluate(str(small_config), overrides)
    printed = capsys.readouterr()
    for words in (
        "5 images, of which 3 FAILED",
        "LEFT OUT of every number: 3 images that failed, 1 entry of the data set",
        "is damaged or truncated",
        "is empty (0 bytes)",
        "lists segment id 77777, which has no pixel",
        "annotations[5] has image_id 4444",
        "On these 2 images",
    ):
        assert words in printed.out
    assert printed.err.count("failed: ") == 6 and "Traceback" not in printed.err
    results = json.loads((report.evaluation.folder / "results.json").read_text())
    assert results["images"] == 2
    assert sorted({failed["image_id"] for failed in results["failed"]}) == [1, 2, 3]
    assert {failed["condition"] for failed in results["failed"]} == {"clean", "contrast-3"}
    assert len(results["not_listed"]) == 1
    with pytest.raises(InputError, match=r"3 of 5 images failed, more than .*MAX_FAILED.*\(0\.5 "):
        check_failed([report.evaluation])
    report.evaluation.cfg.MODEL.LQN.EVAL.MAX_FAILED = 0.6
    check_failed([report.evaluation])
    cfg.merge_from_list(overrides)
    whole = Evaluation(cfg, report.evaluation.dataset, resume=True)
    for method in ("teacher", "lqn"):  # as if the others had never been there
        metrics = report.metrics["clean"][method]["panoptic_seg"]
        lines = [whole.store.results("clean")[k]["methods"][method] for k in (0, 4)]
        by_hand = whole.evaluators["panoptic_seg"].summarize([li["panoptic_seg"] for li in lines])
        assert repr(metrics) == repr(by_hand)


def test_a_repaired_image_is_evaluated_by_a_resume(
    cfg, small_config, damaged_root, scenes_root, executed
):
    evaluate(str(small_config))
    whole = damaged_root / "val"
    shutil.copytree(scenes_root / "demo" / "val", whole, dirs_exist_ok=True)
    executed.clear()
    report = evaluate(str(small_config), resume=True)
    assert {key for _, key in executed} == {1}  # and those whose labels are still damaged fail
    assert [record["image_id"] for record in report.evaluation.scored] == [0, 1, 4]


def test_strict_stops_and_what_was_done_stays(small_config, damaged_root, tmp_path):
    with pytest.raises(InputError, match=r"annotations\[5\] has image_id 4444"):
        evaluate(str(small_config), strict=True)
    path = damaged_root / "annotations" / "panoptic_val.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": content["annotations"][:5]}))
    with pytest.raises(InputError, match="is damaged or truncated"):
        evaluate(str(small_config), strict=True)
    lines = (tmp_path / "output" / "inference" / "clean.0.jsonl").read_text().splitlines()
    assert len(lines) == 1


def test_nothing_but_failures_is_an_error(cfg, monkeypatch):
    evaluation = Evaluation(cfg, get_dataset("demo_panoptic_val"))
    for record in evaluation.records:
        record["file_name"] = "gone.png"
    with pytest.raises(InputError, match=r"no image could be evaluated: .*gone\.png"):
        evaluation.run(progress=False)


def test_results_hold_every_image_and_its_own_figures(cfg, small_config):
    report = evaluate(str(small_config))
    results = json.loads((report.evaluation.folder / "results.json").read_text())
    assert results["environment"]["threads"] == "1" == results["environment"]["processes"]
    assert results["fallbacks"] == {"teacher": 0, "lqn": 0} and results["failed"] == []
    assert len(results["teacher"]) == 16 and results["seed"] == 0
    assert any(key.startswith("PQ-") for key in results["metrics"]["clean"]["lqn"]["panoptic_seg"])
    result = results["per_image"]["contrast-3"]["lqn"]
    lines = list(report.evaluation.lines("contrast-3", "lqn"))
    assert [image["mask_hash"] for image in result] == [line["mask_hash"] for line in lines]
    for key, task in (("PQ", "panoptic_seg"), ("mIoU", "sem_seg")):
        evaluator = report.evaluation.evaluators[task]
        for image, line in zip(result, lines):
            expected = evaluator.summarize([line[task]])[key]
            assert image[key] == (pytest.approx(expected) if math.isfinite(expected) else None)


def test_threads_are_the_configurations_whatever_the_process_has(cfg, monkeypatch):
    seen = []
    original = Evaluation.predict

    def asking(self, condition, samples):
        seen.append(torch.get_num_threads())
        return original(self, condition, samples)

    monkeypatch.setattr(Evaluation, "predict", asking)
    before = torch.get_num_threads()
    cfg.MODEL.LQN.EVAL.THREADS, cfg.MODEL.LQN.EVAL.MAX_IMAGES = 2, 1
    cfg.MODEL.LQN.METHODS, cfg.MODEL.LQN.EVAL.CORRUPTIONS = ("teacher",), ()
    run(cfg)
    assert set(seen) == {2} and torch.get_num_threads() == before
    cfg.MODEL.LQN.EVAL.THREADS = 1
    with pytest.raises(InputError, match=r"differs in: threads\)"):
        run(cfg, resume=True)


def test_a_subset_says_so(cfg):
    cfg.MODEL.LQN.EVAL.MAX_IMAGES = 2
    report = SegmentationReport(run(cfg))
    assert "SUBSET of 5: 2 images, scores" in text(report)
    assert report.results()["subset_of"] == 5


def test_failed_fits_are_counted_and_reported(cfg):
    cfg.MODEL.LQN.PRESET = "distill"  # whose student answers for every image, calibrated or not
    cfg.MODEL.LQN.FIT.LEARNING_RATE = 1e38
    report = SegmentationReport(run(cfg))
    assert "LQN: 10 fits failed" in text(report)
    assert report.differences["lqn"]["clean"] == PairedDifference(0, 0, 0)


def test_the_intervals_are_those_of_the_paired_bootstrap(cfg):
    """Resampled once per method and for all conditions: the same numbers."""
    cfg.MODEL.LQN.EVAL.CORRUPTIONS = ("contrast", "fog")
    cfg.MODEL.LQN.METHODS = ("teacher", "larger", "flip")
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    report = SegmentationReport(run(cfg))
    evaluator = report.evaluation.evaluators["sem_seg"]

    def stacked(method, names):
        lines = [list(report.evaluation.lines(name, method)) for name in names]
        return np.stack([evaluator.stack([x["sem_seg"] for x in y]) for y in lines], axis=1)

    groups = {**{name: [name] for name in report.streams}, "mean of corruptions": report.corrupted}
    assert list(report.differences) == ["larger", "flip"]
    for method, result in report.differences.items():
        assert list(result) == list(groups)
        for group, names in groups.items():
            expected = paired_bootstrap(
                lambda images: evaluator.metric(np.sum(images, axis=0)).mean(-1),
                *(stacked(method, names), stacked("teacher", names)),
                samples=50,
            )
            assert result[group] == pytest.approx(expected) and expected.low < expected.high


@pytest.mark.parametrize(
    "interval, words",
    [((1, 0.1, 2), "is better than"), ((-1, -2, -0.1), "is worse"), ((1, -1, 2), "cannot be told")],
)
def test_the_sentence_does_not_flatter(cfg, interval, words):
    report = SegmentationReport(run(cfg))
    report.differences["lqn"]["clean"] = PairedDifference(*interval)

    def tables() -> str:
        return "".join(make() for make in report.score_tables().values())

    report.images = FEWEST_IMAGES - 1  # of so few, nothing is said about significance
    assert words not in report.sentence() and "are too few for one" in report.sentence()
    assert "[" not in report.sentence() and "[" not in tables()
    report.images = FEWEST_IMAGES
    assert f"LQN {words}" in report.sentence() and "too few" not in report.sentence()
    assert "[" in report.sentence() and "[" in tables()


def test_one_image_is_no_evidence(cfg):
    """It was "is better than its teacher (+0.2 [+0.2, +0.2])"."""
    cfg.MODEL.LQN.EVAL.MAX_IMAGES = 1
    printed = " ".join(text(SegmentationReport(run(cfg))).split())
    assert "On this one image LQN differs from its teacher on clean images by " in printed
    assert "no interval: 1 image is too few for one (10 are needed)." in printed
    assert "is better" not in printed and "told apart" not in printed and "[" not in printed
    assert not re.search(r"-0\.?0*(?![\d.])", printed)


def test_a_single_method_has_detectron2s_lines(cfg):
    cfg.MODEL.LQN.METHODS, cfg.MODEL.LQN.EVAL.CORRUPTIONS = ("teacher",), ()
    report = SegmentationReport(run(cfg))
    lines = text(report).splitlines()
    at = lines.index("copypaste: Task: panoptic_seg (teacher)")
    assert lines[at + 1].startswith("copypaste: PQ,SQ,RQ,")
    shown = lines[at + 2].removeprefix("copypaste: ").split(",")[0]
    assert float(shown) == pytest.approx(report.value("clean", "teacher", "PQ"), abs=1e-4)
    assert report.sentence() == ""


def test_conditions_and_names(cfg):
    assert [str(c) for c in inference.configured_conditions(cfg)] == ["clean", "contrast-3"]
    assert str(Condition()) == "clean"
    assert title("lqn@paper") == "LQN, recipe: paper" and title("lqn-src") == "LQN-[src]"


def test_a_teacher_of_other_classes_is_refused(cfg, tmp_path):
    cfg.MODEL.LQN.TEACHER.WEIGHTS = ""
    path = tmp_path / "eomt.json"
    path.write_text(
        '{"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 1, "image_size": 32,'
        ' "patch_size": 8, "num_blocks": 1, "num_queries": 2, "num_labels": 4}'
    )
    cfg.MODEL.LQN.TEACHER.CONFIG = str(path)
    with pytest.raises(InputError, match=r"predicts 4 classes.*has 13"):
        Evaluation(cfg, get_dataset("demo_panoptic_val"))


def test_a_fit_that_was_paid_is_counted(small_config, capsys):
    """The recipe without alignment fits a student to every image, and its cost is there."""
    methods = ["MODEL.LQN.METHODS", '("teacher", "lqn@distill")']
    report = evaluate(str(small_config), methods, full=True)
    printed = capsys.readouterr().out
    assert "students fitted, of 10 images: LQN, recipe: distill 10" in printed
    assert "warning:" not in printed
    assert report.costs["lqn@distill"]["gmacs_fit"] > 0


def test_every_pass_of_the_teacher_is_counted(cfg):
    """A second pass on as many patches; one pass on (5 x 5) instead of (4 x 4)."""
    cfg.MODEL.LQN.METHODS = ("teacher", "flip", "larger", "untrained")
    segmenter = Evaluation(cfg, get_dataset("demo_panoptic_val")).segmenter
    costs = {name: count_gmacs(segmenter, name, {"windows": 1.0}) for name in segmenter.methods}
    plain = costs["teacher"]
    assert costs["flip"]["gmacs_teacher"] == 2 * plain["gmacs_teacher"]
    (larger,) = segmenter.other_sizes["larger"].segmenters
    counted = measure(lambda: larger.teacher.model(torch.zeros(1, 3, 40, 40)))
    assert costs["larger"]["gmacs_total"] == pytest.approx(counted.gmacs, rel=1e-6)
    assert costs["larger"]["gmacs_total"] > 1.3 * plain["gmacs_total"]
    assert costs["untrained"]["gmacs_fit"] == 0 < costs["untrained"]["gmacs_query"]


def test_panels_of_any_id_stay_in_their_folder_and_apart(cfg, tmp_path):
    cfg.MODEL.LQN.EVAL.PANEL_IMAGES, cfg.MODEL.LQN.EVAL.CORRUPTIONS = 5, ()
    evaluation = Evaluation(cfg, get_dataset("demo_panoptic_val"))
    for record, key in zip(evaluation.records, ("../../x", "a/b", "a-b", "A-b", "IMG.1")):
        record["image_id"] = key
    evaluation.run(progress=False)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    written = pictures.Panels(evaluation).draw(failed := [])
    assert not failed and len({path.name.casefold() for path in written}) == 5
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.resolve() for path in written} == new
    assert {path.parent for path in new} == {tmp_path / "output" / "panels"}
    assert "IMG.1.png" in {path.name for path in new}


def test_panels_show_the_evaluations_own_predictions(cfg, monkeypatch):
    """Without a prediction more, and the same picture as one that is predicted again."""
    cfg.MODEL.LQN.METHODS = ("teacher", "untrained", "lqn")
    evaluation = Evaluation(cfg, get_dataset("demo_panoptic_val"))
    panels = pictures.Panels(evaluation).watch()
    evaluation.run(progress=False)
    assert len(panels.kept) == len(evaluation.conditions) * cfg.MODEL.LQN.EVAL.PANEL_IMAGES
    for made in panels.kept.values():
        assert list(made) == ["teacher", "lqn"]
        assert all(list(prediction.output) == ["panoptic_seg"] for prediction in made.values())
    pictured = []

    def predict(*arguments):
        pictured.append(arguments)
        return predict_again(*arguments)

    predict_again = Segmenter.__call__
    monkeypatch.setattr(Segmenter, "__call__", predict)
    (path,) = panels.draw(failed := [])
    own = path.read_bytes()
    assert not failed and not pictured
    resumed = pictures.Panels(Evaluation(cfg, get_dataset("demo_panoptic_val"), resume=True))
    resumed.watch().evaluation.run(progress=False)
    assert not resumed.kept and resumed.draw(failed) == [path]
    assert len(pictured) == 1 and path.read_bytes() == own


def test_turned_photographs_are_scored_upright_or_left_out(
    cfg, small_config, scenes_root, tmp_path, monkeypatch, capsys
):
    """Each scene cut to 64 x 96 and stored on its side: once with labels of the picture, once with
    labels of the stored pixels. The first scores as the picture itself does."""
    metadata = get_dataset("demo_panoptic_val").metadata
    records = get_dataset("demo_panoptic_val").records()
    orders = {"plain": (0, 0), "upright": (1, 0), "stored": (1, 1)}
    monkeypatch.setattr(catalog, "_registered", {})
    for name, (image_turns, label_turns) in orders.items():
        for kind in ("images", "labels"):
            (tmp_path / name / kind).mkdir(parents=True)
        for record in records:
            pixels = np.rot90(read_image(record["file_name"])[:64], image_turns)
            labels = np.rot90(metadata.read_semantic(record)[:64], label_turns)
            exif = Image.Exif()
            exif[0x0112] = 6 if image_turns else 1
            file = f"{record['image_id']}.png"
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            picture.save(tmp_path / name / "images" / file, exif=exif)
            write_label_map(tmp_path / name / "labels" / file, np.ascontiguousarray(labels))
        folders = tmp_path / name / "images", tmp_path / name / "labels"
        register_label_folders(name, *folders, metadata.class_names)
    task = ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False"]
    task += ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", "False"]
    task += ["MODEL.LQN.METHODS", "('teacher',)", "MODEL.LQN.EVAL.CORRUPTIONS", "()"]

    def evaluated(name: str, **how: bool):
        where = ["OUTPUT_DIR", str(tmp_path / f"out_{name}")]
        return evaluate(str(small_config), [*task, *where, "DATASETS.TEST", f"('{name}',)"], **how)

    scores = {n: evaluated(n).metrics["clean"]["teacher"]["sem_seg"] for n in ("plain", "upright")}
    assert repr(scores["plain"]) == repr(scores["upright"])
    capsys.readouterr()
    with pytest.raises(InputError, match="no image can be evaluated: label map"):
        evaluated("stored")
    assert capsys.readouterr().err.count("must be turned too") == 5
    (tmp_path / "stored" / "images" / "0.png").unlink()  # one that fits, and files that do not
    for kind in ("images", "labels"):
        shutil.copy(tmp_path / "plain" / kind / "0.png", tmp_path / "stored" / kind / "0.png")
    (tmp_path / "stored" / "images" / "._0.png").touch()
    report = evaluated("stored")
    printed = capsys.readouterr().out
    assert "stored, 1 image" in printed and "5 entries of the data set" in printed
    assert printed.count("left out: ") == 5 and "._0.png" in printed
    results = json.loads((report.evaluation.folder / "results.json").read_text())
    assert results["images"] == 1 and len(results["not_listed"]) == 5
    with pytest.raises(InputError, match="must be turned too"):
        evaluated("stored", strict=True)


def test_an_image_of_another_size_than_its_record_has_no_score(small_config, machine_root):
    record = get_dataset("demo_panoptic_val").records()[1]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(record["file_name"]).crop((0, 0, 96, 60)).save(record["file_name"], exif=exif)
    report = evaluate(str(small_config))
    assert [r["image_id"] for r in report.evaluation.scored] == [0, 2, 3, 4]
    (reason,) = {*report.evaluation.failures.values()}
    assert "is 96 x 60 (height x width) with its EXIF orientation 6 applied" in reason
    assert "its annotation says 96 x 96" in reason
    with pytest.raises(InputError, match="EXIF orientation 6 applied"):
        evaluate(str(small_config), strict=True)


def test_turned_images_whose_size_tells_nothing_are_named_once(small_config, machine_root, capsys):
    exif = Image.Exif()
    exif[0x0112] = 3
    for record in get_dataset("demo_panoptic_val").records()[1:3]:
        Image.open(record["file_name"]).save(record["file_name"], exif=exif)
    evaluate(str(small_config))
    assert capsys.readouterr().err.count("has the EXIF orientation 3: its labels must be") == 1
