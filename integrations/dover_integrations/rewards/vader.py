"""VADER: one branch `elif args.reward_fn == "dover": loss_fn = dover_loss_fn(...)` in its training script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dover_integrations.rewards.core import DoverReward

LossFunction = Callable[[Tensor, str | Sequence[str]], tuple[Tensor, Tensor]]


def dover_loss_fn(
    target: float | None = None,
    grad_scale: float = 1.0,
    device: str | torch.device | None = None,
    torch_dtype: torch.dtype | None = None,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
) -> LossFunction:
    """`loss_fn(frames, prompts)` -> (loss, reward), both means over the batch, with gradients to `frames`.

    `frames` are pixels in [-1, 1], clamped as VADER's own losses do: single frames (B,C,H,W), which have no motion to
    judge, or clips (B,F,C,H,W), as it decodes them for its video rewards. `target` None maximises the reward; else
    the loss is the distance from it.
    """
    reward = DoverReward(model, weights=weights, layout="BTCHW", value_range=(-1, 1), device=device, dtype=torch_dtype)

    def loss_fn(frames: Tensor, prompts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        clips = frames.unsqueeze(1) if frames.ndim == 4 else frames
        rewards = reward.differentiable(clips.clamp(-1, 1), prompts)
        loss = -rewards if target is None else (rewards - target).abs()
        return loss.mean() * grad_scale, rewards.mean()

    return loss_fn
