"""The configuration: defaults stand once, names are checked, files merge into either engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fvcore.common.config import CfgNode

from lqn_seg.adapt.dense.settings import Cotta, MultiScale, Sar, Tent
from lqn_seg.adapt.methods import SegmentationConfig
from lqn_seg.cli.parser import names
from lqn_seg.config.methods import adaptation
from lqn_seg.config.nodes import (
    add_lqn_config,
    augmentation_config,
    get_cfg,
    get_classification_cfg,
    load_any_cfg,
    load_cfg,
    load_classification_cfg,
    lqn_config,
    method_config,
    methods,
    segmentation_config,
)
from lqn_seg.core.config import PRESETS, VARIANTS, with_variant
from lqn_seg.data import catalog
from lqn_seg.data.augmentation import AugmentationConfig
from lqn_seg.data.catalog import Category, Metadata, get_dataset
from lqn_seg.engine.evaluate import build_evaluators
from lqn_seg.errors import InputError
from lqn_seg.evaluation import CityscapesEvaluator, SemanticEvaluator

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_nodes_defaults_are_the_dataclasses():
    cfg = get_cfg()
    assert lqn_config(cfg) == PRESETS["default"]
    assert segmentation_config(cfg) == SegmentationConfig()


def leaves(node: CfgNode) -> int:
    return sum(leaves(v) if isinstance(v, CfgNode) else 1 for v in node.values())


def test_our_keys_fit_a_screen():
    cfg = get_classification_cfg()
    assert leaves(cfg.MODEL.LQN) + leaves(cfg.CLASSIFICATION) <= 50


@pytest.mark.parametrize(
    "key, value, field",
    [
        ("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False, "semantic"),
        ("MODEL.MASK_FORMER.TEST.INSTANCE_ON", True, "instances"),
        ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False, "panoptic"),
        ("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.3, "object_mask_threshold"),
        ("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.3, "overlap_threshold"),
        ("MODEL.LQN.BATCH", 3, "batch"),
        ("MODEL.LQN.TEMPERATURE", 1.5, "temperature"),
        ("MODEL.LQN.EVAL.THREADS", 3, "threads"),
        ("SEED", 7, "seed"),
    ],
)
def test_a_key_changes_its_field_alone(key, value, field):
    cfg = get_cfg()
    cfg.merge_from_list([key, value])
    assert segmentation_config(cfg) == replace(SegmentationConfig(), **{field: value})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_taken_whole_and_changed_key_by_key(name):
    cfg = get_cfg()
    cfg.MODEL.LQN.PRESET = name
    assert lqn_config(cfg) == PRESETS[name]
    cfg.merge_from_list(["MODEL.LQN.FIT.STEPS", "7", "MODEL.LQN.STUDENT.WIDTHS", "(8, 8)"])
    changed = lqn_config(cfg)
    assert changed.fit.steps == 7 and changed.student.widths == (8, 8)
    assert changed.fit.learning_rate == PRESETS[name].fit.learning_rate


def test_every_variant_and_its_alias_is_a_method():
    cfg = get_cfg()
    for name in VARIANTS:
        method = method_config(cfg, name)
        assert (method is None) == (name == "teacher")
        assert method is None or method.fit.variant == name
    assert method_config(cfg, "two-word") == method_config(cfg, "lqn")


def test_the_untrained_control_is_the_recipe_with_no_step():
    cfg = get_cfg()
    for name, recipe in (("untrained", "default"), ("untrained@distill", "distill")):
        base = PRESETS[recipe]
        assert method_config(cfg, name) == replace(base, fit=replace(base.fit, steps=0))


@pytest.mark.parametrize(
    "name, reason",
    [("untraind", "did you mean 'untrained'"), ("lager", "did you mean 'larger'")]
    + [("blur@paper", "blur has no recipe"), ("lqn@papper", "did you mean 'paper'")],
)
def test_a_method_that_is_none_is_named(name, reason):
    with pytest.raises(InputError, match=reason):
        method_config(get_cfg(), name)


@pytest.mark.parametrize(
    "name, method",
    [
        ("tent", Tent()),
        ("tent(steps=3,learning_rate=1e-4)", Tent(3, 1e-4)),
        ("sar(continual=true)", Sar(continual=True)),
        ("cotta(scales=[0.5,1.0], restored=0)", Cotta(scales=(0.5, 1.0), restored=0.0)),
        ("multiscale(flip=false)", MultiScale(flip=False)),
    ],
)
def test_settings_stand_in_brackets_behind_a_name(name, method):
    assert method_config(get_cfg(), name) == method


@pytest.mark.parametrize(
    "name, reason",
    [
        ("tent(step=3)", "did you mean 'steps'"),
        ("tent(steps=many)", "method tent.STEPS: expected `int`.* not 'many'"),
        ("tent(steps=-1)", "method tent.STEPS: expected `int` >= 0"),
        ("tent(steps)", "method tent.STEPS: expected `int`"),
        ("tent(steps=3", "settings stand like this"),
        ("tent(steps=[)", "settings stand like this"),
        ("tent()", "settings stand like this"),
        ("lqn(steps=3)", "lqn takes no settings in brackets"),
        ("blur(steps=3)", "blur takes no settings in brackets"),
        ("tent@paper", "tent has no recipe"),
        ("tnet(steps=3)", "did you mean 'tent'"),
    ],
)
def test_settings_that_cannot_be_are_named(name, reason):
    with pytest.raises(InputError, match=reason):
        method_config(get_cfg(), name)


def test_commas_in_brackets_are_a_names_own():
    listed = ["teacher", "tent(steps=3,learning_rate=1e-4)", "cotta(scales=[1.0,2.0])"]
    assert names(",".join(listed)) == listed


def test_a_recipe_keeps_the_students_sizes_and_nothing_else():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.LQN.STUDENT.WIDTHS", "(8, 8)", "MODEL.LQN.FIT.STEPS", "99"])
    literal = method_config(cfg, "lqn@paper")
    assert literal.student.widths == (8, 8)
    assert literal.fit == PRESETS["paper"].fit
    assert literal.student.init == "normal"
    assert method_config(cfg, "apm@paper").fit == with_variant(PRESETS["paper"], "apm").fit
    cfg.merge_from_list(["MODEL.LQN.FIT.PRECISION", "float32"])  # no part of the recipe
    assert method_config(cfg, "lqn@paper").fit.precision == "float32"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_loads(path):
    cfg = load_cfg(str(path), device="cpu")
    assert cfg.MODEL.META_ARCHITECTURE == "LQNTTTMetaArch"
    assert methods(cfg)
    assert cfg.INPUT.FORMAT == "RGB" and cfg.INPUT.MIN_SIZE_TEST == 0


def mask2former_config(cfg: CfgNode) -> None:
    """What Mask2Former's own function does to the node that both want: it replaces it whole."""
    cfg.MODEL.MASK_FORMER = type(cfg)({"TEST": type(cfg)({"PANOPTIC_ON": False, "NEW": 1})})


