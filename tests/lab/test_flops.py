"""Closed forms against counters that watch the real modules, and against published numbers."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn import functional as F
from transformers import EomtConfig, EomtForUniversalSegmentation

from lqn_seg.core.alignment import Aligner, Calibration, LayerRange
from lqn_seg.core.config import (
    NO_STUDENT,
    VARIANTS,
    FitConfig,
    LQNConfig,
    StudentConfig,
    preset,
    with_variant,
)
from lqn_seg.core.lqn import StudentFitter, Students
from lqn_seg.core.random import RandomKey
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import (
    clip_on_meta,
    count_clip,
    count_eomt,
    fit_cost,
    measure,
)
from lqn_seg.lab.cost.flops import (
    EomtShape,
    align_gmacs,
    clip_gmacs,
    eomt_gmacs,
    fit_gmacs,
    kernel_gmacs,
    method_gmacs,
    parameter_count,
    pass_macs,
    query_gmacs,
    step_macs,
)
from lqn_seg.lab.cost.flops_report import load_eomt_config

SMALL = dict(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    image_size=48,
    patch_size=8,
    num_queries=7,
    num_blocks=2,
    num_labels=5,
    num_upscale_blocks=1,
)
STUDENT = StudentConfig(input_size=24, stride=4, widths=(40, 24, 16), position_dim=20)
# Its layers after the first dominate, as at full size, so that what a backward pass costs does not
# hang on how the first layer's few rows are handled.
DEEP = replace(STUDENT, widths=(32, 256, 256))
GRID = (3, 4, 5)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *arguments):
        return self.function(*arguments)


def count_fvcore(model: nn.Module, inputs: tuple) -> dict[str, float]:
    """GMACs of ``model(*inputs)`` by operator; attention and einsum by rules that fvcore lacks."""

    def attention(inputs, outputs) -> int:
        query, key, value = (v.type().sizes() for v in inputs[:3])
        return prod(query) * key[-2] + prod(query[:-1]) * value[-2] * value[-1]

    def einsum(inputs, outputs) -> int:
        factors = inputs[0].toIValue().replace(" ", "").split("->")[0].split(",")
        shapes = [v.type().sizes() for v in inputs[1].node().inputs()]
        return prod({i: n for x, y in zip(factors, shapes) for i, n in zip(x, y)}.values())

    analysis = FlopCountAnalysis(model, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention)
    analysis.set_op_handle("aten::einsum", einsum)
    with torch.no_grad():
        return {name: count / 1e9 for name, count in analysis.by_operator().items()}


def small_shape() -> EomtShape:
    return EomtShape.from_config(EomtConfig(**SMALL))


# --- teacher --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 80},
        {"num_hidden_layers": 7, "num_blocks": 3},
        {"num_queries": 19, "num_labels": 11},
        {"num_upscale_blocks": 2, "mlp_ratio": 2},
        {"use_swiglu_ffn": True, "num_register_tokens": 0, "num_channels": 4},
    ],
)
def test_fvcore_torch_and_closed_form_agree(change):
    config = EomtConfig(**{**SMALL, **change})
    closed = sum(eomt_gmacs(EomtShape.from_config(config)).values())
    assert count_eomt(config).gmacs == pytest.approx(closed, rel=1e-9)
    model = EomtForUniversalSegmentation(config).eval().requires_grad_(False)
    model.attn_mask_probs.zero_()
    image = torch.zeros(1, config.num_channels, config.image_size, config.image_size)

    def logits(image):
        output = model(pixel_values=image)
        return output.masks_queries_logits, output.class_queries_logits

    by_operator = count_fvcore(Call(logits), (image,))
    norms = by_operator.pop("layer_norm")  # fvcore alone counts them
    assert sum(by_operator.values()) == pytest.approx(closed, rel=1e-9) and norms > 0
    with torch.no_grad():
        assert measure(lambda: logits(image)).gmacs == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize(
    ("image_size", "queries", "labels", "published"),
    [(512, 100, 150, 395), (1024, 100, 19, 2179), (640, 200, 133, 669), (1280, 200, 133, 4146)],
)
def test_eomt_large_costs_what_is_published(image_size, queries, labels, published):
    config = load_eomt_config()
    config.image_size, config.num_queries, config.num_labels = image_size, queries, labels
    shape = EomtShape.from_config(config)
    assert sum(eomt_gmacs(shape).values()) == pytest.approx(published, rel=0.01)
    # The paper's figures are of several windows.
    windows, paper = {512: (1.83, 721), 1024: (2, 4350)}.get(image_size, (1, published))
    costs = method_gmacs(with_variant(preset("paper"), "teacher"), shape, windows=windows)
    assert costs["gmacs_total"] == pytest.approx(paper, rel=0.01)


@pytest.mark.parametrize("image_size", [0, 448])
def test_clip_by_closed_form_and_counter(image_size):
    model = clip_on_meta("ViT-B-16-quickgelu", image_size)
    closed, counts = clip_gmacs(model), count_clip(model)
    for part, gmacs in closed.items():
        assert counts[part].gmacs == pytest.approx(gmacs, rel=1e-6)
    if image_size:
        assert closed["teacher"] > 4 * 17.56  # four times the patches, and attention's square
    else:  # as CLIP's are published
        assert closed == pytest.approx({"teacher": 17.56, "prompt": 2.98}, abs=0.01)


# --- counters refuse to miss work -----------------------------------------------------------------


def test_attention_on_the_cpu_is_counted_both_ways():
    q, k, v = (torch.zeros(1, 2, n, 4, requires_grad=True) for n in (5, 7, 7))
    cost = measure(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    product = 2 * 5 * 7 * 4 / 1e9  # heads x queries x keys x features
    # Two products forward; backward the scores again, and a gradient for each factor of the two.
    assert cost.forward_gmacs == pytest.approx(2 * product)
    assert cost.backward_gmacs == pytest.approx(5 * product)


# --- student --------------------------------------------------------------------------------------


class Table4(nn.Module):
    """Table 4 as it stands, with the concatenation."""

    def __init__(self, config: StudentConfig, feature_dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 1, config.stride, config.stride)
        inputs = config.image_features + (1 + config.source) * config.position_dim
        inputs += feature_dim if config.guide else 0
        sizes = (inputs, *config.widths, feature_dim)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, image, positions):
        features = self.convolution(image).flatten(1).expand(len(positions), -1)
        hidden = torch.cat((features, positions), dim=1)
        for layer in self.layers[:-1]:
            hidden = layer(hidden).relu()
        return self.layers[-1](hidden)


@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize(
    "change",
    [{}, {"source": False}, {"widths": (8,)}, {"guide": 0.5}],
)
def test_literal_student_pass_is_counted(change, queries):
    config = replace(STUDENT, **change)
    model = Table4(config, 12)
    image = torch.zeros(1, 3, config.input_size, config.input_size)
    # A guided student reads a token besides.
    columns = (1 + config.source) * config.position_dim + (12 if config.guide else 0)
    cost = measure(lambda: model(image, torch.zeros(queries, columns)).sum().backward())
    macs = pass_macs(config, 12, queries)
    assert cost.forward_gmacs == pytest.approx(macs.forward / 1e9, rel=1e-9)
    assert cost.backward_gmacs == pytest.approx(macs.backward / 1e9, rel=1e-9)


@pytest.mark.parametrize("queries", [1, 90])
@pytest.mark.parametrize("recirculates", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"source": False, "axes": 2},
        {"guide": 0.5},
        {"guide": 0.5, "source": False},
    ],
)
def test_our_student_pass_is_counted(change, recirculates, queries):
    config = replace(DEEP, **change)
    variant = {(True, 3): "lqn", (False, 3): "lqn-src", (False, 2): "apm"}[
        config.source, config.axes
    ]
    fitter = StudentFitter(LQNConfig(config, FitConfig(variant, precision="float32")), GRID, 12)
    students = Students(fitter, [RandomKey(0)])
    patches, addresses = torch.zeros(1, 36, 48), torch.ones(1, queries, 3)
    source = addresses if recirculates else 0 * addresses
    values = [torch.arange(n + 1.0) for n in (*GRID[1:], GRID[0])][: config.axes]
    if not recirculates:
        values = [axis[:1] for axis in values]
    tables = students.tables(
        values, [torch.arange(1.0, n + 1) for n in (*GRID[1:], GRID[0])][: config.axes]
    )
    guided = max(1, queries // 3)  # three queries share a guiding token
    guide = torch.zeros(1, guided, 12) if config.guide else None
    cost = measure(lambda: students(patches, tables, source, addresses, guide).sum().backward())
    macs = pass_macs(config, 12, queries, GRID, guided, recirculates)
    assert cost.forward_gmacs == pytest.approx(macs.forward / 1e9, rel=1e-9)
    if queries == 90:
        assert cost.backward_gmacs == pytest.approx(macs.backward / 1e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lqn", {}),
        ("lqn", {"steps": 4, "positions_per_step": 0.8, "target_norm": "layer"}),
        ("lqn", {"alpha": 0.0}),
        ("lqn", {"layers": (1, 3)}),
        ("lqn-src", {}),
        ("apm", {}),
        ("lqn", {"guide": 0.5}),
        ("lqn", {"guide": 1.0, "alpha": 0.0, "layers": "last", "positions_per_step": 15}),
        ("lqn-src", {"guide": 0.1}),
    ],
)
def test_fit_and_query_are_what_the_fitter_runs(name, change):
    fit = {"steps": 2, "positions_per_step": 60, **change}
    student = replace(DEEP, guide=fit.pop("guide", 0.0))
    config = with_variant(LQNConfig(student, FitConfig(**fit)), name)
    fitter = StudentFitter(config, GRID, 12)
    image, field = torch.zeros(1, 3, 24, 24), torch.randn(1, *GRID, 12)
    fitted = []
    counted = measure(lambda: fitted.append(fitter.fit(image, field, [RandomKey(0)])))
    assert counted.gmacs == pytest.approx(fit_gmacs(config, GRID, 12), rel=0.01)
    counted = measure(lambda: fitted[0].query_layer(GRID[0]))
    assert counted.gmacs == pytest.approx(query_gmacs(config, GRID, 12), rel=1e-9)


@pytest.mark.parametrize("name", ["lqn", "lqn-src", "apm"])
def test_a_fit_at_the_papers_size_is_counted_without_memory(name):
    config, grid = with_variant(preset("paper"), name), (12, 14, 14)
    cost, step = fit_cost(config, grid, 768), step_macs(config, grid, 768)
    assert cost.forward_gmacs == pytest.approx(15 * step.forward / 1e9, rel=0.01)
    assert cost.backward_gmacs == pytest.approx(15 * step.backward / 1e9, rel=0.01)
    # weights, gradients and both moments, 4 bytes each, and little beside
    storage = 16 * parameter_count(config.student, 768)
    assert storage < cost.peak_bytes < 1.5 * storage


def test_literal_recipe_costs_about_ten_gmacs_a_pass():
    assert fit_gmacs(LQNConfig(), (12, 14, 14), 768, literal=True) == pytest.approx(1450, rel=0.02)
    # Table 4 at d_p = d_c = 768 and 448 px: 52 to 55 MMACs a query, 196 queries "10 GFLOPs".
    for source, expected in [(True, 55.3), (False, 52.2)]:
        macs = pass_macs(replace(StudentConfig(), source=source), 768, 196).forward
        assert macs / 196 / 1e6 == pytest.approx(expected, abs=0.1)
        assert macs / 1e9 == pytest.approx(10, abs=1.0)


@pytest.mark.parametrize(("layers", "positions"), [(None, 30), ((1, 3), 20)])
def test_fraction_of_positions_is_of_the_fitted_layers(layers, positions):
    half = LQNConfig(STUDENT, FitConfig(positions_per_step=0.5, layers=layers))
    count = LQNConfig(STUDENT, FitConfig(positions_per_step=positions, layers=layers))
    assert fit_gmacs(half, GRID, 12) == fit_gmacs(count, GRID, 12)


# --- methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_method_costs_add_up_and_scale_with_windows(name, literal):
    shape = small_shape()
    config = with_variant(LQNConfig(STUDENT, FitConfig(steps=15)), name)
    costs = method_gmacs(config, shape, literal=literal)
    stages = ("teacher", "align", "fit", "query", "head")
    assert costs["gmacs_total"] == pytest.approx(sum(costs[f"gmacs_{stage}"] for stage in stages))
    double = method_gmacs(config, shape, windows=2, literal=literal)
    assert double == pytest.approx({key: 2 * value for key, value in costs.items()})
    assert (costs["gmacs_fit"] > 0) == (name not in NO_STUDENT)
    restoring = replace(config, adapt=replace(config.adapt, align=True))
    more = method_gmacs(restoring, shape, literal=literal)["gmacs_total"] - costs["gmacs_total"]
    # The teacher is left as it is; "restore" and "field" have it from the start.
    restore = 0 if name in NO_STUDENT else align_gmacs(shape)
    assert more == pytest.approx(restore, rel=1e-9)


def test_restoring_is_counted():
    shape = small_shape()  # restored at layers 0, 1 and 2 of four
    basis = torch.eye(shape.width)
    zero = torch.zeros(2, shape.width)
    clean = LayerRange(torch.zeros(*shape.grid, shape.width), basis, zero, zero, zero[:, 0])
    aligner = Aligner(Calibration({layer: clean for layer in (0, 1, 2)}, 0.1, 0.4, zero[:, :2]))
    tokens = torch.randn(1, *shape.grid, shape.width)
    counted = measure(lambda: [aligner(layer, tokens) for layer in range(5)]).gmacs
    assert counted == pytest.approx(align_gmacs(shape), rel=1e-9)


def test_closed_form_controls_by_hand():
    kernel, ridge = (kernel_gmacs((24, 3, 4), 5, solve) for solve in (False, True))
    # 12 x 12 products of 5 features, then as many weights times 5 features
    assert kernel == pytest.approx((12 * 12 * 5 + 12 * 12 * 5) / 1e9)
    # LU of a 12 x 12 matrix: (n - k)^2 multiply-adds (and n - k divisions, not counted) at pivot
    # k; then two triangles against five right-hand sides
    lu = sum((12 - k) ** 2 for k in range(1, 13))
    solve = 5 * 2 * sum(range(12))
    assert ridge - kernel == pytest.approx((lu + solve) / 1e9, rel=0.15)


def test_paper_convention_is_fourteen_single_forward_passes():
    shape = small_shape()
    config = LQNConfig(STUDENT, FitConfig(steps=15, positions_per_step=6))
    costs = method_gmacs(config, shape)
    student = costs["gmacs_paper_convention"] - costs["gmacs_teacher"] - costs["gmacs_head"]
    forward = pass_macs(STUDENT, shape.width, 6).forward / 1e9
    assert student == pytest.approx(14 * forward)
    costs = method_gmacs(replace(config, fit=FitConfig(steps=0)), shape)
    assert costs["gmacs_fit"] == 0 and costs["gmacs_query"] > 0
    assert costs["gmacs_paper_convention"] == costs["gmacs_teacher"] + costs["gmacs_head"]


# --- configurations and the command ---------------------------------------------------------------


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools" / "analyze_flops.py"
    spec = importlib.util.spec_from_file_location("analyze_flops", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_eomt_config_is_read_from_a_directory(tmp_path):
    EomtConfig(**SMALL).save_pretrained(tmp_path)
    assert EomtShape.from_config(load_eomt_config(str(tmp_path))).grid == (6, 6)
    with pytest.raises(InputError, match=r"config\.json"):
        load_eomt_config(str(tmp_path / "missing"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError, match="'vit', not an 'eomt'"):
        load_eomt_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        load_eomt_config(str(tmp_path))


def test_command_gives_the_papers_sum_for_clip(tool, capsys):
    assert tool.main(["--clip", "ViT-B-16-quickgelu", "--count"]) == 0
    printed = capsys.readouterr().out
    assert "17.56 + one prompt 2.98 = 20.54" in printed and "20.5 + 14 x 10.2" in printed
    assert tool.main(["--clip", "ViT-B-17"]) == 2
    assert "no model 'ViT-B-17'" in capsys.readouterr().err


def test_command_prints_every_method_and_fails_in_one_sentence(tool, tmp_path, capsys):
    EomtConfig(**SMALL).save_pretrained(tmp_path)
    arguments = ["--teacher", str(tmp_path), "--preset", "slim", "--steps", "7", "--count"]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr().out
    for text in (*VARIANTS, "7 steps", "counted by torch", "closed form"):
        assert text in printed
    for bad in (["--teacher", str(tmp_path / "missing")], ["--preset", "papr"]):
        assert tool.main(bad) == 2
        assert capsys.readouterr().err.startswith("error: ")
