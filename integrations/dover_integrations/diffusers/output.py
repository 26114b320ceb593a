"""`score_pipeline_output`: scores of what a pipeline gave, for pipelines that take no callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dover_integrations.diffusers.callback import Scorer, repeat_prompts


def score_pipeline_output(output: Any, prompts: str | Sequence[str], scorer: Scorer) -> Any:
    """Score the videos of a diffusers output.

    Args:
        output: a pipeline's output (`.frames`), the tuple of `return_dict=False`, a modular pipeline's `videos`, or the
            frames themselves: of any output_type but "latent": "pil", "np" (B,T,H,W,3) or "pt" (B,T,3,H,W). PIL images
            in one list are one clip.
        prompts: one text, or one for each prompt of the call; `num_videos_per_prompt` repeats them as the pipeline
            does.
        scorer: a `VideoScorer`.

    Returns:
        what the scorer gives: `VideoScores`.

    Raises:
        TypeError: no frames are in `output`.
        ValueError: they are of another shape or range, as latents are.
    """
    frames = getattr(output, "frames", output)
    if isinstance(frames, tuple):
        frames = frames[0]
    if isinstance(frames, list) and frames and isinstance(frames[0], Image.Image):
        frames = [frames]
    if isinstance(frames, Tensor | np.ndarray):
        layout = "BTCHW" if isinstance(frames, Tensor) else "BTHWC"
    elif isinstance(frames, list) and frames and isinstance(frames[0], list):
        frames = [np.stack([np.asarray(image) for image in clip]) for clip in frames]
        layout = "THWC"
    elif isinstance(frames, list) and frames and isinstance(frames[0], Tensor | np.ndarray):
        layout = "TCHW" if isinstance(frames[0], Tensor) else "THWC"
    else:
        raise TypeError(f"expected frames as PIL images, an array or a tensor, got {type(frames).__name__}")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    return scorer.score(frames, list(repeat_prompts(prompts, len(frames))), layout=layout)
