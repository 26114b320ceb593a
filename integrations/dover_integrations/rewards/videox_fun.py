"""VideoX-Fun: import `DoverLoss` in `videox_fun/reward/reward_fn.py`, then `--reward_fn DoverLoss`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dover_integrations.rewards.core import CHECKPOINT_FRAMES, DoverReward


class DoverLoss:
    """Loss and reward with gradients to the frames; arguments as VideoX-Fun's own rewards have them.

    Args:
        device, dtype: of the computation.
        max_reward: the loss is the distance from it, times `loss_scale`; None makes it minus the reward.
        loss_scale: of the loss.
        model, weights: as in `DoverReward`; weights are given as json in `--reward_fn_kwargs`.
        checkpoint_frames: as in `DoverReward.differentiable`.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float16,
        max_reward: float | None = 5.0,
        loss_scale: float = 1.0,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        checkpoint_frames: int | None = CHECKPOINT_FRAMES,
    ) -> None:
        self.max_reward, self.loss_scale, self.checkpoint_frames = max_reward, loss_scale, checkpoint_frames
        self.reward = DoverReward(
            model, weights=weights, layout="BCTHW", value_range=(0, 1), device=device, dtype=dtype
        )

    def __call__(self, batch_frames: Tensor, batch_prompt: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(mean loss, mean reward); `batch_frames` (B,C,T,H,W), float in 0-1."""
        rewards = self.get_reward(batch_frames, batch_prompt)
        loss = -rewards if self.max_reward is None else (rewards - self.max_reward).abs()
        return (loss * self.loss_scale).mean(), rewards.mean()

    def get_reward(self, batch_frames: Tensor, batch_prompt: Sequence[str]) -> Tensor:
        """Rewards (B,), with gradients."""
        return self.reward.differentiable(batch_frames, batch_prompt, checkpoint_frames=self.checkpoint_frames)
