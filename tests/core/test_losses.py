from __future__ import annotations

import math

import torch
from lqn_seg.core.losses import binding_loss, entropy_loss, recirculation_loss, total_loss


def test_losses_by_hand():
    predicted = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[1.0, 1.0], [1.0, 3.0]]])
    binding = binding_loss(predicted, target)
    assert binding.tolist() == [(4 + 16) / 4, (1 + 1 + 1 + 9) / 4]
    recirculation = recirculation_loss(predicted, target)
    assert torch.equal(recirculation, binding)
    assert torch.equal(total_loss(binding, recirculation, 0.5), 1.5 * binding)


def test_entropy_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]], [[50.0, -50.0], [50.0, -50.0]]])
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = torch.tensor([(math.log(2) + quarter) / 2, 0.0])
    torch.testing.assert_close(entropy_loss(logits), expected)
