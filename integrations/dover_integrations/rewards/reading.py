"""Clips and files as a trainer has them, one by one as the model takes them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dover_eval.models.text import prompts_for
from dover_eval.video.decode import VideoError, decode_clip
from dover_eval.video.layout import as_list, as_path, as_tensor, check_clip, check_layout, unbatched

logger = logging.getLogger(__name__)

BYTE_RANGE = (0.0, 255.0)
FILE_FRAMES = 16  # of a video file that is looked at without a model


@dataclass(frozen=True)
class Failure:
    """Why one item has no scores."""

    reason: str


@dataclass(frozen=True)
class Item:
    """One clip (T,3,H,W), uint8 or float in `value_range`, or a video file, and its prompt.

    `ready` is the event after which the clip's values are there, on a GPU.
    """

    clip: Tensor | Path
    prompt: str
    value_range: tuple[float, float]
    ready: torch.cuda.Event | None = None


def to_unit(pixels: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Pixels of `value_range` as float32 in 0-1."""
    low, high = value_range
    return (pixels.float() - low) / (high - low)


@dataclass
class ClipReader:
    """Reads what `videos` may be: a tensor or an array, a path, or any iterable of clips or of paths.

    Args:
        layout, value_range: as in `DoverReward`.

    Raises ValueError for a layout or a range that makes no sense.
    """

    layout: str
    value_range: tuple[float, float]
    _warned: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_layout(self.layout)
        low, high = (float(bound) for bound in self.value_range)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"expected a value_range (black, white) such as (0, 1) or (0, 255), got {self.value_range}"
            )
        self.value_range = (low, high)

    def read(self, videos: Any, prompts: str | Sequence[str]) -> list[Item | Failure]:
        """An item a clip; files are not opened yet.

        Raises ValueError where shape, dtype, range or the number of prompts is not as said, TypeError for no videos.
        """
        clips = self._split(videos)
        prompts = prompts_for(len(clips), prompts)
        return [self._item(i, clip, prompt) for i, (clip, prompt) in enumerate(zip(clips, prompts, strict=True))]

    def pixels(self, videos: Any, most: int) -> tuple[Iterator[Tensor], int]:
        """The first `most` of `videos` as clips (T,3,H,W), fp32 in 0-1, without gradients; and how many came.

        Each is read when its turn comes; of a file `FILE_FRAMES` frames. Clips that hold NaN and files that fail are
        left out.
        """
        found = self._split(videos)
        return self._pixels(found[:most]), len(found)

    def _pixels(self, clips: list[Any]) -> Iterator[Tensor]:
        for i, clip in enumerate(clips):
            item = self._item(i, clip, "")
            if isinstance(item, Failure):
                continue
            try:
                frames = item.clip if isinstance(item.clip, Tensor) else decode_clip(item.clip, FILE_FRAMES).frames
            except VideoError:
                continue  # the reward has told
            yield to_unit(frames.detach(), item.value_range)

    def _split(self, videos: Any) -> list[Any]:
        videos = as_list(videos)
        if isinstance(videos, Tensor | np.ndarray):
            return unbatched(videos, self.layout)
        if isinstance(videos, list):
            return videos
        raise TypeError(f"expected an array, a tensor, a path or a list of these, got {type(videos).__name__}")

    def _item(self, i: int, clip: Any, prompt: str) -> Item | Failure:
        name = f"videos[{i}]"
        if isinstance(clip, str | os.PathLike):
            return Item(as_path(clip), prompt, BYTE_RANGE)
        clip = as_tensor(clip, name)
        if clip.dtype == torch.uint8 and self.value_range != BYTE_RANGE:
            raise ValueError(f"expected floats in {self.value_range}, got {name} of dtype uint8, whose range is 0-255")
        if clip.is_floating_point() and clip.numel():
            low, high = (bound.item() for bound in clip.detach().aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                return Failure(f"frames of shape {tuple(clip.shape)} hold NaN or infinity")
            if self.value_range == BYTE_RANGE and 0 < high <= 1 and not self._warned:
                self._warned = True
                logger.warning("%s has no value above %.3g of 0-255: is its range 0-1?", name, high)
        clip = check_clip(clip, self.layout.removeprefix("B"), name, self.value_range)
        ready = torch.cuda.current_stream(clip.device).record_event() if clip.is_cuda else None
        return Item(clip, prompt, self.value_range, ready)
