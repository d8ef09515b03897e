from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from lqn_seg.core.fast import graphs
from lqn_seg.core.fast.graphs import Replay, constant
from lqn_seg.core.fit import FittedStudents, StudentFitter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lqn_seg.core import student
from lqn_seg.core.config import FitConfig, LQNConfig, StudentConfig, with_variant
from lqn_seg.core.random import CounterRandom, RandomKey

GRID, FEATURES = (4, 5, 6), 8
CONFIG = LQNConfig(
    StudentConfig(input_size=28, stride=7, widths=(32, 16), position_dim=22, init="he", guide=0.5),
    FitConfig(steps=3, positions_per_step=16, target_norm="layer", precision="float32"),
)
# Operators that wait for the device to hand over a number or a shape, and the ones that send it
# numbers of the host's: neither may be captured.
FORBIDDEN = {
    *("_local_scalar_dense", "nonzero", "masked_select", "unique2", "_unique2", "item"),
    *("unique_dim", "unique_consecutive", "equal", "is_nonzero", "lift_fresh", "_to_copy"),
}


class HostWatch(TorchDispatchMode):
    """Notes every operator that a capture would not survive."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        moved = name == "_to_copy" and kwargs.get("device") is None  # another type, same device
        if name in FORBIDDEN and not moved:
            self.seen.add(name)
        return func(*args, **kwargs)


def record_by_running_again(function, inputs):
    """What a CUDA graph does, on a CPU: the same work, on the same tensors, to the same tensors."""
    outputs = function(*inputs)

    def leaves(structure):
        flat = []
        for item in tree_leaves(structure):
            if isinstance(item, torch.Tensor):
                flat.append(item)
            elif hasattr(item, "__dict__"):
                flat += leaves(list(vars(item).values()))
        return flat

    def replay():
        again = function(*inputs)
        for place, new in zip(leaves(outputs), leaves(again), strict=True):
            place.copy_(new)

    return outputs, replay


@pytest.fixture
def shots(make_fields):
    images = torch.randn(2, 2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    return [(images[k], make_fields(2, GRID, FEATURES, seed=k)) for k in range(2)]


@pytest.mark.parametrize("variant", ["lqn", "lqn-src", "apm"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_fit_neither_waits_for_the_device_nor_sends_it_numbers(shots, variant, precision):
    config = with_variant(CONFIG, variant)
    config = replace(config, fit=replace(config.fit, precision=precision))
    fitter = StudentFitter(config, GRID, FEATURES)
    keys = [RandomKey(0, b) for b in range(2)]
    fitted = fitter.fit(*shots[0], keys)  # constants are sent once
    fitted.query_layer(4)
    words = torch.tensor(keys)
    with HostWatch() as watch:
        fitted.query_layer(4)
        fitter.fit_tensors(words, *shots[1])
    assert not watch.seen
    with HostWatch() as watch:
        torch.tensor([1.0, 2.0]).unique().sum().item()
    assert {"lift_fresh", "_local_scalar_dense"} <= watch.seen


@pytest.fixture
def gradients_by_hand(monkeypatch):
    """The students' own way back, without PyTorch's engine, which wants a real device for it."""
    calls = []

    def apply(parameters, students, *inputs):
        tokens, *kept = students.forward(*inputs)
        calls.append((students, tokens, (*inputs, *kept)))
        return tokens

    def gradient(loss, parameters):
        students, tokens, saved = calls.pop()
        return (students.backward(torch.zeros_like(tokens), *saved),)

    monkeypatch.setattr(student._Students, "apply", apply)
    monkeypatch.setattr(torch.autograd, "grad", gradient)
    constant.cache_clear()
    yield
    constant.cache_clear()


def fakes_a_gpu() -> bool:
    """Whether tensors on a GPU that is not there can be written to: PyTorch 2.9 asks its driver."""
    with FakeTensorMode():
        try:
            torch.zeros(2, device="cuda")[:1] = torch.ones(1, device="cuda")
        except RuntimeError:
            return False
    return True


@pytest.mark.skipif(not fakes_a_gpu(), reason="this PyTorch asks the driver of a GPU")
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("variant", ["lqn", "lqn-src", "apm"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("change", [{}, {"sampling": "segments"}, {"readout_source": "random"}])
def test_everything_lies_on_the_gpu(gradients_by_hand, variant, precision, change):
    """On a GPU that is not there: shapes and devices are real, numbers are not."""
    config = with_variant(CONFIG, variant)
    config = replace(config, fit=replace(config.fit, precision=precision, **change))
    with FakeTensorMode() as mode:
        fitter = StudentFitter(config, GRID, FEATURES, "cuda", capture=False)
        words = torch.zeros(2, 3, dtype=torch.int64, device="cuda")
        seen = [torch.zeros(2, 3, 28, 28), torch.zeros(2, *GRID, FEATURES)]
        if fitter.needs_segments:
            seen.append(torch.zeros(2, *GRID[1:], dtype=torch.int64))
        looks, curve = fitter.fit_tensors(words, *(x.to("cuda") for x in seen))
        random = CounterRandom(words, "cuda")
        students = fitter._allocated(2)[0]
        fitted = FittedStudents(fitter, students, random, *looks[0], curve, curve[:, 0], 0.0)
        answer = fitted.query_layer(4)
        assert curve.device.type == answer.device.type == "cuda"
        assert answer.shape == (2, 5, 6, FEATURES)
        with pytest.raises(RuntimeError, match="device"):
            answer + mode.from_tensor(torch.zeros(FEATURES))


@pytest.mark.parametrize(
    "change", [{}, {"views": 2}, {"sampling": "segments"}, {"layers": (2, 4), "steps": 5}]
)
def test_replayed_fits_are_fresh_fits(shots, monkeypatch, change):
    monkeypatch.setattr(graphs, "record", record_by_running_again)
    config = replace(CONFIG, fit=replace(CONFIG.fit, **change))
    extras = {}
    if config.fit.views == 2:
        extras["views"] = [shots[0]]
    if config.fit.sampling == "segments":
        extras["segments"] = torch.arange(30).view(5, 6).expand(2, 5, 6) % 4
    captured = StudentFitter(config, GRID, FEATURES, capture=True)
    plain = StudentFitter(config, GRID, FEATURES, capture=False)
    curves = []
    for turn, (images, fields) in enumerate([*shots, shots[0]]):
        keys = [RandomKey(0, turn % 2), RandomKey(turn % 2, 7)]
        a, b = (f.fit(images, fields, keys, **extras) for f in (captured, plain))
        assert torch.equal(a.loss_curve, b.loss_curve)
        assert torch.equal(a.query_layer(4), b.query_layer(4))
        curves.append(a.loss_curve)
    # The curves of earlier fits outlive the replays, and the first image's comes back.
    assert torch.equal(curves[0], curves[2]) and not torch.equal(curves[0], curves[1])


def test_another_number_of_students_is_captured_anew(shots, monkeypatch):
    captures = []

    def counting(function, inputs):
        captures.append([tuple(x.shape) for x in inputs])
        return record_by_running_again(function, inputs)

    monkeypatch.setattr(graphs, "record", counting)
    fitter = StudentFitter(CONFIG, GRID, FEATURES, capture=True)
    images, fields = shots[0]
    keys = [RandomKey(0, b) for b in range(2)]
    for count in (2, 2, 1):
        fitter.fit(images[:count], fields[:count], keys[:count])
    assert [shapes[0] for shapes in captures] == [(2, 3), (1, 3)]


def test_what_cannot_be_captured_is_run_as_it_is(shots, monkeypatch):
    tried = []

    def refusing(function, inputs):
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors")

    monkeypatch.setattr(graphs, "record", refusing)
    fitter = StudentFitter(CONFIG, GRID, FEATURES, capture=True)
    plain = StudentFitter(CONFIG, GRID, FEATURES, capture=False)
    keys = [RandomKey(0, b) for b in range(2)]
    with pytest.warns(UserWarning, match="more slowly: operation not permitted"):
        fitter.fit(*shots[0], keys)
    assert torch.equal(
        fitter.fit(*shots[1], keys).loss_curve, plain.fit(*shots[1], keys).loss_curve
    )
    assert len(tried) == 1

    def exhausted(function, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "record", exhausted)
    with pytest.raises(torch.OutOfMemoryError):  # the segmenter's affair
        StudentFitter(CONFIG, GRID, FEATURES, capture=True).fit(*shots[0], keys)


def test_after_a_capture_out_of_memory_the_next_call_captures(monkeypatch):
    room, captures = [True], []

    def recording(function, inputs):
        captures.append(len(inputs[0]))
        if not room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record_by_running_again(function, inputs)

    monkeypatch.setattr(graphs, "record", recording)
    double, device = Replay(lambda x: 2 * x), torch.device("cpu")
    first = weakref.ref(double(device, torch.ones(3)))
    room[0] = False
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            double(device, torch.ones(2))
    assert first() is None  # the capture before was given up to make room
    room[0] = True
    assert torch.equal(double(device, torch.ones(2)), torch.full((2,), 2.0))
    assert torch.equal(double(device, torch.ones(2) + 1), torch.full((2,), 4.0))
    assert torch.equal(double(device, torch.ones(3)), torch.full((3,), 2.0))
    assert captures == [3, 2, 2, 2, 3]


def test_replay_copies_its_inputs_into_place(monkeypatch):
    monkeypatch.setattr(graphs, "record", record_by_running_again)
    double = Replay(lambda x: 2 * x)
    device = torch.device("cpu")
    given = torch.ones(3)
    first = double(device, given)
    assert torch.equal(double(device, given + 1), torch.full((3,), 4.0))
    assert torch.equal(first, torch.full((3,), 4.0))  # the same place
    assert torch.equal(given, torch.ones(3))  # and the caller's own is left alone


def test_constants_are_made_once():
    device = torch.device("cpu")
    assert constant((1, 2), device) is constant((1, 2), device)
    whole = constant((1, 2), device)
    halves = constant((1.0, 2.0), device, torch.float32)  # equal to the whole ones, for a cache
    assert (whole.dtype, halves.dtype) == (torch.int64, torch.float32)
    with torch.inference_mode():
        made = constant((0.123, 4.5), device, torch.float32)
    assert not made.is_inference()
