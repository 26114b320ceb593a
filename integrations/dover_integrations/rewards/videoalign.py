"""VideoAlign's inferencer, for DanceGRPO and whatever else scores mp4 files with it: an edit of its import line."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from dover_eval.opinion import MOS_MAX, MOS_MIN, SCORE_NAMES
from dover_integrations.rewards.core import DoverReward

logger = logging.getLogger(__name__)

MIDDLE = (MOS_MIN + MOS_MAX) / 2


class VideoVLMRewardInference:
    """Answers as VideoAlign does, with dover-eval's scores.

    VQ is the mean of Traditional and Aesthetic, MQ is Temporal, TA is Alignment, and Overall the sum of the three, as
    there. The five scores stand beside them under their own names (Overall as "dover_Overall").

    `load_from_pretrained` is a checkpoint of dover-eval, or None for the embedded one: not VideoAlign's.
    """

    def __init__(
        self,
        load_from_pretrained: str | None = None,
        load_from_pretrained_step: int = -1,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.reward_model = DoverReward(
            load_from_pretrained, layout="TCHW", value_range=(0, 255), device=device, dtype=dtype
        )

    def reward(
        self,
        video_paths: str | Sequence[str],
        prompts: str | Sequence[str],
        fps: float | None = None,
        num_frames: int | None = None,
        max_pixels: int | None = None,
        use_norm: bool = True,
    ) -> list[dict[str, float]]:
        """A dictionary a file; with `use_norm` the middle of the scale, 3, is subtracted from VQ, MQ and TA.

        A file that cannot be decoded raises RewardError. `fps`, `num_frames` and `max_pixels` belong to the
        checkpoint here; a warning says so where one is asked for.
        """
        if fps is not None and num_frames is not None:
            raise ValueError(f"expected fps or num_frames, got both: {fps} and {num_frames}")
        asked = {"fps": fps, "num_frames": num_frames, "max_pixels": max_pixels}
        if any(value is not None for value in asked.values()):
            logger.warning("%s are not used: frames are sampled as the checkpoint was trained", asked)
        return [_as_videoalign(row, use_norm) for row in self.reward_model.scores(video_paths, prompts).tolist()]


def _as_videoalign(row: list[float], use_norm: bool) -> dict[str, float]:
    scores = dict(zip(SCORE_NAMES, row, strict=True))
    shift = MIDDLE if use_norm else 0.0
    answer = {
        "VQ": (scores["Traditional"] + scores["Aesthetic"]) / 2 - shift,
        "MQ": scores["Temporal"] - shift,
        "TA": scores["Alignment"] - shift,
    }
    answer["Overall"] = sum(answer.values())
    return answer | {"dover_Overall" if name == "Overall" else name: score for name, score in scores.items()}
