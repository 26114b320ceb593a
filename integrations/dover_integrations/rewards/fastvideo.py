"""FastVideo: `"dover": DoverScorer` in `_NATIVE_SCORER_CLASSES` of `fastvideo/train/methods/rl/rewards/__init__.py`.

A name that is not in that table goes to DiffusionNFT's rewards frame by frame, and a video scored by its frames shows
no motion: the edit is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dover_integrations.rewards.core import DoverReward


class DoverScorer:
    """`scorer(media, prompts)` -> rewards (B,) float32 on `device`; media (B,C,T,H,W), float in 0-1."""

    def __init__(
        self,
        device: str | torch.device = "cuda",
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.reward = DoverReward(model, weights=weights, layout="BCTHW", value_range=(0, 1), device=self.device)

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.reward(media, prompts).to(self.device)