def test_beside_mask2former_in_either_order():
    ours_last = CfgNode({"MODEL": CfgNode()})
    mask2former_config(ours_last)
    add_lqn_config(ours_last)
    assert ours_last.MODEL.MASK_FORMER.TEST.NEW == 1
    ours_first = CfgNode({"MODEL": CfgNode()})
    add_lqn_config(ours_first)
    mask2former_config(ours_first)
    assert ours_first == ours_last


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["MODEL.LQN.FITT.STEPS", "3"], r"no key MODEL\.LQN\.FITT; did you mean MODEL\.LQN\.FIT"),
        (["MODEL.LQN.FIT.STEP", "3"], r"did you mean MODEL\.LQN\.FIT\.STEPS"),
        (["MODEL.LQN.METHOD", "lqm"], "did you mean 'lqn'"),
        (["MODEL.LQN.PRESET", "papr"], "did you mean 'paper'"),
        (["MODEL.LQN.FIT.STEPS", "-1"], "steps must not be negative"),
        (["MODEL.LQN.INFERENCE", "tiles"], "pad or windows"),
        (["MODEL.LQN.FIT.STEPS", "abc"], r"LQN\.FIT\.STEPS: expected `int`, got `str`, not 'abc'"),
        (["MODEL.LQN.FIT.STEPS", "2.5"], r"FIT\.STEPS: expected `int`"),
        (["MODEL.LQN.FIT.LEARNING_RATE", "nan"], r"FIT\.LEARNING_RATE: expected `float`"),
        (["MODEL.LQN.FIT.LAYERS", "3"], r"FIT\.LAYERS: expected `str \| array \| null`"),
        (["MODEL.LQN.STUDENT.WIDTHS", "256"], r"STUDENT\.WIDTHS: expected `array`"),
        (["MODEL.LQN.STUDENT.WIDTHS.X", "256"], r"Type mismatch.*STUDENT\.WIDTHS"),
        (["MODEL.LQN.ABLATION", "entrpy"], "did you mean 'entropy'"),
        (["MODEL.LQN.ABLATION", "views"], "is like views-8"),
        (["MODEL.LQN.ABLATION", "source-1"], "is like views-8, source-2-5-8"),
        (["MODEL.LQN.ABLATION", "views-0"], "is like views-8"),
        (["MODEL.LQN.ABLATION", "cls-in-field"], "belongs to the other task"),
        (["MODEL.LQN.EVAL.SEVERITY", "6"], r"EVAL\.SEVERITY: expected `int` <= 5, not 6"),
        (["MODEL.LQN.EVAL.CORRUPTIONS", "('frog',)"], "did you mean 'fog'"),
        (["MODEL.LQN.EVAL.MAX_IMAGES", "-1"], "expected `int` >= 0"),
        (["MODEL.LQN.EVAL.MAX_FAILED", "2"], r"MAX_FAILED: expected `float` <= 1\.0, not 2"),
        (["MODEL.LQN.EVAL.BOOTSTRAP_SAMPLES", "0"], "expected `int` >= 1"),
        (["MODEL.LQN.TRAIN.BACKBON", "x"], r"did you mean MODEL\.LQN\.TRAIN\.BACKBONE"),
        (["MODEL.LQN.TRAIN.AUGMENTATION", "flop"], "'flop': did you mean 'flip'"),
        (["MODEL.LQN.TRAIN.PIXEL_LOSS_WEIGHT", "-1.0"], r"expected `float` >= 0\.0, not -1\.0"),
        (["MODEL.LQN.BASELINE_SIZES", "(800,)"], r"BASELINE_SIZES must be \(least, most\)"),
        (["MODEL.LQN.BATCH"], "has no value"),
        (["MODEL.LQN.BATCH", "many"], "config"),
    ],
)
def test_a_wrong_override_is_named(overrides, sentence, small_config):
    with pytest.raises(InputError, match=sentence) as error:
        load_cfg(str(small_config), overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key, value, got",
    [
        ("FIT.POSITIONS_PER_STEP", "0.05", 0.05),
        ("FIT.POSITIONS_PER_STEP", "300", 300),
        ("FIT.LAYERS", "(1, 2)", (1, 2)),
        ("FIT.LAYERS", "last", "last"),
        ("FIT.ALPHA", "1", 1),
    ],
)
def test_values_of_every_kind_arrive(key, value, got, small_config):
    cfg = load_cfg(str(small_config), [f"MODEL.LQN.{key}", value])
    assert getattr(lqn_config(cfg).fit, key.split(".")[1].lower()) == got


