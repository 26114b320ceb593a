"""What a small backbone cannot learn in an hour and should not have to.

Sharpness and change as planes for its input; shares of flat and of frozen places, light and colour casts for the
quality scores. All of it differentiable, and none of it learned. What prompts ask for is in `dover_eval.models.sights`.
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from dover_eval.video.pixels import LUMA

# Differences between neighbours, of 255, below which a place counts as flat, softly.
FLAT = (0.7, 2.0, 6.0, 16.0, 48.0)
# Shares of the clip's mean motion below which a pair of frames counts as frozen, softly.
FROZEN = (0.01, 0.03, 0.1, 0.3)
MOTION_FLOOR = 0.05  # mean squared difference, of 255: what stands still by less than this stands still
PIXEL_STATISTICS = 2 * len(FLAT) + len(FROZEN) + 4
# Levels of light, of 255, whose shares below tell what is too dark, blown out or washed out.
LIGHT = (4, 16, 32, 64, 96, 128, 160, 192, 224, 240, 251)
EXTREME = 30.0  # sharpness of the softened lightest and darkest values
GREYISH = 0.15  # difference of channels, of 1, up to which a pixel counts as grey: there a cast shows
EXPOSURE_STATISTICS = len(LIGHT) + 17


def video_signals(frames: Tensor, names: tuple[str, ...]) -> Tensor:
    """`frames` (B,3,T,H,W), normalised RGB, and the planes that `names` asks for after "rgb".

    "highpass": luma minus its 3x3 mean; blur lowers it, noise and blocking raise it.
    "difference": luma minus that of the frame before; "global_difference": its mean over the frame, where
    flicker stands apart from motion. The first frame takes the difference of the second; a still clip has none.

    Returns (B, 2 + len(names), T, H, W), in the dtype of `frames`. Computed in fp32 at least, under autocast too: small
    differences of luma are lost in half precision.
    """
    if names == ("rgb",):
        return frames
    plain = nullcontext() if frames.is_meta else torch.autocast(frames.device.type, enabled=False)  # meta has none
    with plain:
        exact = frames.to(torch.promote_types(frames.dtype, torch.float32))
        return _planes(exact, names).to(frames.dtype)


def _planes(frames: Tensor, names: tuple[str, ...]) -> Tensor:
    luma = torch.einsum("bcthw,c->bthw", frames, frames.new_tensor(LUMA)).unsqueeze(1)
    if luma.shape[2] > 1:
        change = luma.diff(dim=2)
        change = torch.cat([change[:, :, :1], change], dim=2)
    else:
        change = torch.zeros_like(luma)
    planes = {"rgb": frames}
    if "highpass" in names:
        flat = luma.transpose(1, 2).flatten(0, 1)
        smooth = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        planes["highpass"] = luma - smooth.unflatten(0, (luma.shape[0], luma.shape[2])).transpose(1, 2)
    if "difference" in names:
        planes["difference"] = change
    if "global_difference" in names:
        planes["global_difference"] = change.mean(dim=(3, 4), keepdim=True).expand_as(change)
    return torch.cat([planes[name] for name in names], dim=1)


def pixel_statistics(frames: Tensor, std: tuple[float, ...]) -> Tensor:
    """How much of a clip is flat, and how much of it stands still: (B, PIXEL_STATISTICS), fp32.

    `frames` (B,R,3,T,H,W), normalised by `std`: runs of consecutive frames. The shares of places whose neighbour in
    space, then in time, differs by less than each of `FLAT`, which banding, blur and blocks raise and noise lowers. Of
    the clip's pairs of frames, the shares that move less than each of `FROZEN` of the clip's mean: nothing is frozen in
    a clip that stands still all the time. And the logarithms of the largest, the least and the mean motion.
    """
    luma = torch.einsum("brcthw,c->brthw", frames.float(), frames.new_tensor(LUMA).float() * _levels(std, frames))
    across, down, change = luma.diff(dim=-1), luma.diff(dim=-2), luma.diff(dim=2)
    flat = [(a + d) / 2 for a, d in zip(_shares_below(across, FLAT), _shares_below(down, FLAT), strict=True)]
    flat += _shares_below(change, FLAT)
    if change.shape[2] == 0:  # one frame a run: nothing moves
        change = torch.zeros_like(luma)
    motion = change.square().mean(dim=(3, 4)).flatten(1) + MOTION_FLOOR
    mean = motion.mean(dim=1, keepdim=True)
    relative = motion / mean
    frozen = [torch.exp(-relative / share).mean(dim=1) for share in FROZEN]
    logs = relative.log()
    return torch.stack([*flat, *frozen, logs.amax(1), logs.amin(1), logs.mean(1), mean[:, 0].log()], dim=1)


def exposure_statistics(frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """How a clip is lit and coloured: (B, EXPOSURE_STATISTICS), fp32.

    `frames` (B,R,3,T,H,W), normalised by `mean` and `std`. The shares of pixels darker than each of `LIGHT`; the
    lightest and the darkest value of each channel, softly, how far they are apart, and how they differ between
    channels, which a cast makes them do; the mean saturation; and the cast of what is nearly grey.
    """
    as_channels = lambda values: frames.new_tensor(values).float().view(3, 1, 1, 1)
    rgb = frames.float() * as_channels(std) + as_channels(mean)
    luma = torch.einsum("brcthw,c->brthw", rgb, rgb.new_tensor(LUMA))
    everywhere = lambda values: values.mean(dim=(1, 2, 3, 4))
    thirds = luma * (255 / 3)
    shares = [everywhere(torch.sigmoid(level / 3 - thirds)) for level in LIGHT]
    values = rgb.transpose(1, 2).flatten(2)
    count = math.log(values.shape[2])
    lightest = (torch.logsumexp(EXTREME * values, dim=2) - count) / EXTREME
    darkest = (count - torch.logsumexp(-EXTREME * values, dim=2)) / EXTREME
    saturation = rgb.amax(dim=2) - rgb.amin(dim=2)
    grey = torch.exp(-(saturation / GREYISH).square()) + 1e-3
    red, green, blue = (everywhere(grey * channel) / everywhere(grey) for channel in rgb.unbind(dim=2))
    casts = [red - green, blue - green, red - blue]
    apart = [(ends[:, channel] - ends[:, 1]).abs() for ends in (lightest, darkest) for channel in (0, 2)]
    told = [*shares, *lightest.unbind(1), *darkest.unbind(1), (lightest - darkest).mean(dim=1), *apart]
    told += [everywhere(saturation), *casts[:2], *(cast.abs() for cast in casts)]
    return torch.stack(told, dim=1)


def _levels(std: tuple[float, ...], like: Tensor) -> Tensor:
    """How many of 255 levels a normalised one is, by channel."""
    return like.new_tensor(std).float() * 255


def _shares_below(differences: Tensor, levels: tuple[float, ...]) -> list[Tensor]:
    """For each of `levels` (B,) of differences (B,R,T,H,W): the share of those below it, softly; all, where there are
    none."""
    if differences.numel() == 0:
        return [differences.new_ones(len(differences)) for _ in levels]
    fourth = differences.square().square()
    return [torch.reciprocal(1 + fourth / level**4).mean(dim=(1, 2, 3, 4)) for level in levels]
