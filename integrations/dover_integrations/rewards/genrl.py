"""GenRL: `reward_module: dover_integrations.rewards.genrl` in its yaml, and names from below under `reward_fn`.

GenRL calls `{name}_score(device)` of that module; so `dover: 1.0` is the overall reward, and `dover_alignment: 0.5`
and the like weigh single aspects. All rewards of a run then come from one module: to mix in GenRL's own, import both
into a module of yours.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dover_eval.forks import Lock
from dover_eval.opinion import SCORE_NAMES
from dover_integrations.rewards.core import DoverReward

Score = Callable[..., tuple[dict[str, Tensor], dict[str, Any]]]


class _Latest:
    """The scores of the clips that were asked for last: GenRL asks for each aspect of a batch in turn."""

    def __init__(self, reward: DoverReward) -> None:
        self._reward = reward
        self._key: tuple[Any, ...] = ()
        self._scores = torch.empty(0)
        self._lock = Lock()

    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if not isinstance(images, Tensor) or images.is_inference():  # nothing tells whether these have been changed
            return self._reward.scores(images, prompts)
        with self._lock:
            known = self._key and self._key[0]() is images and self._key[1:] == (images._version, tuple(prompts))
            if not known:
                self._scores = self._reward.scores(images, prompts)
                self._key = (weakref.ref(images), images._version, tuple(prompts))
            return self._scores


@cache
def _latest(model: str | None, device: str) -> _Latest:
    return _Latest(DoverReward(model, layout="BTCHW", value_range=(0, 1), device=device))


def aspect_score(name: str, device: str | torch.device, model: str | None = None) -> Score:
    """`fn(images, prompts, metadata)` -> ({"avg": rewards (B,) on `device`}, {}) for one of the five scores.

    `images` (B,F,C,H,W), float in 0-1. The aspects of one run share one model, and one pass through it for each batch.
    """
    # Any one aspect alone is no mistake here: the yaml weighs them, so the check for prompt-blind weights has no say.
    latest = _latest(model, str(device))
    column = SCORE_NAMES.index(name)

    def score(
        images: Tensor, prompts: Sequence[str], metadata: Any = None, only_strict: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        rewards = latest.scores(images, prompts)[:, column]
        return {"avg": rewards.to(device, copy=True)}, {}  # the other aspects still need what is kept

    return score


def dover_score(device: str | torch.device) -> Score:
    """Overall."""
    return aspect_score("Overall", device)


def dover_traditional_score(device: str | torch.device) -> Score:
    """Traditional."""
    return aspect_score("Traditional", device)


def dover_alignment_score(device: str | torch.device) -> Score:
    """Alignment."""
    return aspect_score("Alignment", device)


def dover_aesthetic_score(device: str | torch.device) -> Score:
    """Aesthetic."""
    return aspect_score("Aesthetic", device)


def dover_temporal_score(device: str | torch.device) -> Score:
    """Temporal."""
    return aspect_score("Temporal", device)