def test_a_method_named_by_hand_replaces_the_files_methods(small_config):
    assert list(methods(load_cfg(str(small_config), ["MODEL.LQN.METHOD", "apm"]))) == ["apm"]


def test_a_wrong_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_cfg(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "a.yaml").write_text("MODEL:\n  LQN:\n    PRESETS: paper\n")
    with pytest.raises(InputError, match=r"a\.yaml: .*MODEL\.LQN\.PRESETS; .*MODEL\.LQN\.PRESET\?"):
        load_cfg(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("MODEL: [1, 2\n")
    with pytest.raises(InputError, match=r"b\.yaml"):
        load_cfg(str(tmp_path / "b.yaml"))
    with pytest.raises(InputError, match="auto, cpu, cuda or mps"):
        load_cfg(str(CONFIGS / "demo_lqn.yaml"), device="gpu")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("MODEL: {LQN: {METHODS: null}}", r"a\.yaml: the key MODEL\.LQN\.METHODS has no value"),
        ("MODEL: {LQN: {METHODS: [3]}}", r"MODEL\.LQN\.METHODS: .* must be text, not 3"),
        ("CLASSIFICATION: {METHODS: [[lqn]]}", r"CLASSIFICATION\.METHODS: .* text, not \['lqn'\]"),
    ],
)
def test_what_yaml_made_of_a_value_is_named(tmp_path, text, sentence):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        load_any_cfg(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("load", [load_cfg, load_any_cfg, load_classification_cfg])
@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "words\n", "3\n"])
def test_a_file_without_keys_is_named(tmp_path, load, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=r"^config .*a\.yaml: .*holds no keys$"):
        load(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\nSEED: 1\n")
    with pytest.raises(InputError, match=r"^config .*b\.yaml: .*_BASE_ holds no keys$"):
        load(str(tmp_path / "b.yaml"))
    (tmp_path / "c.yaml").write_text("1: 2\n")
    with pytest.raises(InputError, match=r"c\.yaml: there is no key 1$"):
        load(str(tmp_path / "c.yaml"))


def test_any_configuration_is_read_as_what_it_is():
    for name, kind in (("demo_lqn", load_cfg), ("classification/demo", load_classification_cfg)):
        path = str(CONFIGS / f"{name}.yaml")
        assert load_any_cfg(path, ["SEED", "7"], "cpu") == kind(path, ["SEED", "7"], "cpu")


@pytest.mark.parametrize("name", ["views-8", "entropy", "source-2-5-8", "fit-per-image", "none"])
def test_an_ablation_is_of_the_configurations_recipe_and_of_no_named_preset(name):
    path, pairs = str(CONFIGS / "demo_lqn.yaml"), ["MODEL.LQN.ABLATION", name]
    cfg, plain = load_cfg(path, pairs), load_cfg(path)
    assert lqn_config(cfg) == replace(lqn_config(plain), ablation=name)
    assert method_config(cfg, "lqn@paper") == method_config(plain, "lqn@paper")


def test_the_cls_token_in_the_field_is_classifications():
    path = str(CONFIGS / "classification" / "demo.yaml")
    cfg = load_classification_cfg(path, ["MODEL.LQN.ABLATION", "cls-in-field"])
    assert adaptation(cfg, "lqn:mean").recipe.ablation == "cls-in-field"


def test_training_is_a_flip_and_nothing_else_by_default():
    assert augmentation_config(get_cfg()) == AugmentationConfig()
    photographs = augmentation_config(load_cfg(str(CONFIGS / "camvid_teacher.yaml"), device="cpu"))
    assert photographs.crop and photographs.hue == 0.05


DATASETS = """
MODEL:
  LQN:
    DATASETS:
      - {NAME: my_panoptic, IMAGE_DIR: i, PANOPTIC_DIR: p, PANOPTIC_JSON: nowhere.json}
      - {NAME: my_labels, IMAGE_DIR: IMAGES, LABEL_DIR: IMAGES, CLASSES: [a, b], IGNORE_LABEL: 9}
DATASETS:
  TEST: ("my_labels",)
"""


def test_data_sets_of_ones_own_are_known_once_the_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "_registered", {})
    path = tmp_path / "own.yaml"
    path.write_text(DATASETS.replace("IMAGES", str(tmp_path)))
    for _ in range(2):  # the same again is no other data set
        cfg = load_cfg(str(path), device="cpu")
    metadata = get_dataset(cfg.DATASETS.TEST[0]).metadata
    assert metadata.class_names == ("a", "b") and metadata.ignore_label == 9
    with pytest.raises(InputError, match=r"nowhere\.json does not exist"):
        get_dataset("my_panoptic")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            "{NAME: x, IMAGE_DIR: i}",
            r"DATASETS\[0\] does not describe a data set: it needs PANOPTIC_JSON",
        ),
        ("words", r"DATASETS\[0\] does not describe a data set"),
        ("{IMAGE_DIR: i, PANOPTIC_DIR: p, PANOPTIC_JSON: j}", r"DATASETS\[0\] has no key NAME"),
        ("{NAME: x, IMAGE_DIR: i, LABEL_DIR: l}", r"DATASETS\[0\] has no key CLASSES"),
        (
            "{NAME: x, IMAGE_DIR: i, PANOPTIC_DIR: p, PANOPTIC_JSON: j, CLASSES: [a]}",
            r"DATASETS\[0\]: there is no key CLASSES; the keys are NAME, IMAGE_DIR, PANOPTIC_DIR",
        ),
        ("{NAME: x, IMAGE_DIR: 3, LABEL_DIR: l, CLASSES: [a]}", "IMAGE_DIR must be text, not 3"),
        (
            "{NAME: coco_2017_val, IMAGE_DIR: i, LABEL_DIR: l, CLASSES: [a]}",
            "'coco_2017_val' is already taken",
        ),
    ],
)
def test_a_badly_described_data_set_is_named(tmp_path, monkeypatch, entry, sentence):
    monkeypatch.setattr(catalog, "_registered", {})
    path = tmp_path / "own.yaml"
    path.write_text(f"MODEL: {{LQN: {{DATASETS: [{entry}]}}}}\n")
    with pytest.raises(InputError, match=sentence):
        load_cfg(str(path), device="cpu")


def test_each_kind_of_data_set_has_its_semantic_evaluator():
    cfg = get_cfg()
    for evaluator_type, kind in (
        ("cityscapes_sem_seg", CityscapesEvaluator),
        ("sem_seg", SemanticEvaluator),
    ):
        metadata = Metadata("x", (Category(0, "road", False),), evaluator_type)
        assert type(build_evaluators(cfg, metadata)["sem_seg"]) is kind


def test_a_whole_number_may_stand_for_a_fraction(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("MODEL: {LQN: {EVAL: {MAX_FAILED: 1}}}\n")
    assert load_cfg(str(path)).MODEL.LQN.EVAL.MAX_FAILED == 1.0
    result = load_cfg(str(path), ["MODEL.LQN.EVAL.MAX_FAILED", "0", "MODEL.LQN.EVAL.SEVERITY", "2"])
    assert repr(result.MODEL.LQN.EVAL.MAX_FAILED) == "0.0" and result.MODEL.LQN.EVAL.SEVERITY == 2
