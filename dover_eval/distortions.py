"""Known ways to spoil a clip, each at a strength from 0 (untouched, by `compress` nearly) to 1 (as bad as it gets).

Every function takes frames (T,H,W,3) uint8, a strength and a random generator, and gives frames of the same shape.
`ASPECT_OF` says which of the five scores each one should move.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dover_eval.video.pixels import rgb_planes, write_h264

Frames = NDArray[np.uint8]
Distortion = Callable[[Frames, float, np.random.Generator], Frames]


def blur(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Gaussian blur, its sigma up to one fortieth of the height."""
    sigma = strength * frames.shape[1] / 40
    if sigma < 0.05:
        return frames
    reach = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).repeat(3, 1)
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), taps.view(3, 1, 1, -1), groups=3)
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), taps.view(3, 1, -1, 1), groups=3)
    return _to_frames(x)


def noise(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Independent Gaussian noise, its sigma up to 48 of 255."""
    grain = rng.standard_normal(frames.shape, dtype=np.float32) * (48 * strength)
    return np.clip(frames + grain, 0, 255).astype(np.uint8)


def compress(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Encoded as H.264 and decoded again, at a constant rate factor from 28 to 51."""
    return h264(frames, round(28 + 23 * strength))


def downscale(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Made smaller, at most by eight, and larger again."""
    height, width = frames.shape[1:3]
    factor = 8.0**-strength
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    small = F.interpolate(x, (max(4, round(height * factor)), max(4, round(width * factor))), mode="area")
    return _to_frames(F.interpolate(small, (height, width), mode="bicubic"))


def banding(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Smooth shades broken into steps, up to 64 of 255 high."""
    step = 64.0**strength
    return np.clip(np.floor(frames / step) * step + (step - 1) / 2, 0, 255).astype(np.uint8)


def flicker(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Every frame brighter or darker by its own factor, up to one half."""
    gains = 1 + 0.5 * strength * rng.uniform(-1, 1, len(frames)).astype(np.float32)
    return np.clip(frames * gains[:, None, None, None], 0, 255).astype(np.uint8)


def drop(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Frames lost and the one before shown again, at most three in four; motion stutters."""
    lost = rng.random(len(frames)) < 0.75 * strength
    lost[0] = False
    return frames[np.maximum.accumulate(np.where(lost, 0, np.arange(len(frames))))]


def freeze(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """One picture stands still, for three quarters of the clip at most; then the clip jumps to where it would be."""
    length = min(round(0.75 * strength * len(frames)), len(frames) - 1)
    start = int(rng.integers(0, len(frames) - length))
    order = np.arange(len(frames))
    order[start : start + length + 1] = start
    return frames[order]


def shuffle(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Frames out of order, each at most a third of the clip and a frame from its place."""
    reach = 1 + strength * len(frames) / 3  # within one frame of their place all stay where they are
    return frames[np.argsort(np.arange(len(frames)) + rng.uniform(0, reach, len(frames)), kind="stable")]


def jitter(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Every frame shifted by its own offset, up to one sixteenth of the height."""
    reach = strength * frames.shape[1] / 16
    shifts = rng.uniform(-reach, reach, (len(frames), 2)).round().astype(int)
    return np.stack([shift(frame, dy, dx) for frame, (dy, dx) in zip(frames, shifts, strict=True)])


def darken(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Underexposed, down to an eighth of the light."""
    return (frames * 8.0**-strength).astype(np.uint8)


def overexpose(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Overexposed and clipped, up to four times the light."""
    return np.clip(frames.astype(np.float32) * 4.0**strength, 0, 255).astype(np.uint8)


def fade(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Washed out: contrast and colour down to a sixth."""
    grey = frames.astype(np.float32).mean(axis=(1, 2, 3), keepdims=True)
    return (grey + (frames - grey) * (1 - strength * 5 / 6)).astype(np.uint8)


def tint(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """A colour cast: one channel up, another down, by up to 50 of 255."""
    cast = 50 * strength * rng.permutation(np.array([1.0, -1.0, 0.0], np.float32))
    return np.clip(frames + cast, 0, 255).astype(np.uint8)


DISTORTIONS: dict[str, dict[str, Distortion]] = {
    "Traditional": {"blur": blur, "noise": noise, "compress": compress, "downscale": downscale, "banding": banding},
    "Temporal": {"flicker": flicker, "drop": drop, "shuffle": shuffle, "jitter": jitter, "freeze": freeze},
    "Aesthetic": {"darken": darken, "overexpose": overexpose, "fade": fade, "tint": tint},
}
ASPECT_OF = {name: aspect for aspect, group in DISTORTIONS.items() for name in group}
_BY_NAME = {name: function for group in DISTORTIONS.values() for name, function in group.items()}


def distort(frames: Frames, name: str, strength: float, rng: np.random.Generator) -> Frames:
    """The distortion `name`, of `DISTORTIONS`, at `strength` in [0,1]."""
    if not 0 <= strength <= 1:
        raise ValueError(f"expected a strength in [0,1], got {strength}")
    return _BY_NAME[name](frames, strength, rng)


def h264(frames: Frames, crf: int) -> Frames:
    """Through a real H.264 encoder and back; sides are padded to even ones for it.

    Without x264's macroblock tree: on processors with AVX-512 it gives the same frames other bits from call to call,
    and others again than on processors without.
    """
    height, width = frames.shape[1:3]
    padded = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    write_h264(file, padded, rate=16, crf=str(crf), preset="veryfast", **{"x264-params": "mbtree=0"})
    file.seek(0)
    with av.open(file) as container:
        decoded = [rgb_planes(frame).permute(1, 2, 0).numpy() for frame in container.decode(video=0)]
    return np.stack(decoded)[:, :height, :width]


def shift(frame: NDArray[np.uint8], dy: int, dx: int) -> NDArray[np.uint8]:
    """A frame (H,W,3) seen from `dy` pixels further down and `dx` further right; what is beyond its edge repeats it."""
    height, width = frame.shape[:2]
    rows = np.clip(np.arange(height) + dy, 0, height - 1)
    columns = np.clip(np.arange(width) + dx, 0, width - 1)
    return frame[rows[:, None], columns]


def _to_frames(x: torch.Tensor) -> Frames:
    return x.clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
