"""cosmos-rl's reward service: import this module in its `cosmos_rl_reward/model/__init__.py`, and name "dover" in its
rewards toml. Registration happens on import.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from cosmos_rl_reward.handler.registry import RewardRegistry
from cosmos_rl_reward.handler.reward_base import BaseRewardHandler
from torch import Tensor

from dover_eval.opinion import SCORE_NAMES
from dover_integrations.rewards.core import DoverReward

DTYPES = ("float32", "bfloat16", "float16")


@RewardRegistry.register()
class DoverRewardHandler(BaseRewardHandler):
    """Answers with a list of each of the five scores.

    Args:
        model_path: a checkpoint; "" is the embedded one. The service has another model as its default.
        dtype: of the computation, "float32", "bfloat16" or "float16".

    Raises ValueError for another dtype.
    """

    reward_name = "dover"
    NEEDS_LATENT_DECODER = True  # else the service builds no VAE, and no clip ever comes

    def __init__(
        self, model_path: str = "", dtype: str = "float32", device: str = "cuda", download_path: str = "", **kwargs: Any
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
        self.reward = DoverReward(
            model_path or None, layout="BCTHW", value_range=(0, 255), device=device, dtype=getattr(torch, dtype)
        )

    def set_up(self) -> None:
        """Load the model."""
        self.reward.load()

    def calculate_reward(self, images: Tensor, metadata: dict[str, Any]) -> dict[str, Any]:
        """`images` (B,C,T,H,W) in 0-255, and `metadata["prompts"]`.

        What fails is answered with an `error` and no scores: the service's loop would only log an exception, and the
        trainer wait for ever.
        """
        start = time.monotonic()
        answer: dict[str, Any] = {
            "input_info": metadata.get("input_info", {}),
            "decoded_duration": metadata.get("decode_duration", "N/A"),
            "type": self.reward_name,
        }
        try:
            columns = self.reward.scores(images, list(metadata["prompts"])).T.tolist()
            answer["scores"] = {name.lower(): column for name, column in zip(SCORE_NAMES, columns, strict=True)}
        except Exception as error:
            answer |= {"scores": None, "error": f"{type(error).__name__}: {error}"}
        return answer | {"duration": f"{time.monotonic() - start:.2f}"}
