"""UniRL: a reward backend that a recipe names by `_target_: dover_integrations.rewards.unirl.DoverRewardBackend`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from unirl.reward.base import BaseRewardComponentSpec
from unirl.reward.local.base import LocalRewardBackend

from dover_integrations.rewards.core import DoverReward


@dataclass
class DoverSpec(BaseRewardComponentSpec):
    """model: a checkpoint, None for the embedded one. weights: of the scores. device: "auto" takes the worker's."""

    model: str | None = None
    weights: Mapping[str, float] | None = None
    device: str = "auto"
    batch_size: int = 8


class DoverRewardBackend(LocalRewardBackend):
    """Rewards of `request.videos`, a list of (C,T,H,W) in 0-1. What fails raises; UniRL takes no NaN for a reward."""

    canonical_model_name = "dover"
    input_kind = "video"

    def __init__(self, *, config: DoverSpec, base_device: str) -> None:
        device = base_device if config.device == "auto" else config.device
        self.reward = DoverReward(
            config.model,
            weights=config.weights,
            layout="CTHW",
            value_range=(0, 1),
            device=device,
            batch_size=config.batch_size,
        )
        super().__init__(device=device, batch_size=config.batch_size)

    def _load_model(self) -> None:
        self.reward.load()

    def _compute_model_rewards(self, request: Any) -> list[float]:
        if request.videos is None:
            raise ValueError("expected request.videos, a list of (C,T,H,W), got none")
        return self.reward(list(request.videos), self._prompts(request)).tolist()

    def compute_rewards_differentiable(self, media_tensor: Tensor, prompts: list[str], records: Any = None) -> Tensor:
        """Rewards (B,) with gradients; `media_tensor` (B,C,T,H,W) in 0-1."""
        return self.reward.differentiable(list(media_tensor), prompts)

    def covers_prompt_video(self) -> bool:
        """Whether the prompt weighs anything in the reward."""
        return self.reward.heeds_prompt

    def offload(self) -> None:
        """Free the device."""
        self.reward.offload()

    def onload(self) -> None:
        """Bring the model back."""
        self.reward.onload()

    def _prompts(self, request: Any) -> list[str]:
        # Newer releases let the backend choose between original and rewritten prompts; older ones have one list.
        prompts = getattr(self, "prompts", None)
        return list(prompts(request) if callable(prompts) else request.prompts)
