from __future__ import annotations

import dataclasses
import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import flop_counter
from transformers import EomtConfig, EomtForUniversalSegmentation

from lqn_seg.core.alignment import Calibration, LayerRange, Restorer
from lqn_seg.core.config import (
    VARIANTS,
    AdaptConfig,
    FitConfig,
    LQNConfig,
    StudentConfig,
    preset,
    with_variant,
)
from lqn_seg.core.fit import StudentFitter
from lqn_seg.core.positions import grid_rows, grid_table
from lqn_seg.core.random import RandomKey
from lqn_seg.core.student import Students, image_patches, parameter_count
from lqn_seg.errors import InputError
from lqn_seg.lab.cost.cost import fit_cost
from lqn_seg.lab.cost.flops import (
    FLOP_RULES,
    ClipShape,
    EomtShape,
    UncountedOperatorError,
    clip_gmacs,
    clip_on_meta,
    closed_form_gmacs,
    count_clip,
    count_eomt,
    count_fvcore,
    count_torch,
    eomt_gmacs,
    eomt_resume_gmacs,
    fit_gmacs,
    literal_pass_macs,
    load_eomt_config,
    method_gmacs,
    readout_gmacs,
    restore_gmacs,
    shared_pass_macs,
    step_macs,
    vit_gmacs,
)

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
DEEP = dataclasses.replace(STUDENT, widths=(32, 256, 256))
GRID = (3, 4, 5)


# --- teacher --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"image_size": 80},
        {"image_size": [48, 48], "patch_size": [16, 16]},
        {"num_hidden_layers": 7, "num_blocks": 3},
        {"num_queries": 19, "num_labels": 11},
        {"num_upscale_blocks": 2, "mlp_ratio": 2},
        {"use_swiglu_ffn": True, "num_register_tokens": 0, "num_channels": 4},
    ],
)
def test_fvcore_torch_and_closed_form_agree(change):
    if isinstance(change.get("image_size"), list):
        # transformers itself only takes square sizes given as one number
        change = {key: value[0] for key, value in change.items()}
    config = EomtConfig(**{**SMALL, **change})
    closed = sum(eomt_gmacs(EomtShape.from_config(config)).values())
    by_torch, by_fvcore = count_eomt(config, "torch"), count_eomt(config, "fvcore")
    assert by_torch.gmacs == pytest.approx(closed, rel=1e-9)
    norms = by_fvcore.by_operator["layer_norm"]  # fvcore alone counts them
    assert by_fvcore.gmacs - norms == pytest.approx(closed, rel=1e-9)


def test_counts_on_meta_are_those_of_a_model_with_weights():
    config = EomtConfig(**SMALL)
    model = EomtForUniversalSegmentation(config).eval()
    model.attn_mask_probs.zero_()
    image = torch.zeros(1, 3, 48, 48)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            output = self.model(pixel_values=image)
            return output.masks_queries_logits, output.class_queries_logits

    assert count_fvcore(Logits(), (image,)).by_operator == pytest.approx(
        count_eomt(config).by_operator
    )
    with torch.no_grad():
        on_cpu = count_torch(lambda: model(pixel_values=image))
    assert on_cpu.gmacs == pytest.approx(count_eomt(config, "torch").gmacs)


@pytest.mark.parametrize(
    ("image_size", "queries", "labels", "published"),
    [(512, 100, 150, 395), (1024, 100, 19, 2179), (640, 200, 133, 669), (1280, 200, 133, 4146)],
)
def test_eomt_large_costs_what_is_published(image_size, queries, labels, published):
    config = load_eomt_config()
    config.image_size, config.num_queries, config.num_labels = image_size, queries, labels
    closed = sum(eomt_gmacs(EomtShape.from_config(config)).values())
    counted = count_eomt(config).gmacs
    assert closed == pytest.approx(published, rel=0.01)
    assert counted == pytest.approx(published, rel=0.01)
    assert counted == pytest.approx(closed, rel=0.01)


def test_windows_give_the_papers_figures_for_the_teacher():
    config = load_eomt_config()
    teacher = with_variant(preset("paper"), "teacher")
    config.num_queries = 100
    for size, labels, windows, paper in [(512, 150, 1.83, 721), (1024, 19, 2, 4350)]:
        config.image_size, config.num_labels = size, labels
        costs = method_gmacs(teacher, EomtShape.from_config(config), windows=windows)
        assert costs["gmacs_total"] == pytest.approx(paper, rel=0.01)


