"""Every baseline against a slow literal version of its paper, one image at a time."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from lqn_seg.adapt.baselines.features import (
    Features,
    marginal_entropy,
    marginal_entropy_gradient,
    select_confident,
)
from lqn_seg.adapt.baselines.gs_bias import GsBias
from lqn_seg.adapt.baselines.mta import Mta
from lqn_seg.adapt.baselines.tda import Tda
from lqn_seg.adapt.baselines.tps import Tps
from lqn_seg.adapt.baselines.tpt import Tpt
from lqn_seg.adapt.baselines.vte import Vte
from lqn_seg.adapt.baselines.zero import Zero
from tests.classification.conftest import NAMES


def one(features: Features, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views (V, E) and patches (N, E) of one image."""
    return features.views[index], features.patches[index]


def entropies(p: torch.Tensor) -> list[float]:
    return [-sum(x * math.log(x) for x in row.tolist() if x > 0) for row in p]


def literal_selection(logits: torch.Tensor, fraction: float) -> list[int]:
    h = entropies(logits.softmax(-1))
    return sorted(range(len(h)), key=lambda k: h[k])[: int(len(h) * fraction)]


def literal_marginal(logits: torch.Tensor) -> torch.Tensor:
    mean = logits.softmax(-1).mean(0)
    return -(mean * mean.log()).sum()


def test_the_marginal_entropy_and_its_gradient(features):
    logits = features.logits().double().requires_grad_()
    value = marginal_entropy(logits)
    for index in range(3):
        assert value[index].item() == pytest.approx(literal_marginal(logits[index]).item())
    bias = torch.zeros(3, 1, 6, dtype=torch.double, requires_grad=True)
    (expected,) = torch.autograd.grad(marginal_entropy(logits.detach() + bias).sum(), bias)
    torch.testing.assert_close(marginal_entropy_gradient(logits.detach()), expected[:, 0])


def test_the_most_confident_views_are_taken(features):
    logits = features.logits()
    for index in range(3):
        selected = literal_selection(logits[index], 0.3)
        assert torch.equal(select_confident(logits, 0.3)[index], logits[index][selected])
    rows = select_confident(logits, 0.0, features.views)
    assert rows.shape == (3, 1, 12)  # at least one


def test_vte_is_the_mean_of_the_most_confident_views(features):
    got = Vte(keep=0.3)(features)
    for index in range(3):
        selected = literal_selection(features.logits()[index], 0.3)
        assert len(selected) > 1
        mean = sum(features.views[index][k] for k in selected)
        want = (features.scale * (mean / mean.norm()) @ features.text.T).softmax(-1)
        torch.testing.assert_close(got[index], want)


def literal_zero(views, text, scale, keep):
    """Counting, with the rule for ties spelt out."""
    p = (scale * views @ text.T).softmax(-1)
    h = entropies(p)
    order = sorted(range(len(h)), key=lambda k: h[k])
    votes = [int(p[k].argmax()) for k in order]
    count = int(len(h) * keep)
    ballots = Counter(votes[:count])
    tied = [c for c in ballots if ballots[c] == max(ballots.values())]
    if len(tied) == 1:
        return tied[0]
    for vote in votes[count:] + votes[:count]:
        if vote in tied:
            return vote
    raise AssertionError


def test_zero_against_many_random_votes():
    generator = torch.Generator().manual_seed(5)
    views = F.normalize(torch.randn(60, 10, 4, generator=generator), dim=-1)
    text = F.normalize(torch.randn(4, 4, generator=generator), dim=-1)
    shares = Zero(keep=0.5)(Features(views, views, text, 5.0))
    expected = [literal_zero(v, text, 5.0, 0.5) for v in views]
    assert shares.argmax(-1).tolist() == expected
    assert len(set(expected)) > 2


def literal_mta(f, text, scale):
    """The published loops, for one image."""
    n = len(f)
    k = int(0.3 * (n - 1))
    h2 = []
    for i in range(n):
        d = sorted(float(((f[i] - f[j]) ** 2).sum()) for j in range(n))
        h2.append(0.5 * sum(d[1 : k + 1]) / k)
    p = (scale * f @ text.T).softmax(-1)
    affinity = p @ p.T

    def kernel(m):
        return torch.stack([torch.exp(-((f[i] - m) ** 2).sum() / (2 * h2[i])) for i in range(n)])

    y, m = torch.full((n,), 1 / n), f[0]
    for _ in range(5):
        density = kernel(m)
        for _ in range(5):
            before, y = y, ((density + 4 * affinity @ y) / 0.2).softmax(0)
            if (y - before).norm() < 1e-6:
                break
        for _ in range(5):
            w = y * kernel(m)
            before, m = m, (w[:, None] * f).sum(0) / w.sum()
            m = m / m.norm()
            if (m - before).norm() < 1e-6:
                break
    return m


def test_mta_finds_the_published_mode(features):
    mode = Mta().mode(features)
    answers = Mta()(features)
    for index in range(3):
        views, _ = one(features, index)
        expected = literal_mta(views, features.text, 8.0)
        torch.testing.assert_close(mode[index], expected, atol=2e-5, rtol=1e-4)
        p = (8.0 * expected @ features.text.T).softmax(-1)
        torch.testing.assert_close(answers[index], p, atol=1e-4, rtol=1e-3)


