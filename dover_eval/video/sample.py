"""Which frames of a clip a model sees, and in what views: the same ones every run."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dover_eval.config import QUARTERS, DOVERConfig

FRAGMENTS = 4  # a side, as in FAST-VQA and DOVER, whose 7x7 are of 32 pixels each


def sample_times(start: float, end: float, count: int) -> list[float]:
    """The middles of `count` equal parts of the time from `start` to `end`, in seconds."""
    return [start + (end - start) * (i + 0.5) / count for i in range(count)]


def tolerance(count: int) -> float:
    """A moment within this distance before a frame, in frames, belongs to that frame: what is rounded must not decide.
    Of evenly spaced frames, `count` moments lie at multiples of 1 / (2 * count)."""
    return 1 / (4 * count)


def sample_indices(length: int, count: int, windows: int = 1) -> list[int]:
    """Which of `length` frames are seen.

    One window: the frames on screen in the middles of `count` equal parts; short clips repeat frames. Several: runs of
    `count // windows` consecutive frames around the middles of the clip's equal parts; they overlap in clips shorter
    than `count`, and a clip shorter than a run goes back and forth, since a repeated frame would look like a fault.
    """
    if windows == 1:
        return [min(int(time + tolerance(count)), length - 1) for time in sample_times(0, length, count)]
    run = count // windows
    if length < run:
        there_and_back = [*range(length), *range(length - 2, 0, -1)]
        return [there_and_back[i % len(there_and_back)] for i in range(run)] * windows
    firsts = [min(max(round(middle - run / 2), 0), length - run) for middle in sample_times(0, length, windows)]
    return [first + i for first in firsts for i in range(run)]


def sample_clip(clip: Tensor, config: DOVERConfig) -> Tensor:
    """The frames of a clip (T,3,H,W) that the model sees; one of `num_frames` frames is taken as sampled."""
    if len(clip) == config.num_frames:
        return clip
    return clip[sample_indices(len(clip), config.num_frames, config.windows)]


def prepare_clip(clip: Tensor, config: DOVERConfig, device: torch.device | str | None = None) -> Tensor:
    """(T,3,H,W), uint8 in 0-255 or float in 0-1, to what the model reads, fp32, normalised, on `device`.

    (3,num_frames,h,w) for a model of one view, (V,3,num_frames,h,w) for one of several. A clip of `num_frames` frames
    is taken as sampled. Frames cross to the device as they are and are resized one by one, with antialiasing, so that
    a 4K clip needs no more than one frame in floating point. Differentiable.
    """
    clip = sample_clip(clip, config)
    mean = torch.tensor(config.mean, dtype=torch.float32, device=device or clip.device).view(3, 1, 1)
    std = torch.tensor(config.std, dtype=torch.float32, device=device or clip.device).view(3, 1, 1)
    views: list[list[Tensor]] = [[] for _ in config.views]
    for index, frame in enumerate(clip.to(device)):
        pixels = frame.float().div_(255) if frame.dtype == torch.uint8 else frame.float()
        for name, frames in zip(config.views, views, strict=True):
            if name != "pictures":
                frames.append((_VIEWS[name](pixels, config.frame_size) - mean) / std)
            elif index % QUARTERS == 0:
                frames += quarters((squash(pixels, picture_size(config)) - mean) / std)
    prepared = [torch.stack(frames, dim=1) for frames in views]
    return prepared[0] if len(prepared) == 1 else torch.stack(prepared)


def squash(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """A frame (3,H,W) as (3,h,w), whatever its aspect ratio."""
    if pixels.shape[1:] == size:
        return pixels
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames (T,3,H,W) uint8 as (T,3,h,w) uint8, with antialiasing."""
    if frames.shape[2:] == size:
        return frames
    return F.interpolate(frames.float(), size, mode="bilinear", antialias=True).round().clamp(0, 255).byte()


def fragments(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Patches of a frame (3,H,W), from the middles of 4x4 equal parts, side by side as (3,h,w).

    Pixels are as they are, except in frames smaller than `size`, which are enlarged first.
    """
    scale = max(wanted / found for wanted, found in zip(size, pixels.shape[1:], strict=True))
    if scale > 1:
        enlarged = (max(size[0], round(pixels.shape[1] * scale)), max(size[1], round(pixels.shape[2] * scale)))
        pixels = F.interpolate(pixels[None], enlarged, mode="bilinear", antialias=True)[0]
    rows, columns = (_middles(*sides, pixels.device) for sides in zip(pixels.shape[1:], size, strict=True))
    return pixels[:, rows][:, :, columns]


def _middles(whole: int, side: int, device: torch.device) -> Tensor:
    """Where, of `whole` pixels, those lie that `fragments` puts together to `side`."""
    patch = side // FRAGMENTS
    firsts = [int((i + 0.5) * whole / FRAGMENTS - patch / 2) for i in range(FRAGMENTS)]
    return torch.tensor([first + i for first in firsts for i in range(patch)], device=device)


def picture_size(config: DOVERConfig) -> tuple[int, int]:
    """(height, width) of a picture: twice a frame's."""
    return 2 * config.frame_size[0], 2 * config.frame_size[1]


def quarters(picture: Tensor) -> list[Tensor]:
    """A picture (3,2h,2w) as four of (3,h,w), row by row."""
    return [part for row in picture.chunk(2, dim=1) for part in row.chunk(2, dim=2)]


def join_quarters(frames: Tensor) -> Tensor:
    """What `quarters` cut, (...,3,4,h,w), whole again, (...,3,2h,2w)."""
    rows = frames.unflatten(-3, (2, 2)).movedim(-3, -2)  # (...,3,2,h,2,w)
    return rows.flatten(-2).flatten(-3, -2)


_VIEWS: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {"squash": squash, "fragments": fragments}