def test_vit_gives_clips_published_cost():
    image = vit_gmacs(196, 16 * 16 * 3, 768, 12, 3072)
    prompt = vit_gmacs(77, 0, 512, 12, 2048, extra_tokens=0)
    assert image == pytest.approx(17.56, abs=0.01)
    assert prompt == pytest.approx(2.98, abs=0.01)


@pytest.mark.parametrize("image_size", [0, 448])
def test_clip_by_closed_form_and_both_counters(image_size):
    model = clip_on_meta("ViT-B-16-quickgelu", image_size)
    closed = clip_gmacs(ClipShape.from_model(model))
    by_torch, by_fvcore = count_clip(model, "torch"), count_clip(model, "fvcore")
    for part, gmacs in closed.items():
        assert by_torch[part].gmacs == pytest.approx(gmacs, rel=1e-6)
        assert by_fvcore[part].gmacs == pytest.approx(gmacs, rel=0.01)
        assert "scaled_dot_product_attention" in by_fvcore[part].by_operator
    if image_size:
        assert closed["teacher"] > 4 * 17.56  # four times the patches, and attention's square
    else:
        assert sum(closed.values()) == pytest.approx(20.5, abs=0.05)
    with pytest.raises(InputError, match="no model 'ViT-Z'"):
        clip_on_meta("ViT-Z")


def test_resuming_costs_the_blocks_that_are_left():
    shape = EomtShape.from_config(EomtConfig(**SMALL))
    costs = [eomt_resume_gmacs(shape, layer) for layer in range(shape.layers + 1)]
    blocks = [a - b for a, b in pairwise(costs)]
    assert costs[-1] == 0
    assert blocks[0] == pytest.approx(blocks[1]) and blocks[2] == pytest.approx(blocks[3])
    assert blocks[2] > blocks[1]  # queries join
    assert costs[0] < eomt_gmacs(shape)["teacher"]  # which embeds the patches too
    with pytest.raises(InputError, match="after layer 5"):
        eomt_resume_gmacs(shape, 5)


def test_layers_counted_one_by_one_are_what_resume_says():
    config = EomtConfig(**SMALL)
    model = EomtForUniversalSegmentation(config).eval()
    tokens = torch.zeros(1, 36 + 5 + 7, 32)
    with torch.no_grad():
        counted = count_torch(lambda: model.layers[3](tokens, None)).gmacs
    assert counted == pytest.approx(eomt_resume_gmacs(EomtShape.from_config(config), 3))


# --- counters refuse to miss work -----------------------------------------------------------------


class _Uncounted(nn.Module):
    def forward(self, a, b):
        return torch.baddbmm(a, a, b)  # fvcore has no rule for it


def test_fvcore_refuses_an_uncounted_matrix_product():
    x = torch.zeros(2, 3, 3)
    with pytest.raises(UncountedOperatorError, match="baddbmm"):
        count_fvcore(_Uncounted(), (x, x))


def test_fvcore_alone_would_miss_attention():
    from fvcore.nn import FlopCountAnalysis

    class Attention(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v)

    q, k, v = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 7, 4), torch.zeros(2, 3, 7, 6)
    assert FlopCountAnalysis(Attention(), (q, k, v)).total() == 0
    expected = 2 * 3 * 5 * 7 * (4 + 6) / 1e9
    assert count_fvcore(Attention(), (q, k, v)).gmacs == pytest.approx(expected)


def test_torch_counter_refuses_an_uncounted_matrix_product():
    with pytest.raises(UncountedOperatorError, match=r"aten\.mv"):
        count_torch(lambda: torch.mv(torch.zeros(3, 3), torch.zeros(3)))


def test_attention_on_the_cpu_is_counted_whatever_rules_pytorch_has(monkeypatch):
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    registry = {
        packet: rule
        for packet, rule in flop_counter.flop_registry.items()
        if packet not in (kernel, backward)
    }
    monkeypatch.setattr(flop_counter, "flop_registry", registry)
    q, k, v = (torch.zeros(1, 2, n, 4, requires_grad=True) for n in (5, 7, 7))
    product = 2 * 5 * 7 * 4 / 1e9  # heads x queries x keys x features

    counted = count_torch(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())

    # Two products forward; backward the scores again, and a gradient for each factor of the two.
    assert counted.by_operator[str(kernel)] == pytest.approx(2 * product)
    assert counted.by_operator[str(backward)] == pytest.approx(5 * product)


