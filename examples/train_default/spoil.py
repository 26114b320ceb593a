"""How clips get worse, in known amounts, and what should not matter to a score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_msssim import ms_ssim

from dover_eval.distortions import ASPECT_OF, DISTORTIONS, Frames, distort, h264, shift
from dover_eval.video.pixels import LUMA

SPOILED = ("Traditional", "Aesthetic", "Temporal")
NEED_MOTION = ("drop", "shuffle", "freeze")
UNSEEN = 0.4  # of 255: a temporal defect that changes less is not there
# The multi-scale structural similarity at which a clip is as bad as it gets.
WORST_SIMILARITY = 0.7


@dataclass(frozen=True)
class Camera:
    """What real clips have been through before anyone spoils them; the same for all versions of a clip."""

    light: float = 1.0
    glow: float = 0.0  # slow change of the light, which is no flicker
    shake: float = 0.0  # of a hand, in shares of the height: a smooth walk, which is no jitter
    bars: float = 0.0  # black, of the height or of the width
    grain: float = 0.0
    shrink: float = 1.0
    crf: int | None = None

    @classmethod
    def random(cls, rng: np.random.Generator) -> Camera:
        """Now and then none; else dark, shaken, letterboxed, noisy, enlarged or compressed, or several of these."""
        if rng.random() < 0.4:
            return cls()
        some = lambda chance, value: value if rng.random() < chance else None
        return cls(
            light=some(0.35, float(2 ** rng.uniform(-4.5, -0.3))) or 1.0,
            glow=some(0.3, float(rng.uniform(0.02, 0.25))) or 0.0,
            shake=some(0.5, float(rng.uniform(0.001, 0.008))) or 0.0,
            bars=some(0.25, float(rng.uniform(-0.25, 0.25))) or 0.0,
            grain=some(0.4, float(rng.uniform(1, 6))) or 0.0,
            shrink=some(0.3, float(rng.uniform(0.4, 0.9))) or 1.0,
            crf=some(0.5, int(rng.integers(20, 31))),
        )

    def exposed(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """The hand, the light and the bars, which are part of what is shown."""
        if self.shake:
            steps = rng.normal(0, self.shake * frames.shape[1], (len(frames), 2))
            path = np.cumsum((steps + np.roll(steps, 1, axis=0) + np.roll(steps, 2, axis=0)) / 3, axis=0)
            frames = np.stack([shift(f, int(y), int(x)) for f, (y, x) in zip(frames, path.round(), strict=True)])
        if self.light != 1.0 or self.glow:
            wave = np.sin(np.linspace(0, rng.uniform(0.5, 2.5), len(frames)) + rng.uniform(0, 6))
            gains = (self.light * (1 + self.glow * wave)).astype(np.float32)
            frames = np.clip(frames * gains[:, None, None, None], 0, 255).astype(np.uint8)
        if self.bars:
            frames = frames.copy()
            height, width = frames.shape[1:3]
            rows, columns = int(max(self.bars, 0) * height / 2), int(max(-self.bars, 0) * width / 2)
            frames[:, :rows] = frames[:, height - rows :] = 0
            frames[:, :, :columns] = frames[:, :, width - columns :] = 0
        return frames

    def recorded(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """The losses on the way to a file."""
        if self.shrink != 1.0:
            frames = resized(resized(frames, self.shrink), size=frames.shape[1:3])
        if self.grain:
            noise = rng.standard_normal(frames.shape, dtype=np.float32) * self.grain
            frames = np.clip(frames + noise, 0, 255).astype(np.uint8)
        return frames if self.crf is None else h264(frames, self.crf)


def spoil(
    frames: Frames, camera: Camera, moves: bool, rng: np.random.Generator, *, hand: int = 0
) -> tuple[Frames, dict[str, float], dict[str, float]]:
    """A version of `frames`: itself, the strength of every defect in it, and how bad each of `SPOILED` is, 0 to 1.

    At most one defect an aspect, each with an even chance. How bad the temporal and the aesthetic one are is their
    strength; for Traditional it is what MS-SSIM says of the result against the clip before camera and defect, because
    the same blur is worse for a lawn than for a wall. `hand` seeds the camera's own ways, the same for all versions.
    """
    strengths = dict.fromkeys(ASPECT_OF, 0.0)
    bad = dict.fromkeys(SPOILED, 0.0)
    frames = camera.exposed(frames, np.random.default_rng(hand))
    for aspect in ("Temporal", "Aesthetic"):
        if rng.random() < 0.5:
            continue
        names = [name for name in DISTORTIONS[aspect] if moves or name not in NEED_MOTION]
        name, strength = str(rng.choice(names)), float(rng.uniform(0.05, 1))
        spoiled = distort(frames, name, strength, rng)
        if np.abs(spoiled.astype(np.int16) - frames).mean() >= UNSEEN:
            frames, strengths[name], bad[aspect] = spoiled, strength, strength
    before = frames
    frames = camera.recorded(frames, rng)
    if rng.random() < 0.65:
        name, strength = str(rng.choice(list(DISTORTIONS["Traditional"]))), float(rng.uniform(0.05, 1))
        frames = distort(frames, name, strength, rng)
        strengths[name] = strength
    bad["Traditional"] = badness(before, frames)
    return _harmless(frames, rng), strengths, bad


def badness(before: Frames, after: Frames) -> float:
    """0 where both are the same, 1 from a mean MS-SSIM of `WORST_SIMILARITY` down; a square root between."""
    similarity = ms_ssim_of(before[::5], after[::5])
    return float(np.clip((1 - similarity) / (1 - WORST_SIMILARITY), 0, 1) ** 0.5)


def ms_ssim_of(before: Frames, after: Frames) -> float:
    """Mean MS-SSIM of the luma of two clips, frame by frame, made large enough for its five scales."""
    x, y = (torch.from_numpy(f @ np.array(LUMA, np.float32))[:, None] for f in (before, after))
    scale = 176 / min(x.shape[2:])
    if scale > 1:
        size = [round(side * scale) for side in x.shape[2:]]
        x, y = (F.interpolate(t, size, mode="bilinear") for t in (x, y))
    return float(ms_ssim(x, y, data_range=255))


def _harmless(frames: Frames, rng: np.random.Generator) -> Frames:
    """Now and then what must not move a score: a light encoding, or another size."""
    if rng.random() < 0.25:
        frames = resized(frames, float(rng.uniform(0.88, 1.12)))
    return h264(frames, int(rng.integers(14, 20))) if rng.random() < 0.25 else frames


def resized(frames: Frames, scale: float = 1.0, *, size: tuple[int, ...] | None = None) -> Frames:
    height, width = size or [max(16, round(side * scale)) for side in frames.shape[1:3]]
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (int(height), int(width)), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
