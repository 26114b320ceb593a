"""VQAScore (Lin et al., "Evaluating Text-to-Visual Generation with Image-to-Text Generation", 2024), of t2v_metrics.

The probability of "yes" to the question whether the clip shows the prompt. The package is Apache-2.0; each of its
models has a licence of its own. It pins old versions of torch and much else: give it an environment of its own.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from dover_eval.distillation import Linear, Scale, requires

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")  # what t2v_metrics takes for a video


class VQAScore:
    """Alignment: its probability, in 0-1.

    Args:
        model: a name of `t2v_metrics.list_all_vqascore_models()`. Of those that read pictures alone, the frames are put
            side by side into one.
        num_frames: for those; fps: for those that read videos, where they take it.
        device: of the model.
    """

    scales: ClassVar[dict[str, Scale]] = {"Alignment": Linear(0.0, 1.0)}

    def __init__(
        self,
        model: str = "clip-flant5-xxl",
        num_frames: int = 8,
        fps: float | None = None,
        device: str = "cuda",
    ) -> None:
        with requires("pip install t2v-metrics", "Apache-2.0; the models under their own"):
            import t2v_metrics  # type: ignore[import-not-found]
        self._score: Any = t2v_metrics.VQAScore(model=model, device=device)
        self._options: dict[str, Any] = {"num_frames": num_frames} | ({"fps": fps} if fps is not None else {})
        # It keeps frames of a clip in the working folder under the clip's name, which two workers would share.
        self._folder = tempfile.TemporaryDirectory(prefix="vqascore-")
        os.chdir(self._folder.name)

    def __call__(self, path: str, prompt: str) -> dict[str, float]:
        if Path(path).suffix.lower() not in SUFFIXES:
            raise ValueError(f"t2v_metrics reads {', '.join(SUFFIXES)}, not {Path(path).name}")
        return {"Alignment": self._score(images=[path], texts=[prompt], **self._options)[0, 0].item()}