def test_torch_counter_refuses_attention_it_has_no_rule_for(monkeypatch):
    packet = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    monkeypatch.delitem(FLOP_RULES, packet)
    monkeypatch.setattr(flop_counter, "flop_registry", {})  # a kernel that no release knows
    q = torch.zeros(1, 2, 5, 4)
    with torch.no_grad(), pytest.raises(UncountedOperatorError, match="flash_attention_for_cpu"):
        count_torch(lambda: F.scaled_dot_product_attention(q, q, q))


def test_einsum_is_counted_exactly_or_not_at_all():
    class Einsum(nn.Module):
        def __init__(self, equation):
            super().__init__()
            self.equation = equation

        def forward(self, *factors):
            return torch.einsum(self.equation, *factors)

    a, b = torch.zeros(2, 11, 13), torch.zeros(2, 13, 17, 19)
    counted = count_fvcore(Einsum("bqc, bchw -> bqhw"), (a, b)).gmacs
    assert counted == pytest.approx(2 * 11 * 13 * 17 * 19 / 1e9, rel=1e-12)
    with pytest.raises(UncountedOperatorError, match="einsum"):
        count_fvcore(Einsum("ij,jk,kl->il"), (torch.zeros(2, 2),) * 3)


def test_unknown_counter_is_named():
    with pytest.raises(InputError, match="'perf'"):
        count_eomt(EomtConfig(**SMALL), "perf")


# --- student --------------------------------------------------------------------------------------


class _Table4(nn.Module):
    """Table 4 as it stands, with the concatenation."""

    def __init__(self, config: StudentConfig, feature_dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 1, config.stride, config.stride)
        inputs = config.image_features + config.locations * config.position_dim
        inputs += feature_dim if config.guide else 0
        sizes = (inputs, *config.widths, feature_dim)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, image, positions):
        features = self.convolution(image).flatten(1).expand(len(positions), -1)
        hidden = torch.cat((features, positions), dim=1)
        for layer in self.layers[:-1]:
            hidden = layer(hidden).relu()
        return self.layers[-1](hidden)


def _literal_counts(config, feature_dim, queries):
    model = _Table4(config, feature_dim)
    image = torch.zeros(1, 3, config.input_size, config.input_size)
    # A guided student reads a token besides.
    columns = config.locations * config.position_dim + (feature_dim if config.guide else 0)
    positions = torch.zeros(queries, columns)
    forward = count_torch(lambda: model(image, positions)).gmacs
    output = model(image, positions).sum()
    return forward, count_torch(output.backward).gmacs


@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize(
    "change",
    [{}, {"source": False}, {"widths": (8,)}, {"combine": "add"}, {"guide": 0.5}],
)
def test_literal_student_pass_is_counted(change, queries):
    config = dataclasses.replace(STUDENT, **change)
    macs = literal_pass_macs(config, 12, queries)
    forward, backward = _literal_counts(config, 12, queries)
    assert forward == pytest.approx(macs.forward / 1e9, rel=1e-9)
    assert backward == pytest.approx(macs.backward / 1e9, rel=1e-9)


@pytest.mark.parametrize("queries", [1, 90])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"source": False},
        {"source": False, "axes": 2},
        {"combine": "add"},
        {"guide": 0.5},
        {"guide": 0.5, "source": False},
    ],
)
def test_our_student_pass_is_counted(change, queries):
    config = dataclasses.replace(DEEP, **change)
    students = Students(config, 12)
    patches = image_patches(torch.zeros(1, 3, 24, 24), config.stride)
    table = grid_table(GRID, config.position_dim, config.axes)
    addresses = grid_rows(torch.ones(1, queries, 3, dtype=torch.int64), GRID, config.axes)
    table_rows = len(table.destination)
    guided = max(1, queries // 3)  # three queries share a guiding token
    guide = torch.zeros(1, guided, 12) if config.guide else None
    rows = students.rows(table, addresses if config.source else None, addresses)
    macs = shared_pass_macs(config, 12, queries, table_rows, guided)
    with torch.no_grad():
        forward = count_torch(lambda: students(patches, table, rows, guide)).gmacs
    assert forward == pytest.approx(macs.forward / 1e9, rel=1e-9)
    if queries == 90:
        output = students(patches, table, rows, guide).sum()
        backward = count_torch(output.backward).gmacs
        assert backward == pytest.approx(macs.backward / 1e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lqn", {}),
        ("lqn", {"steps": 4, "positions_per_step": 0.8, "target_norm": "layer"}),
        ("lqn", {"alpha": 0.0}),
        ("lqn", {"layers": (1, 3), "readout_source": (2, 2.5, 3)}),
        ("lqn", {"readout_source": "random"}),
        ("lqn-src", {}),
        ("apm", {}),
        ("lqn", {"guide": 0.5}),
        ("lqn", {"guide": 1.0, "alpha": 0.0, "layers": "last", "positions_per_step": 15}),
        ("lqn-src", {"guide": 0.1}),
    ],
)
def test_fit_and_readout_are_what_the_fitter_runs(name, change):
    fit = {"steps": 2, "positions_per_step": 60, **change}
    student = dataclasses.replace(DEEP, guide=fit.pop("guide", 0.0))
    base = LQNConfig(student, FitConfig(**fit))
    config = with_variant(base, name)
    fitter = StudentFitter(config, GRID, 12)
    image, field = torch.zeros(1, 3, 24, 24), torch.randn(1, *GRID, 12)
    fitted = []
    counted = count_torch(lambda: fitted.append(fitter.fit(image, field, [RandomKey(0)])))
    assert counted.gmacs == pytest.approx(fit_gmacs(config, GRID, 12), rel=0.01)
    counted = count_torch(lambda: fitted[0].query_layer(GRID[0]))
    assert counted.gmacs == pytest.approx(readout_gmacs(config, GRID, 12), rel=1e-9)


