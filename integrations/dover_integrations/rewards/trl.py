"""TRL: `GRPOTrainer(reward_funcs=[DoverVideoReward()])`, where the dataset has a column `video`.

TRL trains language models: this scores the video that goes with a row, such as a clip that an agent's tool rendered,
against the row's prompt. TRL has no trainer of video diffusion any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dover_eval.opinion import SCORE_NAMES
from dover_integrations.rewards.core import DoverReward


class DoverVideoReward:
    """A reward function in TRL's form; picklable, with a `__name__` for its logs.

    Args:
        model, weights, device: as in `DoverReward`.
        column: the dataset's column of videos: files, or arrays in `layout` and `value_range`.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        column: str = "video",
        layout: str = "THWC",
        value_range: tuple[float, float] = (0, 255),
        device: str | None = None,
    ) -> None:
        self.__name__ = "dover_video_reward"
        self.column = column
        self.reward = DoverReward(
            model, weights=weights, layout=layout, value_range=value_range, nan_policy="nan", device=device
        )

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        """A reward a row; None, which TRL leaves out, for a row without a video or one that cannot be scored.

        `prompts` are texts or lists of messages, whose last user message counts. The means of the five scores go to
        `log_metric` where TRL passes one.
        """
        if self.column not in columns:
            raise ValueError(f"expected the column {self.column!r} in the dataset, got {sorted(columns)}")
        videos = columns[self.column]
        rewards: list[float | None] = [None] * len(prompts)
        rows = [i for i, video in enumerate(videos) if video is not None]
        scores = self.reward.scores([videos[i] for i in rows], [prompt_text(prompts[i]) for i in rows])
        for i, value in zip(rows, self.reward.combine(scores).tolist(), strict=True):
            rewards[i] = None if math.isnan(value) else value
        if rows and (log_metric := columns.get("log_metric")) is not None:
            for name, mean in zip(SCORE_NAMES, scores.nanmean(dim=0).tolist(), strict=True):
                log_metric(f"dover/{name}", mean)
        return rewards


def prompt_text(prompt: Any) -> str:
    """The text of a prompt in TRL's standard or conversational form."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt):
        if message.get("role") == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            return " ".join(part["text"] for part in content if part.get("type") == "text")
    raise ValueError(f"expected a text or messages with one of the user, got {prompt!r}")
