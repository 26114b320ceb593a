"""Flow-Factory: `reward_model: dover_integrations.rewards.flow_factory.DoverRewardModel` in its yaml's `rewards`."""

from __future__ import annotations

from typing import Any

from flow_factory.rewards.abc import PointwiseRewardModel, RewardModelOutput
from torch import Tensor

from dover_integrations.rewards.core import DoverReward


class DoverRewardModel(PointwiseRewardModel):
    """Rewards of a batch of generated videos.

    Further keys of the reward's yaml entry: `model_name_or_path` names a checkpoint, `weights` a mapping of scores.
    """

    required_fields = ("prompt", "video")
    use_tensor_inputs = True
    device: Any

    def __init__(self, config: Any, accelerator: Any) -> None:
        super().__init__(config, accelerator)
        self.reward = DoverReward(
            getattr(config, "model_name_or_path", None) or None,
            weights=getattr(config, "weights", None),
            layout="TCHW",
            value_range=(0, 1),
            device=self.device,
        )

    def __call__(self, prompt: list[str], video: list[Tensor] | None = None, **kwargs: Any) -> RewardModelOutput:
        """`RewardModelOutput` with rewards (B,) on the device; `video` is a list of (T,C,H,W), float in 0-1."""
        if video is None:
            raise ValueError(f"expected video, a list of tensors (T,C,H,W), got none beside {sorted(kwargs)}")
        return RewardModelOutput(rewards=self.reward(list(video), prompt).to(self.device))

    def to(self, device: Any) -> DoverRewardModel:
        """Move the model; Flow-Factory's own looks for `self.model`, which a shared one has no use for."""
        self.reward.to(device)
        self.device = device
        return self
