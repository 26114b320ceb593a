"""Losses against plain loops."""

import math

import pytest
import torch

from dover_eval.training.losses import (
    bradley_terry_loss,
    bradley_terry_ties_loss,
    contrast_loss,
    dover_rank_loss,
    masked_smooth_l1,
    plcc_loss,
    scale_loss,
)

# What `dover-eval train` learns from: ratings with gaps, preferences, and other clips' prompts.


def ratings(rows=6, columns=5, share=0.7):
    """Predictions, targets that are NaN where nobody rated, and where somebody did."""
    generator = torch.Generator().manual_seed(3)
    predicted = 1 + 4 * torch.rand(rows, columns, generator=generator)
    rated = torch.rand(rows, columns, generator=generator) < share
    target = torch.where(rated, 1 + 4 * torch.rand(rows, columns, generator=generator), torch.nan)
    return predicted, target, rated


def columns_of(predicted, target, rated):
    """(predictions, targets) of each column, without the gaps."""
    for k in range(predicted.shape[1]):
        keep = rated[:, k]
        yield predicted[keep, k].tolist(), target[keep, k].tolist()


def test_masked_smooth_l1_is_the_loop():
    losses = []
    for predicted, target in columns_of(*ratings()):
        for p, t in zip(predicted, target, strict=True):
            off = abs(p - t)
            losses.append(off**2 / (2 * 0.5) if off < 0.5 else off - 0.25)
    assert masked_smooth_l1(*ratings()).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    one = torch.ones(1, 1)
    assert masked_smooth_l1(3 * one, 4 * one, one > 0, beta=2.0).item() == pytest.approx(0.25)


def test_scale_loss_is_the_loop():
    losses = []
    for predicted, target in columns_of(*ratings()):
        for p, t in zip(predicted, target, strict=True):
            losses.append(((p - t) * (1.5 if t < 2.5 or t > 4 else 1)) ** 2)
    assert scale_loss(*ratings()).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    one = torch.ones(1, 1)
    ends = [scale_loss(target * one + 1, target * one, one > 0).item() for target in (2.4, 2.5, 4.0, 4.1)]
    assert ends == pytest.approx([2.25, 1, 1, 2.25])


def standardised(values):
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / spread for v in values]


def test_plcc_loss_is_the_loop_and_a_function_of_the_correlation():
    losses = []
    for predicted, target in columns_of(*ratings()):
        if len(target) < 2:
            continue
        p, t = standardised(predicted), standardised(target)
        n = len(p)
        r = sum(a * b for a, b in zip(p, t, strict=True)) / n
        first = sum((a - b) ** 2 for a, b in zip(p, t, strict=True)) / n / 4
        second = sum((r * a - b) ** 2 for a, b in zip(p, t, strict=True)) / n / 4
        losses.append((first + second) / 2)
        assert losses[-1] == pytest.approx((1 - r) * (3 + r) / 8, abs=1e-6)
    assert plcc_loss(*ratings()).item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_plcc_loss_does_not_see_scale_or_place():
    target = torch.tensor([[1.0], [2.0], [4.0]])
    everywhere = torch.ones(3, 1, dtype=torch.bool)
    assert plcc_loss(0.3 * target + 2, target, everywhere).item() == pytest.approx(0, abs=1e-5)
    assert plcc_loss(-target, target, everywhere).item() == pytest.approx(0.5, abs=1e-5)


def test_dover_rank_loss_is_the_loop():
    losses = []
    for predicted, target in columns_of(*ratings()):
        n = len(target)
        if n < 2:
            continue
        sign = lambda x: (x > 0) - (x < 0)
        pairs = [
            max(0.0, (predicted[i] - predicted[j]) * sign(target[j] - target[i])) for i in range(n) for j in range(n)
        ]
        losses.append(sum(pairs) / (n * (n - 1)) / (1 + max(pairs)))
    assert dover_rank_loss(*ratings()).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize(("loss", "ratings"), [(plcc_loss, [3, 3, 3]), (dover_rank_loss, [3, math.nan, math.nan])])
def test_a_column_that_cannot_be_compared_takes_no_part(loss, ratings):
    predicted = torch.tensor([[1.0, 1.0], [3.0, 2.0], [2.0, 4.0]])
    target = torch.tensor([[1.0, 2.0, 4.0], ratings]).T
    rated = ~target.isnan()
    alone = loss(predicted[:, :1], target[:, :1], rated[:, :1])
    assert alone > 0
    torch.testing.assert_close(loss(predicted, target, rated), alone)


PREFERENCES = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.7, 0.3, 0], [0.2, 0.3, 0.5]])
LOG_ODDS = torch.tensor([0.4, 2.0, -0.3, 1.1, -3.0])


