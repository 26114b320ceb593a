"""What a model is taught with. All take predictions on the 1-5 scale and are means, so that weights compare."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dover_eval.opinion import ASPECTS

EPS = 1e-8  # a variance of no more than this is none


# Ratings: predictions and targets (N,K), a column an aspect, `rated` (N,K) true where somebody did rate.


def masked_smooth_l1(predicted: Tensor, target: Tensor, rated: Tensor, beta: float = 0.5) -> Tensor:
    """Smooth L1 over what is rated: squared up to `beta` points, linear beyond. Zero where nothing is."""
    target = torch.where(rated, target, 0.0)
    return _mean_where(F.smooth_l1_loss(predicted, target, reduction="none", beta=beta), rated)


def scale_loss(predicted: Tensor, target: Tensor, rated: Tensor) -> Tensor:
    """The scale-weighted term: squared error, an error below 2.5 or above 4 counting 1.5 times as large.

    Ratings crowd in the middle of the scale; this keeps its ends from being pulled there.
    """
    target = torch.where(rated, target, 0.0)
    stretch = torch.where((target < 2.5) | (target > 4.0), 1.5, 1.0)
    return _mean_where(((predicted - target) * stretch).square(), rated)


def plcc_loss(predicted: Tensor, target: Tensor, rated: Tensor) -> Tensor:
    """DOVER's PLCC loss by column, and the mean over the columns with at least two ratings that differ.

    With p and t standardised over the rows and r = mean(pt): (mean((p - t)^2) + mean((r p - t)^2)) / 8, which is
    (1 - r) (3 + r) / 8. Zero where no column can be compared.
    """
    p, _ = _standardised(predicted, rated)
    t, variance = _standardised(torch.where(rated, target, 0.0), rated)
    r = _column_mean(p * t, rated)
    losses = (_column_mean((p - t).square(), rated) + _column_mean((r * p - t).square(), rated)) / 8
    return _mean_where(losses, (rated.sum(dim=0) > 1) & (variance > EPS))


def dover_rank_loss(predicted: Tensor, target: Tensor, rated: Tensor) -> Tensor:
    """DOVER's ranking loss by column, and the mean over the columns with at least two ratings.

    A pair in the wrong order costs how far apart its predictions are; the sum over ordered pairs is divided by their
    number and by one plus the largest of them. For people's ratings: those tell an order better than a distance.
    """
    if not len(predicted):
        return predicted.sum() * 0
    target = torch.where(rated, target, 0.0)
    both = rated[:, None] & rated[None, :]
    wrong = F.relu((predicted[:, None] - predicted[None, :]) * torch.sign(target[None, :] - target[:, None])) * both
    count = rated.sum(dim=0)
    losses = wrong.sum(dim=(0, 1)) / (count * (count - 1)).clamp(min=1) / (1 + wrong.amax(dim=(0, 1)))
    return _mean_where(losses, count > 1)


# Preferences: log odds (P,) that A is better than B, and targets (P,3): the shares of A, B and ties, which sum to one.


def bradley_terry_loss(log_odds: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the Bradley-Terry model, P(A) = sigmoid(log_odds); a tie counts half a win for each."""
    for_a = target[:, 0] + target[:, 2] / 2
    losses = -(for_a * F.logsigmoid(log_odds) + (1 - for_a) * F.logsigmoid(-log_odds))
    return losses.sum() / max(len(losses), 1)


def bradley_terry_ties_loss(log_odds: Tensor, target: Tensor, tie_width: float = 0.5) -> Tensor:
    """Cross-entropy of Rao and Kupper's Bradley-Terry model with ties (1967), `tie_width` = log theta > 0.

    P(A) = sigmoid(log_odds - tie_width), P(B) = sigmoid(-log_odds - tie_width), and a tie is the rest:
    tanh(tie_width / 2) for equal scores. So A has a majority exactly where `log_odds` exceeds `tie_width`. Theirs
    rather than Davidson's because that is a difference in the units of the score, as a tie threshold at inference is;
    `dover-eval calibrate` fits the same model.
    """
    a, b = log_odds - tie_width, -log_odds - tie_width
    # 1 - P(A) - P(B) in closed form, so that it neither cancels nor underflows.
    tie = F.logsigmoid(-a) + F.logsigmoid(-b) + math.log(-math.expm1(-2 * tie_width))
    losses = -(target * torch.stack([F.logsigmoid(a), F.logsigmoid(b), tie], dim=1)).sum(dim=1)
    return losses.sum() / max(len(losses), 1)


def contrast_loss(own: Tensor, other: Tensor, wrong: Tensor, margin: float = 1.0) -> Tensor:
    """Another clip's prompt must lower Alignment by `margin` points, and leave the other aspects where they are.

    own, other: (N,4), columns as `ASPECTS`: each clip with its own prompt and with another's. wrong: (N,), false where
    the other prompt is the same. What the other aspects are is for the own prompt to teach, so those are targets here.
    """
    alignment = ASPECTS.index("Alignment")
    rest = [i for i in range(len(ASPECTS)) if i != alignment]
    lower = F.relu(margin - (own[:, alignment] - other[:, alignment]))
    leave = F.smooth_l1_loss(other[:, rest], own[:, rest].detach(), reduction="none", beta=0.5).mean(dim=1)
    return _mean_where(lower + leave, wrong)


def _mean_where(losses: Tensor, mask: Tensor) -> Tensor:
    """The mean of `losses` where `mask` is true; zero, and still of the graph, where it nowhere is."""
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def _column_mean(x: Tensor, rated: Tensor) -> Tensor:
    return (x * rated).sum(dim=0) / rated.sum(dim=0).clamp(min=1)


def _standardised(x: Tensor, rated: Tensor) -> tuple[Tensor, Tensor]:
    """`x` (N,K) with mean 0 and variance 1 over what is rated of each column, and the variances (K,) that it had."""
    centred = x - _column_mean(x, rated)
    variance = _column_mean(centred.square(), rated)
    return centred / (variance + EPS).sqrt(), variance
