"""Losses against plain loops."""

import math

import pytest
import torch

from dover_eval.training.losses import matching_loss, rank_loss, weights_loss


def test_rank_loss_is_the_loop():
    predicted, target = torch.randn(7), torch.randn(7).round()
    losses = [
        max(0.0, min(0.3, (target[i] - target[j]).item()) - (predicted[i] - predicted[j]).item())
        for i in range(7)
        for j in range(7)
        if target[i] > target[j]
    ]
    assert rank_loss(predicted, target).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_rank_loss_is_zero_in_order_and_without_pairs():
    target = torch.tensor([1.0, 2.0, 3.0])
    assert rank_loss(target, target) == 0
    assert rank_loss(torch.randn(3), torch.ones(3)) == 0
    assert rank_loss(-target, target) > 1


def test_matching_loss_is_the_loop():
    logits = torch.randn(3, 4)
    fits = torch.tensor([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)

    def one_way(scores, positive):
        losses = []
        for row, good in zip(scores.tolist(), positive.tolist(), strict=True):
            if any(good):
                total = sum(math.exp(v) for v in row)
                losses.append(-math.log(sum(math.exp(v) for v, g in zip(row, good, strict=True) if g) / total))
        return sum(losses) / len(losses)

    expected = (one_way(logits, fits) + one_way(logits.T, fits.T)) / 2
    assert matching_loss(logits, fits).item() == pytest.approx(expected, rel=1e-5)


def test_matching_loss_without_a_match_is_zero_and_has_a_gradient():
    logits = torch.randn(2, 2, requires_grad=True)
    loss = matching_loss(logits, torch.zeros(2, 2, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert logits.grad.isfinite().all()


def test_weights_loss_is_the_divergence():
    target = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    assert weights_loss(target, target).item() == pytest.approx(0, abs=1e-6)
    uniform = torch.full((1, 4), 0.25)
    expected = sum(t * math.log(t / 0.25) for t in target[0].tolist())
    assert weights_loss(uniform, target).item() == pytest.approx(expected, rel=1e-5)