def test_a_step_projects_the_guide_where_it_looks_and_nowhere_else():
    """A student whose guide is most of what it costs; two of the grid's twenty places a step."""
    student = dataclasses.replace(DEEP, widths=(64,), guide=0.5)
    config = LQNConfig(student, FitConfig(steps=2, positions_per_step=2, alpha=0.0))
    fitter = StudentFitter(config, GRID, 256)
    image, field = torch.zeros(1, 3, 24, 24), torch.randn(1, *GRID, 256)
    counted = count_torch(lambda: fitter.fit(image, field, [RandomKey(0)]))
    assert counted.gmacs == pytest.approx(fit_gmacs(config, GRID, 256), rel=0.01)


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
    # Table 4 at d_p = d_c = 768 and 448 px: 52 to 55 MMACs a query, 196 queries "10 GFLOPs".
    config = StudentConfig()
    for source, expected in [(True, 55.3), (False, 52.2)]:
        change = dataclasses.replace(config, source=source)
        macs = literal_pass_macs(change, 768, 196).forward
        assert macs / 196 / 1e6 == pytest.approx(expected, abs=0.1)
        assert macs / 1e9 == pytest.approx(10, abs=1.0)


def test_fraction_of_positions_is_of_the_fitted_layers():
    whole = LQNConfig(STUDENT, FitConfig(positions_per_step=0.5))
    count = LQNConfig(STUDENT, FitConfig(positions_per_step=30))
    assert fit_gmacs(whole, GRID, 12) == fit_gmacs(count, GRID, 12)
    half = LQNConfig(STUDENT, FitConfig(positions_per_step=0.5, layers=(1, 3)))
    count = LQNConfig(STUDENT, FitConfig(positions_per_step=20))
    assert fit_gmacs(half, GRID, 12) == fit_gmacs(count, GRID, 12)


# --- methods --------------------------------------------------------------------------------------


def test_method_costs_add_up_and_scale_with_windows():
    shape = EomtShape.from_config(EomtConfig(**SMALL))
    for name in VARIANTS:
        config = with_variant(LQNConfig(STUDENT, FitConfig(steps=15)), name)
        for literal in (False, True):
            costs = method_gmacs(config, shape, literal=literal)
            stages = ("teacher", "restore", "fit", "readout", "head")
            total = sum(costs[f"gmacs_{stage}"] for stage in stages)
            assert costs["gmacs_total"] == pytest.approx(total)
            double = method_gmacs(config, shape, windows=2, literal=literal)
            assert double == pytest.approx({key: 2 * value for key, value in costs.items()})
        if name in ("teacher", "restore"):
            assert costs["gmacs_fit"] == costs["gmacs_readout"] == 0
            counted = costs["gmacs_paper_convention"] + costs["gmacs_restore"]
            assert costs["gmacs_total"] == pytest.approx(counted)
        else:
            assert costs["gmacs_fit"] > 0
        restoring = dataclasses.replace(config, adapt=AdaptConfig(restore=True))
        more = method_gmacs(restoring, shape)["gmacs_total"]
        plain = method_gmacs(config, shape)["gmacs_total"]
        # The teacher is left as it is; "restore" has it from the start.
        restore = 0 if name in ("teacher", "restore") else restore_gmacs(shape)
        assert more == pytest.approx(plain + restore, rel=1e-12)


