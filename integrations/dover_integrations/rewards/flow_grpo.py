"""flow_grpo and DiffusionNFT: `"dover": dover_score` in the `score_functions` of `flow_grpo/rewards.py`.

A plain function with an argument called `device`: flow_grpo looks for that name in `__code__.co_varnames`. The reward
is called from a thread pool while sampling goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dover_integrations.rewards.core import DoverReward

Score = Callable[[Tensor, Sequence[str], Any], tuple[Tensor, dict[str, Any]]]


def dover_score(
    device: str | torch.device, model: str | None = None, weights: Mapping[str, float] | None = None
) -> Score:
    """`fn(images, prompts, metadata)` -> (rewards (B,), {}); images (B,F,C,H,W), float in 0-1, on any device.

    `model` and `weights` are those of `DoverReward`. A clip that holds NaN raises: flow_grpo would average it in.
    """
    reward = DoverReward(model, weights=weights, layout="BTCHW", value_range=(0, 1), device=device)

    def score(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> tuple[Tensor, dict[str, Any]]:
        return reward(images, prompts), {}

    return score
