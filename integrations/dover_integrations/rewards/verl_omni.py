"""verl-omni: `reward.custom_reward_function.path=pkg://dover_integrations.rewards.verl_omni name=compute_score`.

verl-omni asks for one sample at a time, many at once on one event loop: the queue makes batches of them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from dover_eval.opinion import SCORE_NAMES
from dover_integrations.rewards.core import DoverReward


async def compute_score(
    data_source: str | None,
    solution_image: Tensor,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    model: str | None = None,
    device: str | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """`{"score": Overall, "Traditional": ..., ...}` of one video, uint8 (T,C,H,W); the prompt is `ground_truth`.

    `model` and `device` come from `reward.custom_reward_function.reward_kwargs`. For another weighting write three
    lines of your own around `DoverReward.scores_async`.
    """
    scores = (await _reward(model, device).scores_async([solution_image], [ground_truth]))[0].tolist()
    named = dict(zip(SCORE_NAMES, scores, strict=True))
    return {"score": named["Overall"], **named}


@cache
def _reward(model: str | None, device: str | None) -> DoverReward:
    return DoverReward(model, layout="TCHW", value_range=(0, 255), device=device)
