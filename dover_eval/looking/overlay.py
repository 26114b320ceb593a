"""Local quality laid over the frames: the worse a place is, within its clip, the more of a warm colour lies on it."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dover_eval.explain import Explanation
from dover_eval.looking.media import as_image, shrink, write_mp4
from dover_eval.replacing import replacing
from dover_eval.video.decode import all_frames

MAPS = ("technical", "aesthetic")
WARM = (255, 98, 20)
STRONGEST = 0.7  # of the colour, at the worst place: what lies below stays to be seen


@dataclass(frozen=True)
class Overlay:
    """One head's map over a clip. low, high: the map's 5th and 95th percentile, where the colour is full and gone."""

    maps: Tensor
    times: tuple[float, ...]
    low: float
    high: float

    @classmethod
    def of(cls, explanation: Explanation, name: str) -> Overlay:
        """`name` is one of `MAPS`."""
        if name not in MAPS:
            raise ValueError(f"expected a map of {', '.join(MAPS)}, got {name!r}")
        maps = explanation.technical_map if name == "technical" else explanation.aesthetic_map
        low, high = np.percentile(maps.numpy(), (5, 95)).tolist()
        return cls(maps, explanation.map_times, low, high)

    def at(self, time: float) -> Tensor:
        """(H',W'), the map at a time in seconds, between its two moments in proportion."""
        after = bisect.bisect_left(self.times, time)
        if after in (0, len(self.times)):
            return self.maps[min(after, len(self.times) - 1)]
        share = (time - self.times[after - 1]) / max(self.times[after] - self.times[after - 1], 1e-9)
        return torch.lerp(self.maps[after - 1], self.maps[after], share)

    def draw(self, image: NDArray[np.uint8], time: float) -> NDArray[np.uint8]:
        """The frame (H,W,3) at `time` with its colour."""
        worse = ((self.high - self.at(time)) / max(self.high - self.low, 1e-6)).clamp(0, 1)
        size = (image.shape[0], image.shape[1])
        strength = STRONGEST * F.interpolate(worse[None, None], size, mode="bilinear")[0, 0].numpy()[..., None]
        mixed = image * (1 - strength) + np.array(WARM, np.float32) * strength
        return mixed.round().clip(0, 255).astype(np.uint8)


def overlay_frames(
    video: str | Path,
    overlay: Overlay | None,
    *,
    size: tuple[int, int] = (1080, 1920),
    spacing: float = 0.0,
) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Frames (H,W,3) with the colour, fitted into `size`, and their times in seconds from the first. Streams.

    `spacing`: frames that come sooner than so many seconds after the last one taken are left out. Raises VideoError.
    """
    first, following = None, -1.0
    for pixels, time in all_frames(video):
        first = time if first is None else first
        time -= first
        if time < following - 1e-6:
            continue
        following = time + spacing
        image = as_image(shrink(pixels, *size))
        yield (overlay.draw(image, time) if overlay else image), time


def write_overlay(explanation: Explanation, name: str, path: Path) -> None:
    """The whole clip with one of `MAPS` over it, as H.264 in MP4, at its own timestamps. Without sound."""
    with replacing(path) as draft:
        frames = overlay_frames(explanation.source, Overlay.of(explanation, name))
        write_mp4(str(draft), frames, end=explanation.duration)