def test_bradley_terry_is_the_loop():
    losses = []
    for odds, (a, b, tie) in zip(LOG_ODDS.tolist(), PREFERENCES.tolist(), strict=True):
        wins = 1 / (1 + math.exp(-odds))
        losses.append(-(a + tie / 2) * math.log(wins) - (b + tie / 2) * math.log(1 - wins))
    assert bradley_terry_loss(LOG_ODDS, PREFERENCES).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_bradley_terry_with_ties_is_rao_and_kupper():
    theta, losses = math.exp(0.5), []
    for odds, (a, b, tie) in zip(LOG_ODDS.tolist(), PREFERENCES.tolist(), strict=True):
        strength_a, strength_b = math.exp(odds), 1.0
        for_a = strength_a / (strength_a + theta * strength_b)
        for_b = strength_b / (strength_b + theta * strength_a)
        losses.append(-a * math.log(for_a) - b * math.log(for_b) - tie * math.log(1 - for_a - for_b))
    found = bradley_terry_ties_loss(LOG_ODDS, PREFERENCES, 0.5)
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_bradley_terry_with_ties_likes_small_differences_for_ties_alone():
    tie, win = torch.tensor([[0.0, 0, 1]]), torch.tensor([[1.0, 0, 0]])
    at = lambda odds, target: bradley_terry_ties_loss(torch.tensor([odds]), target).item()
    assert at(0.0, tie) < at(1.0, tie) < at(3.0, tie)
    assert at(3.0, win) < at(1.0, win) < at(0.0, win)


def test_vote_shares_pull_to_the_odds_of_the_votes():
    odds = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([odds], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        bradley_terry_loss(odds, torch.tensor([[0.8, 0.2, 0]])).backward()
        optimizer.step()
    assert odds.sigmoid().item() == pytest.approx(0.8, abs=1e-3)


def test_contrast_loss_is_the_loop():
    own, other = 1 + 4 * torch.rand(4, 4), 1 + 4 * torch.rand(4, 4)
    wrong = torch.tensor([True, True, False, True])
    losses = []
    for mine, theirs, counts in zip(own.tolist(), other.tolist(), wrong.tolist(), strict=True):
        if counts:
            lower = max(0.0, 1.0 - (mine[1] - theirs[1]))
            off = [abs(mine[i] - theirs[i]) for i in (0, 2, 3)]
            losses.append(lower + sum(d**2 if d < 0.5 else d - 0.25 for d in off) / 3)
    assert contrast_loss(own, other, wrong).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_contrast_moves_alignment_down_and_nothing_else_from_where_it_is():
    own = torch.tensor([[3.0, 3.0, 3.0, 3.0], [3.0, 4.0, 3.0, 3.0]], requires_grad=True)
    other = torch.tensor([[3.0, 3.0, 3.0, 3.0], [2.0, 4.0, 4.5, 1.0]], requires_grad=True)
    contrast_loss(own, other, torch.tensor([True, True])).backward()
    assert (other.grad[:, 1] > 0).all()  # descent lowers it
    assert (own.grad[:, 1] < 0).all()
    assert (other.grad[0, [0, 2, 3]] == 0).all()
    assert other.grad[1, [0, 2, 3]].sign().tolist() == [-1, 1, -1]  # back to where the own prompt has them
    assert (own.grad[:, [0, 2, 3]] == 0).all()


RATING_LOSSES = (masked_smooth_l1, scale_loss, plcc_loss, dover_rank_loss)
EDGES = {
    "no row": (0, None),
    "one row": (1, None),
    "nothing rated": (4, "unrated"),
    "all predictions equal": (4, "equal predictions"),
    "all ratings equal": (4, "equal ratings"),
    "one rating a column": (4, "one"),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("loss", RATING_LOSSES, ids=lambda loss: loss.__name__)
def test_rating_losses_and_their_gradients_are_finite_at_the_edges(loss, edge):
    rows, what = EDGES[edge]
    predicted = 1 + 4 * torch.rand(rows, 5)
    target = 1 + 4 * torch.rand(rows, 5)
    rated = torch.ones(rows, 5, dtype=torch.bool)
    if what == "unrated":
        target, rated = torch.full_like(target, torch.nan), ~rated
    elif what == "equal predictions":
        predicted = torch.full_like(predicted, 3.0)
    elif what == "equal ratings":
        target = torch.full_like(target, 3.0)
    elif what == "one":
        rated = torch.arange(rows)[:, None].expand(rows, 5) == 0
    predicted.requires_grad_()
    found = loss(predicted, target, rated)
    found.backward()
    assert found.isfinite()
    assert predicted.grad.isfinite().all()
    if rows == 0 or what == "unrated":
        assert found == 0


@pytest.mark.parametrize("loss", [bradley_terry_loss, bradley_terry_ties_loss], ids=lambda loss: loss.__name__)
def test_preference_losses_are_finite_at_the_edges(loss):
    for odds in (torch.zeros(0), torch.tensor([80.0, -80.0, 0.0])):
        odds.requires_grad_()
        for column in range(3):
            found = loss(odds, torch.eye(3)[column].expand(len(odds), 3))
            found.backward()
            assert found.isfinite()
            assert odds.grad.isfinite().all()


def test_contrast_without_another_prompt_is_zero_with_a_gradient():
    own, other = torch.rand(2, 4), torch.rand(2, 4, requires_grad=True)
    loss = contrast_loss(own, other, torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert other.grad.isfinite().all()
