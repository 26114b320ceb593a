"""What a small backbone cannot learn in an hour and should not have to.

Sharpness and change as planes for its input; shares of flat and of frozen places for the quality scores; colours and
directions of motion for the prompt. All of it differentiable, and none of it learned.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
# Differences between neighbours, of 255, below which a place counts as flat, softly.
FLAT = (0.7, 2.0, 6.0, 16.0, 48.0)
# Shares of the clip's mean motion below which a pair of frames counts as frozen, softly.
FROZEN = (0.01, 0.03, 0.1, 0.3)
MOTION_FLOOR = 0.05  # mean squared difference, of 255: what stands still by less than this stands still
PIXEL_STATISTICS = 2 * len(FLAT) + len(FROZEN) + 4

# The eleven basic colour terms (Berlin and Kay, "Basic Color Terms", 1969), as RGB in 0-1.
BASIC_COLOURS = (
    (0.0, 0.0, 0.0),
    (1.0, 1.0, 1.0),
    (0.5, 0.5, 0.5),
    (0.86, 0.12, 0.12),  # red
    (0.16, 0.67, 0.24),  # green
    (0.16, 0.31, 0.86),  # blue
    (0.94, 0.86, 0.16),  # yellow
    (0.94, 0.55, 0.12),  # orange
    (0.94, 0.59, 0.75),  # pink
    (0.51, 0.2, 0.63),  # purple
    (0.47, 0.27, 0.12),  # brown
)
COLOUR_SHARPNESS = 40.0
FLOW_SIZE, FLOW_GRID, FLOW_RIDGE = 28, 3, 1e-3
SIGHTS = 3 * len(BASIC_COLOURS) + 3 * FLOW_GRID**2


def video_signals(frames: Tensor, names: tuple[str, ...]) -> Tensor:
    """`frames` (B,3,T,H,W), normalised RGB, and the planes that `names` asks for after "rgb".

    "highpass": luma minus its 3x3 mean; blur lowers it, noise and blocking raise it.
    "difference": luma minus that of the frame before; "global_difference": its mean over the frame, where
    flicker stands apart from motion. The first frame takes the difference of the second; a still clip has none.

    Returns (B, 2 + len(names), T, H, W).
    """
    if names == ("rgb",):
        return frames
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
    flat = [(_share_below(across, level) + _share_below(down, level)) / 2 for level in FLAT]
    flat += [_share_below(change, level) for level in FLAT]
    if change.shape[2] == 0:  # one frame a run: nothing moves
        change = torch.zeros_like(luma)
    motion = change.square().mean(dim=(3, 4)).flatten(1) + MOTION_FLOOR
    mean = motion.mean(dim=1, keepdim=True)
    relative = motion / mean
    frozen = [torch.exp(-relative / share).mean(dim=1) for share in FROZEN]
    logs = relative.log()
    return torch.stack([*flat, *frozen, logs.amax(1), logs.amin(1), logs.mean(1), mean[:, 0].log()], dim=1)


def sights(frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """What a picture classifier does not tell of a clip: its colours and where things move. (B, SIGHTS), fp32.

    `frames` (B,R,3,T,H,W), normalised by `mean` and `std`; the mean over runs. The shares of `BASIC_COLOURS` in the
    middle frame: of all of it, of the one of 4x4 parts that has most, and of its centre. Then for 3x3 parts the motion
    to the right and down, by least squares on brightness (Lucas and Kanade, IJCAI 1981), in pixels of a picture of
    28x28, and the logarithm of its change.
    """
    runs = frames.float().flatten(0, 1)
    told = torch.cat([_colours(runs[:, :, runs.shape[2] // 2], mean, std), _flow(runs)], dim=1)
    return told.unflatten(0, frames.shape[:2]).mean(dim=1)


def _colours(pictures: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(N, 3 x colours) of pictures (N,3,H,W)."""
    as_channels = lambda values: pictures.new_tensor(values).view(3, 1, 1)
    rgb = F.adaptive_avg_pool2d(pictures * as_channels(std) + as_channels(mean), (56, 56))
    distance = (rgb[:, None] - rgb.new_tensor(BASIC_COLOURS)[:, :, None, None]).square().sum(dim=2)
    shares = (-COLOUR_SHARPNESS * distance).softmax(dim=1)
    parts = F.adaptive_avg_pool2d(shares, (4, 4)).flatten(2)
    return torch.cat([shares.mean(dim=(2, 3)), parts.amax(dim=2), shares[:, :, 14:42, 14:42].mean(dim=(2, 3))], dim=1)


def _flow(runs: Tensor) -> Tensor:
    """(N, 3 x parts) of runs (N,3,T,H,W)."""
    luma = torch.einsum("ncthw,c->nthw", runs, runs.new_tensor(LUMA))
    small = F.adaptive_avg_pool2d(luma, (FLOW_SIZE, FLOW_SIZE))
    if small.shape[1] == 1:
        small = small.expand(-1, 2, -1, -1)
    taps = runs.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    smooth = F.pad(small.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="replicate")
    smooth = F.conv2d(F.conv2d(smooth, taps.view(1, 1, 1, 5)), taps.view(1, 1, 5, 1)).view_as(small)
    between = (smooth[:, 1:] + smooth[:, :-1]) / 2
    dx = (between[:, :, 1:-1, 2:] - between[:, :, 1:-1, :-2]) / 2
    dy = (between[:, :, 2:, 1:-1] - between[:, :, :-2, 1:-1]) / 2
    dt = (smooth[:, 1:] - smooth[:, :-1])[:, :, 1:-1, 1:-1]
    by_part = lambda x: F.adaptive_avg_pool2d(x, (FLOW_GRID, FLOW_GRID)).mean(dim=1)
    xx, yy, xy = by_part(dx * dx) + FLOW_RIDGE, by_part(dy * dy) + FLOW_RIDGE, by_part(dx * dy)
    xt, yt = by_part(dx * dt), by_part(dy * dt)
    determinant = xx * yy - xy * xy
    right, down = (xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant
    return torch.stack([right, down, torch.log(by_part(dt * dt) + 1e-6)], dim=1).flatten(1)


def _levels(std: tuple[float, ...], like: Tensor) -> Tensor:
    """How many of 255 levels a normalised one is, by channel."""
    return like.new_tensor(std).float() * 255


def _share_below(differences: Tensor, level: float) -> Tensor:
    """(B,) of differences (B,R,T,H,W): the share of those below `level`, softly; all, where there are none."""
    if differences.numel() == 0:
        return differences.new_ones(len(differences))
    return torch.reciprocal(1 + (differences / level).square().square()).mean(dim=(1, 2, 3, 4))