def test_tps_takes_one_step_of_adamw(features):
    """From zero, AdamW's first step is the rate times the sign of what is not tiny."""
    answers = Tps()(features)
    for index in range(3):
        views, _ = one(features, index)
        selected = views[literal_selection(8.0 * views @ features.text.T, 0.1)]
        shift = torch.zeros_like(features.text, requires_grad=True)
        prototypes = F.normalize(features.text + shift, dim=-1)
        literal_marginal(8.0 * selected @ prototypes.T).backward()
        step = -5e-3 * shift.grad / (shift.grad.abs() + 1e-8)
        moved = F.normalize(features.text + step, dim=-1)
        expected = (8.0 * views[0] @ moved.T).softmax(-1)
        torch.testing.assert_close(answers[index], expected, atol=1e-5, rtol=1e-4)


def literal_gs_bias(views, patches, text, scale, steps):
    """The published loop with autograd."""
    g = torch.zeros(1, len(text), requires_grad=True)
    s = torch.zeros(1, len(text), requires_grad=True)
    history_g, history_s, losses = g, s, []
    for _ in range(steps):
        now_g, now_s = 0.9 * g + 0.1 * history_g, 0.9 * s + 0.1 * history_s
        logits = scale * views @ text.T + now_g
        logits = logits[literal_selection(logits.detach(), 0.1)]
        spatial = scale * patches @ text.T + now_s
        best = spatial.softmax(0).sum(1).topk(4).indices
        loss_g, loss_s = literal_marginal(logits), literal_marginal(spatial[best])
        losses.append(loss_g.item())
        if abs(losses[-1] - losses[0]) / losses[0] > 0.25:
            break
        history_g, history_s = now_g.detach(), now_s.detach()
        (grad_g,) = torch.autograd.grad(loss_g, g)
        (grad_s,) = torch.autograd.grad(loss_s, s)
        g = (g - 0.5 * grad_g).detach().requires_grad_()
        s = (s - 0.2 * grad_s).detach().requires_grad_()
    total = 0.9 * g + 0.1 * history_g + 0.9 * s + 0.1 * history_s
    return (scale * views[0] @ text.T + total[0]).softmax(-1).detach()


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_gs_bias_follows_the_published_steps(features, steps):
    method = GsBias(patches=4, global_rate=0.5, spatial_rate=0.2, steps=steps)
    answers = method(features)
    for index in range(3):
        views, patches = one(features, index)
        expected = literal_gs_bias(views, patches, features.text, 8.0, steps)
        torch.testing.assert_close(answers[index], expected, atol=1e-5, rtol=1e-4)


def literal_tda(stream, text, scale):
    """Two dictionaries of lists, as published."""
    positive, negative, answers = {}, {}, []

    def update(cache, label, entry, capacity):
        kept = cache.setdefault(label, [])
        if len(kept) < capacity:
            kept.append(entry)
        elif entry[0] < kept[-1][0]:
            kept[-1] = entry
        kept.sort(key=lambda e: e[0])

    for views in stream:
        logits = scale * views @ text.T
        selected = literal_selection(logits, 0.1)
        f, mean = views[selected].mean(0), logits[selected].mean(0)
        p = logits[selected].softmax(-1).mean(0)
        loss = float(literal_marginal(logits[selected]))
        update(positive, int(mean.argmax()), (loss, f, p), 3)
        if 0.2 < loss / math.log2(len(text)) < 0.5:
            update(negative, int(mean.argmax()), (loss, f, p), 2)
        answer = mean.clone()
        for label, kept in positive.items():
            for _, key, _ in kept:
                answer[label] += 2 * math.exp(-5 * (1 - float(f @ key)))
        for kept in negative.values():
            for _, key, q in kept:
                mask = ((q > 0.03) & (q < 1)).float()
                answer -= 0.117 * math.exp(-(1 - float(f @ key))) * mask
        answers.append(answer.softmax(-1))
    return answers, positive, negative


def test_tda_keeps_the_published_caches():
    generator = torch.Generator().manual_seed(3)
    stream = F.normalize(torch.randn(30, 20, 6, generator=generator), dim=-1)
    text = F.normalize(torch.randn(3, 6, generator=generator), dim=-1)
    method = Tda()
    answers = method(Features(stream, stream, text, 3.0))
    expected, positive, negative = literal_tda(stream, text, 3.0)
    torch.testing.assert_close(answers, torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert [len(kept) for kept in method.positive.entries.values()] == [3] * len(positive)
    assert sum(map(len, method.negative.entries.values())) == sum(map(len, negative.values())) > 0
    method.reset()
    assert not method.positive.entries and not method.negative.entries


def test_tpt_tunes_the_context_and_nothing_else(teacher):
    generator = torch.Generator().manual_seed(2)
    views = F.normalize(torch.randn(2, 20, 24, generator=generator), dim=-1)
    method = Tpt(teacher, NAMES)
    tokens = teacher.tokenize([f"a photo of a {name}." for name in NAMES])
    start = teacher.token_embedding(tokens)
    with torch.no_grad():
        text = F.normalize(teacher.model.encode_text(tokens), dim=-1)
        torch.testing.assert_close(method.text(start[0, 1:5]), text)
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    answers = method(Features(views, views, text, 10.0))
    for index in range(2):
        context = start[0, 1:5].detach().clone().requires_grad_()
        selected = literal_selection(10.0 * views[index] @ text.T, 0.1)
        logits = 10.0 * views[index][selected] @ method.text(context).T
        optimizer = torch.optim.AdamW([context], lr=5e-3)
        literal_marginal(logits).backward()
        optimizer.step()
        with torch.no_grad():
            expected = (10.0 * views[index, 0] @ method.text(context).T).softmax(-1)
        torch.testing.assert_close(answers[index], expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(answers[index], (10.0 * views[index, 0] @ text.T).softmax(-1))
    assert all(torch.equal(before[k], v) for k, v in teacher.model.state_dict().items())