def test_restoring_is_counted():
    shape = EomtShape.from_config(EomtConfig(**SMALL))  # restored at layers 0, 1 and 2 of four
    basis = torch.eye(shape.width)
    zero = torch.zeros(2, shape.width)
    clean = LayerRange(torch.zeros(*shape.grid, shape.width), basis, zero, zero, zero[:, 0])
    restorer = Restorer(Calibration({layer: clean for layer in (0, 1, 2)}, 0.1, 0.4, zero[:, :2]))
    tokens = torch.randn(1, *shape.grid, shape.width)
    counted = count_torch(lambda: [restorer(layer, tokens) for layer in range(5)]).gmacs
    assert counted == pytest.approx(restore_gmacs(shape), rel=1e-9)


def test_closed_form_controls_by_hand():
    kernel, ridge = (
        closed_form_gmacs(with_variant(LQNConfig(), name), (24, 3, 4), 5)
        for name in ("kernel", "ridge")
    )
    # 12 x 12 products of 5 features, then as many weights times 5 features
    assert kernel == pytest.approx((12 * 12 * 5 + 12 * 12 * 5) / 1e9)
    # LU of a 12 x 12 matrix: (n - k)^2 multiply-adds (and n - k divisions, not counted) at pivot
    # k; then two triangles against five right-hand sides
    lu = sum((12 - k) ** 2 for k in range(1, 13))
    solve = 5 * 2 * sum(range(12))
    assert ridge - kernel == pytest.approx((lu + solve) / 1e9, rel=0.15)


def test_paper_convention_is_fourteen_single_forward_passes():
    shape = EomtShape.from_config(EomtConfig(**SMALL))
    config = LQNConfig(STUDENT, FitConfig(steps=15, positions_per_step=6))
    costs = method_gmacs(config, shape)
    student = costs["gmacs_paper_convention"] - costs["gmacs_teacher"] - costs["gmacs_head"]
    forward = literal_pass_macs(STUDENT, shape.width, 6).forward / 1e9
    assert student == pytest.approx(14 * forward)
    no_steps = dataclasses.replace(config, fit=FitConfig(steps=0))
    costs = method_gmacs(no_steps, shape)
    assert costs["gmacs_fit"] == 0 and costs["gmacs_readout"] > 0
    assert costs["gmacs_paper_convention"] == costs["gmacs_teacher"] + costs["gmacs_head"]


def test_sharing_the_first_layer_never_costs_more_at_the_papers_size():
    shape = EomtShape.from_config(load_eomt_config())
    for name in ("lqn", "lqn-src", "apm"):
        config = with_variant(preset("paper"), name)
        ours, literal = (method_gmacs(config, shape, literal=flag) for flag in (False, True))
        assert ours["gmacs_fit"] < literal["gmacs_fit"]
        assert ours["gmacs_readout"] < literal["gmacs_readout"]
        assert ours["gmacs_paper_convention"] == literal["gmacs_paper_convention"]


# --- configurations and the command ---------------------------------------------------------------


def load_tool():
    path = Path(__file__).parents[2] / "tools" / "analyze_flops.py"
    spec = importlib.util.spec_from_file_location("analyze_flops", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_eomt_config_is_read_from_a_directory(tmp_path):
    EomtConfig(**SMALL).save_pretrained(tmp_path)
    assert EomtShape.from_config(load_eomt_config(str(tmp_path))).grid == (6, 6)
    with pytest.raises(InputError, match=r"config\.json"):
        load_eomt_config(str(tmp_path / "missing"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError, match="'vit', not an 'eomt'"):
        load_eomt_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="Cannot read"):
        load_eomt_config(str(tmp_path))


def test_command_gives_the_papers_sum_for_clip(capsys):
    tool = load_tool()
    assert tool.main(["--clip", "ViT-B-16-quickgelu", "--count"]) == 0
    printed = capsys.readouterr().out
    assert "17.56 + one prompt 2.98 = 20.54" in printed and "20.5 + 14 x 10.2" in printed
    assert tool.main(["--clip", "ViT-B-17"]) == 2
    assert "ViT-B-17" in capsys.readouterr().err


def test_command_prints_every_method_and_fails_in_one_sentence(tmp_path, capsys):
    tool = load_tool()
    EomtConfig(**SMALL).save_pretrained(tmp_path)
    arguments = ["--teacher", str(tmp_path), "--preset", "slim", "--steps", "7", "--count"]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr().out
    for text in (*VARIANTS, "7 steps", "counted by fvcore", "closed form"):
        assert text in printed
    for bad in (["--teacher", str(tmp_path / "missing")], ["--preset", "papr"]):
        assert tool.main(bad) == 2
        assert capsys.readouterr().err.startswith("error: ")
