"""From scores to advantages: plain functions on tensors, whatever the framework.

A reward that is NaN (an item that failed) takes no part in any statistic and stays NaN: mask it out of the loss.
Rewards of any dtype are taken, and statistics are float64; advantages are float32, of float64 rewards float64.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dover_eval.opinion import SCORE_NAMES

EPS = 1e-6


def group_advantages(rewards: Tensor, groups: Sequence[Hashable] | Tensor, *, scale: bool = True) -> Tensor:
    """GRPO's advantages: rewards (B,) or (B,K) less the mean of their group, divided by its standard deviation.

    `groups` says which belong together, one entry a sample: prompts, or ids. A group whose rewards are all alike, or
    that has one sample, gets 0: it says nothing about what is better. `scale=False` leaves out the division
    (Dr. GRPO, Liu et al. 2025). GRPO: Shao et al., "DeepSeekMath", 2024.
    """
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    rewards, ids = rewards.double(), _ids_for(rewards, groups)
    valid = rewards.isfinite()
    _, mean, std = _group_moments(rewards, valid, ids)
    centred = torch.where(std[ids] > EPS, rewards - mean[ids], 0.0)
    if scale:
        centred = centred / std[ids].clamp_min(EPS)
    return torch.where(valid, centred, torch.nan).to(dtype)


def aspect_advantages(
    scores: Tensor, groups: Sequence[Hashable] | Tensor, weights: Mapping[str, float], *, scale: bool = True
) -> Tensor:
    """Advantages of each aspect in its group, then weighted: (B,5) scores to (B,).

    Normalised before the sum, an aspect that varies little counts as much as one that varies a lot; with
    `group_advantages` of the weighted reward the noisiest aspect decides.
    """
    unknown = sorted(set(weights) - set(SCORE_NAMES))
    if unknown or scores.ndim != 2 or scores.shape[1] != len(SCORE_NAMES):
        raise ValueError(f"expected scores (B,5) and weights of {SCORE_NAMES}, got {tuple(scores.shape)}, {weights}")
    advantages = group_advantages(scores, groups, scale=scale)
    return (advantages * advantages.new_tensor([weights.get(name, 0.0) for name in SCORE_NAMES])).sum(dim=1)


def clip_advantages(advantages: Tensor, limit: float = 5.0) -> Tensor:
    """Advantages no larger than `limit` in size; one outlier must not decide an update."""
    if not limit > 0:
        raise ValueError(f"expected a limit above 0, got {limit}")
    return advantages.clamp(-limit, limit)


def within_group_std(rewards: Tensor, groups: Sequence[Hashable] | Tensor) -> float:
    """The mean over groups of two or more of the standard deviation inside the group; NaN if there is none."""
    rewards, ids = rewards.double(), _ids_for(rewards, groups)
    count, _, std = _group_moments(rewards, rewards.isfinite(), ids)
    return std[count > 1].mean().item()


class RunningNorm:
    """Mean and standard deviation of all rewards so far, in float64; they survive in a checkpoint.

    >>> norm = RunningNorm()
    >>> norm.update(torch.tensor([1.0, 3.0]))
    >>> norm(torch.tensor([2.0]))
    tensor([0.])
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    @property
    def std(self) -> float:
        """The population standard deviation, 1.0 before there are two rewards."""
        return (self._squares / self.count) ** 0.5 if self.count > 1 else 1.0

    def update(self, rewards: Tensor) -> None:
        """Take in rewards of any shape (Chan et al. 1979); NaN is left out."""
        values = rewards.detach().double().flatten()
        values = values[values.isfinite()]
        if not len(values):
            return
        count, mean = len(values), values.mean().item()
        total, shift = self.count + count, mean - self.mean
        self._squares += (values - mean).square().sum().item() + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    def __call__(self, rewards: Tensor) -> Tensor:
        """Rewards less the mean so far, divided by the standard deviation so far."""
        return (rewards - self.mean) / max(self.std, EPS)

    def state_dict(self) -> dict[str, float]:
        """What `load_state_dict` takes."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.count, self.mean, self._squares = int(state["count"]), float(state["mean"]), float(state["squares"])


def group_ids(groups: Sequence[Hashable] | Tensor) -> Tensor:
    """Consecutive group numbers from 0, one a sample. A tensor of one element in a list stands for its value."""
    if isinstance(groups, str):
        raise ValueError(f"expected a group a sample, got one text, whose letters are none: {groups!r}")
    if isinstance(groups, Tensor):
        return groups.flatten().unique(return_inverse=True)[1]
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(_value(group), len(numbers)) for group in groups], dtype=torch.long)


def _value(group: Hashable) -> Hashable:
    """Tensors hash by identity: each would be a group of its own."""
    if not isinstance(group, Tensor):
        return group
    if group.numel() != 1:
        raise ValueError(f"expected a group a sample, got a tensor of shape {tuple(group.shape)} for one")
    return group.item()


def _ids_for(rewards: Tensor, groups: Sequence[Hashable] | Tensor) -> Tensor:
    ids = group_ids(groups).to(rewards.device)
    if len(ids) != len(rewards):
        raise ValueError(f"expected a group for each of {len(rewards)} rewards, got {len(ids)}")
    return ids


def _group_moments(rewards: Tensor, valid: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and population standard deviation of the valid rewards of every group, (G,) or (G,K).

    Of float64: in float32 the mean of equal rewards is not their value, and what is left looks like a spread.
    """
    groups = int(ids.max()) + 1 if len(ids) else 0
    zeros = rewards.new_zeros((groups, *rewards.shape[1:]))
    values = torch.where(valid, rewards, 0.0)
    count = zeros.index_add(0, ids, valid.to(rewards.dtype))
    mean = zeros.index_add(0, ids, values) / count.clamp_min(1)
    deviation = torch.where(valid, rewards - mean[ids], 0.0)
    std = (zeros.index_add(0, ids, deviation.square()) / count.clamp_min(1)).sqrt()
    return count, mean, std
