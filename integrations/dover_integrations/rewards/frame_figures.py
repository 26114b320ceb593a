"""Cheap figures of frames at hand: what a policy changes when it pleases a reward and not an eye."""

from __future__ import annotations

import torch
from torch import Tensor

from dover_eval.video.pixels import LUMA

GRID_PERIOD = 8
EDGE = 0.02


def frame_figures(clip: Tensor) -> dict[str, float]:
    """Figures of a clip (T,3,H,W), float in 0-1.

    motion: mean absolute change of luma from frame to frame; NaN for one frame. saturation: mean distance of the
    greatest from the least channel. contrast: standard deviation of luma in a frame. brightness: mean luma. clipped:
    share of values within 2% of black or white. grid: share of the gradient's power at the harmonics of 8 pixels,
    the grid of latent patches (and so of 4 and 2 pixels, a checkerboard); the mean of both axes.
    """
    clip = clip.float()
    luma = torch.einsum("tchw,c->thw", clip, clip.new_tensor(LUMA))
    figures = {
        "motion": luma.diff(dim=0).abs().mean() if len(luma) > 1 else luma.new_tensor(torch.nan),
        "saturation": (clip.amax(1) - clip.amin(1)).mean(),
        "contrast": luma.flatten(1).std(dim=1, correction=0).mean(),
        "brightness": luma.mean(),
        "clipped": ((clip < EDGE) | (clip > 1 - EDGE)).float().mean(),
        "grid": (_grid_share(luma) + _grid_share(luma.transpose(1, 2))) / 2,
    }
    return {name: value.item() for name, value in figures.items()}


def _grid_share(luma: Tensor) -> Tensor:
    """Along the last axis, cut to whole periods; NaN where there are fewer than two."""
    width = luma.shape[-1] // GRID_PERIOD * GRID_PERIOD
    if width < 2 * GRID_PERIOD:
        return luma.new_tensor(torch.nan)
    power = torch.fft.rfft(luma[..., :width]).abs().square().mean(dim=(0, 1))
    # The gradient's spectrum: the square of the frequency weighs the picture's own slow content down.
    power = power * torch.arange(len(power), device=power.device).square()
    step = width // GRID_PERIOD
    return power[step::step].sum() / power.sum().clamp_min(torch.finfo(power.dtype).tiny)
