"""How steadily a clip moves, without a reference: from differences of frames, or from optical flow.

Both look for what no camera and no moving thing does: light that changes to and fro, a picture that stands still in
the middle of a movement, and movement that turns about between one frame and the next. Second differences tell these
from a fade, a pan and a run, which change as well, but evenly. They look at a clip's first 240 frames (`FRAMES`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from dover_eval.distillation import Linear, Scale, requires
from dover_eval.teachers import TEACHERS_EXTRA
from dover_eval.video.decode import all_frames
from dover_eval.video.pixels import LUMA

Grey = NDArray[np.float32]
HEIGHT = 120  # pixels of the shorter side that is looked at
FRAMES = 240
STILL, LEAST = 0.1, 0.5  # a frame repeats the last one if it changes by less than these: of a lively frame's, of 255
DARK = 8.0  # a frame this many times darker than the others is as good as black
SMALLEST = 32  # pixels of the shorter side, below which OpenCV's flow may crash
STEADY = 1.25  # how much further two frames go than one, in steady movement; measured: 1.3 to 2


class FrameDifference:
    """Temporal, in 0-1, from luma alone: the product of 1 / (1 + found / half) over three findings.

    flicker: the mean second difference of a frame's mean luma. stutter: the share of frames that repeat the last one in
    a clip that moves at all. reversal: how much less far two frames go than one would have it in steady movement. The
    latter two disregard repeated frames. Noise counts as reversal where it outweighs the movement.
    """

    scales: ClassVar[dict[str, Scale]] = {"Temporal": Linear(0.0, 1.0)}
    halves: ClassVar[dict[str, float]] = {"flicker": 5.0, "stutter": 0.2, "reversal": 0.1}

    def __call__(self, path: str, prompt: str) -> dict[str, float]:
        return {"Temporal": steadiness(self.findings(path), self.halves)}

    def findings(self, path: str) -> dict[str, float]:
        """flicker, in luma of 0-255; stutter and reversal, in 0-1."""
        frames, share = without_repeats(list(grey_frames(path)))
        steps, leaps = changes(frames, 1), changes(frames, 2)
        # What lies between is half of it each; to and fro, a leap is no longer than a step.
        gain = leaps.sum() / max((steps[1:] + steps[:-1]).sum() / 2, 1e-6) if len(leaps) else STEADY
        moves = len(steps) and np.quantile(steps, 0.9) > LEAST
        return {"flicker": flicker(frames), "stutter": share, "reversal": max(STEADY - gain, 0.0) if moves else 0.0}


class OpticalFlow:
    """Temporal, in 0-1, as `FrameDifference`, with jerk in the place of reversal.

    jerk: how much the flow of a place changes from one frame to the next; by dense inverse search (Kroeger et al.,
    2016) as OpenCV has it. It tells shaking and shuffling from noise, and grows with lively movement as well.
    """

    scales: ClassVar[dict[str, Scale]] = {"Temporal": Linear(0.0, 1.0)}
    halves: ClassVar[dict[str, float]] = {"flicker": 5.0, "stutter": 0.2, "jerk": 2.0}

    def __init__(self) -> None:
        with requires(TEACHERS_EXTRA, "Apache-2.0"):
            import cv2
        cv2.setNumThreads(1)  # the workers are the parallel part
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def __call__(self, path: str, prompt: str) -> dict[str, float]:
        return {"Temporal": steadiness(self.findings(path), self.halves)}

    def findings(self, path: str) -> dict[str, float]:
        """flicker, in luma of 0-255; stutter, in 0-1; jerk, in percent of the shorter side a frame and frame."""
        frames, share = without_repeats(list(grey_frames(path)))
        if min(frames[0].shape) < SMALLEST:
            raise ValueError(f"{frames[0].shape[1]}x{frames[0].shape[0]}, expected at least {SMALLEST} pixels a side")
        # The flow is of things, not of light: frames are brought to one brightness. Of black ones there is none.
        light = np.array([frame.mean() for frame in frames])
        usual = float(np.median(light))
        level = [
            np.clip(frame * (usual / mean), 0, 255).astype(np.uint8) if mean * DARK > usual else None
            for frame, mean in zip(frames, light, strict=True)
        ]
        flows = [None if a is None or b is None else self._flow.calc(a, b, None) for a, b in itertools.pairwise(level)]
        jerks = [
            np.linalg.norm(b - a, axis=2).mean()
            for a, b in itertools.pairwise(flows)
            if a is not None and b is not None
        ]
        jerk = 100 * float(np.mean(jerks)) / min(frames[0].shape) if jerks else 0.0
        return {"flicker": flicker(frames), "stutter": share, "jerk": jerk}


def steadiness(findings: Mapping[str, float], halves: Mapping[str, float]) -> float:
    """1 where nothing was found; each finding that reaches its `half` halves it."""
    return math.prod(1 / (1 + found / halves[name]) for name, found in findings.items())


def changes(frames: Sequence[Grey], apart: int) -> NDArray[np.float64]:
    """The mean absolute difference of frames so far apart, in luma of 0-255."""
    return np.array([np.abs(b - a).mean() for a, b in zip(frames, frames[apart:], strict=False)])


def without_repeats(frames: list[Grey]) -> tuple[list[Grey], float]:
    """The frames without those that repeat the last one, and the share of these; all of them where nothing moves."""
    steps = changes(frames, 1)
    if not len(steps) or steps.max() < LEAST:
        return frames, 0.0
    lively = max(float(np.quantile(steps, 0.9)), LEAST)  # the latter where a clip stands still for most of its time
    repeated = steps < min(STILL * lively, LEAST)
    return [frames[0], *(frame for frame, r in zip(frames[1:], repeated, strict=True) if not r)], float(repeated.mean())


def flicker(frames: Sequence[Grey]) -> float:
    """The mean second difference of the mean luma, in 0-255."""
    light = np.array([frame.mean() for frame in frames])
    return float(np.abs(np.diff(light, 2)).mean()) if len(light) > 2 else 0.0


def grey_frames(path: str) -> Iterator[Grey]:
    """Luma (H,W) in 0-255 of the first frames, the shorter side at most `HEIGHT` pixels."""
    for frame, _ in itertools.islice(all_frames(path), FRAMES):
        red, green, blue = (share * channel for share, channel in zip(LUMA, frame, strict=True))
        luma = (red + green + blue)[None, None]
        scale = HEIGHT / min(luma.shape[2:])
        if scale < 1:
            size = [round(side * scale) for side in luma.shape[2:]]
            luma = F.interpolate(luma, size, mode="bilinear", antialias=True)
        yield luma[0, 0].numpy()
