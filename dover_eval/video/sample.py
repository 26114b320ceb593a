"""Which frames of a clip a model sees, and in what size: uniform in time, the same ones every run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dover_eval.config import DOVERConfig


def sample_times(start: float, end: float, count: int) -> list[float]:
    """The middles of `count` equal parts of the time from `start` to `end`, in seconds."""
    return [start + (end - start) * (i + 0.5) / count for i in range(count)]


def sample_indices(length: int, count: int) -> list[int]:
    """The frames on screen in the middles of `count` equal parts of `length` frames; short clips repeat frames."""
    return [min(int(time), length - 1) for time in sample_times(0, length, count)]


def prepare_clip(clip: Tensor, config: DOVERConfig, device: torch.device | str | None = None) -> Tensor:
    """(T,3,H,W), uint8 in 0-255 or float in 0-1, to the model's (3,num_frames,h,w), fp32, normalised, on `device`.

    Frames are taken uniformly in time and squashed with antialiasing. They cross to the device as they are and are
    resized one by one, so that a 4K clip needs no more than one frame in floating point. Differentiable.
    """
    clip = clip[sample_indices(len(clip), config.num_frames)] if len(clip) != config.num_frames else clip
    mean = torch.tensor(config.mean, device=device or clip.device).view(3, 1, 1)
    std = torch.tensor(config.std, device=device or clip.device).view(3, 1, 1)
    frames = []
    for frame in clip.to(device):
        pixels = frame.float() / 255 if frame.dtype == torch.uint8 else frame.float()
        if pixels.shape[1:] != config.frame_size:
            pixels = F.interpolate(pixels[None], config.frame_size, mode="bilinear", antialias=True)[0]
        frames.append((pixels - mean) / std)
    return torch.stack(frames, dim=1)
