"""VideoReward, of KwaiVGI/VideoAlign (Liu et al., "Improving Video Generation with Human Feedback", 2025).

The repository is no package: it is cloned, with its requirements and its checkpoint (KwaiVGI/VideoReward on the hub).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from dover_eval.distillation import Logistic, Scale, TeacherError, requires
from dover_eval.hashing import file_sha256
from dover_eval.teachers.local import use_clone, weights_digest

WHERE = "https://github.com/KwaiVGI/VideoAlign"


class VideoReward:
    """Traditional, Temporal, Alignment and Overall, from its VQ, MQ, TA and their sum.

    Its numbers are normalised to mean 0 and deviation 1 over its own training set, and unbounded: 0 becomes 3. Visual
    quality there is about beauty as well.

    Args:
        root: a clone of the repository, whose `inference.py` is used.
        checkpoint: the folder with `model_config.json` and the weights.
        fps, num_frames: at most one; the checkpoint's own 2 frames a second are few for motion.
        device, dtype: of the model.
    """

    scales: ClassVar[dict[str, Scale]] = {
        "Traditional": Logistic(0.0, 1.0),
        "Alignment": Logistic(0.0, 1.0),
        "Temporal": Logistic(0.0, 1.0),
        "Overall": Logistic(0.0, 3.0),
    }
    names: ClassVar[dict[str, str]] = {"VQ": "Traditional", "MQ": "Temporal", "TA": "Alignment", "Overall": "Overall"}

    def __init__(
        self,
        root: str,
        checkpoint: str,
        fps: float | None = None,
        num_frames: int | None = None,
        device: str = "cuda",
        dtype: str = "bfloat16",
    ) -> None:
        import torch

        folder = use_clone(root, ["inference.py"], WHERE)
        with requires(f"pip install -r the requirements of {WHERE}", "see its repository and the checkpoint's card"):
            from inference import VideoVLMRewardInference  # type: ignore[import-not-found]
        config = Path(checkpoint) / "model_config.json"
        try:
            normalised = json.loads(config.read_bytes()).get("inference_config")
        except (OSError, ValueError, AttributeError) as error:
            raise TeacherError(f"{config}: expected the checkpoint's settings ({error})") from error
        if not normalised:  # the script would leave the numbers as they are, without a word
            raise TeacherError(f"{config}: expected means and deviations under inference_config, found none")
        self._model: Any = VideoVLMRewardInference(checkpoint, device=device, dtype=getattr(torch, dtype))
        self._sampling = {"fps": fps, "num_frames": num_frames}
        self.identity = {
            "weights": weights_digest(Path(checkpoint)),
            "config": file_sha256(config),
            "inference": file_sha256(folder / "inference.py"),
        }

    def __call__(self, path: str, prompt: str) -> dict[str, float]:
        import torch

        with torch.no_grad():
            (found,) = self._model.reward([path], [prompt], **self._sampling, use_norm=True)
        return {ours: found[name] for name, ours in self.names.items()}
