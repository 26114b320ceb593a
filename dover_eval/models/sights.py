"""What a picture classifier does not tell of a clip, and prompts ask for: colours, and what moves of its own, and how.

All of it in closed form: differentiable, and none of it learned. First the camera's motion is taken out. What still
changes is where something moves: its colours are counted apart, and its motion is read there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dover_eval.video.pixels import LUMA

HUES = 12  # around the circle, each bright and dark; and black, grey and white
COLOURS = 2 * HUES + 3
PLACES = 3  # where colours are counted: everywhere, in the middle, where something moves
# Of what moves, in this order: where it is and how large, how much it changes (a logarithm), and how fast these grow;
# its motion relative to the camera; the camera's; and place and size in the last run less those in the first.
MOTIONS = (
    *("x", "y", "size", "width", "height", "elongation", "change"),
    *("x slope", "y slope", "size slope", "change slope"),
    *("right", "down", "growth", "turn", "speed", "any growth", "any turn"),
    *("camera right", "camera down"),
    *("x later", "y later", "size later"),
)
SIGHTS = PLACES * COLOURS + len(MOTIONS)
COLOUR_SIGHTS, MOTION_SIGHTS = slice(0, PLACES * COLOURS), slice(PLACES * COLOURS, SIGHTS)

SIZE = 56  # of the pictures that are looked at
GAP = 3  # frames between the two of a pair: motion of a tenth of a pixel a frame is lost in noise
ROUNDS = 3  # of least squares that forget more and more of what does not move with the camera
FLOOR = 1e-3


def sights(frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, SIGHTS), fp32, of `frames` (B,R,3,T,H,W): runs of consecutive frames, normalised by `mean` and `std`.

    First the colours of the middle frame of each run, at three places, then `MOTIONS`: all of them means over runs, and
    how the last run differs from the first.
    """
    runs = frames.float().flatten(0, 1)
    motion, where, course = _motion(runs)
    told = torch.cat([_colours(runs[:, :, runs.shape[2] // 2], where, mean, std), motion], dim=1)
    by_run = lambda x: x.unflatten(0, frames.shape[:2])
    course = by_run(course)
    return torch.cat([by_run(told).mean(dim=1), course[:, -1] - course[:, 0]], dim=1)


def _colours(pictures: Tensor, where: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(N, PLACES x COLOURS) of pictures (N,3,H,W); `where` (N,h,w) sums to one and says where something moves."""
    as_channels = lambda values: pictures.new_tensor(values).view(3, 1, 1)
    rgb = F.adaptive_avg_pool2d(pictures * as_channels(std) + as_channels(mean), (SIZE, SIZE))
    shares = _colour_shares(rgb[:, :, 1:-1, 1:-1])
    middle = shares[:, :, SIZE // 4 : -(SIZE // 4), SIZE // 4 : -(SIZE // 4)]
    moving = torch.einsum("nchw,nhw->nc", shares, where)
    return torch.cat([shares.mean(dim=(2, 3)), middle.mean(dim=(2, 3)), moving], dim=1)


def _colour_shares(rgb: Tensor) -> Tensor:
    """How much every pixel of (N,3,H,W), in 0-1, is of each colour: (N,COLOURS,H,W), summing to about one."""
    red, green, blue = rgb.clamp(0, 1).unbind(dim=1)
    light, dark = rgb.amax(dim=1), rgb.amin(dim=1)
    # The angle of a grey has no derivative: there the saturation, which multiplies it, is nearly zero anyway.
    across, along = math.sqrt(3) * (green - blue), 2 * red - green - blue
    radius = (across.square() + along.square() + FLOOR**2).sqrt()
    angles = torch.arange(HUES, dtype=rgb.dtype, device=rgb.device) * (2 * math.pi / HUES)
    cos, sin = angles.cos().view(-1, 1, 1), angles.sin().view(-1, 1, 1)
    hues = ((along[:, None] * cos + across[:, None] * sin) / radius[:, None]).clamp_min(0) ** 24
    hues = hues / (hues.sum(dim=1, keepdim=True) + FLOOR)
    saturated = torch.sigmoid(16 * (light - dark - 0.25))[:, None]
    bright = torch.sigmoid(12 * (light - 0.5))[:, None]
    black, white = torch.sigmoid(20 * (0.2 - light)), torch.sigmoid(20 * (light - 0.75))
    greys = torch.stack([black, (1 - black - white).clamp_min(0), white], dim=1)
    return torch.cat([hues * saturated * bright, hues * saturated * (1 - bright), greys * (1 - saturated)], dim=1)


def _motion(runs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of runs (N,3,T,H,W): `MOTIONS` but the last three; where something moves (N,h,w); its place and size (N,3)."""
    luma = torch.einsum("ncthw,c->nthw", runs, runs.new_tensor(LUMA))
    small = F.adaptive_avg_pool2d(luma, (SIZE, SIZE))
    if small.shape[1] == 1:
        small = small.expand(-1, 2, -1, -1)
    gap = min(GAP, small.shape[1] - 1)
    smooth = _smooth(small)
    before, after = smooth[:, :-gap], smooth[:, gap:]
    between = (before + after) / 2
    dx = (between[..., 1:-1, 2:] - between[..., 1:-1, :-2]) / 2
    dy = (between[..., 2:, 1:-1] - between[..., :-2, 1:-1]) / 2
    dt = (after - before)[..., 1:-1, 1:-1]

    weight, rest = torch.ones_like(dt), dt
    for _ in range(ROUNDS):
        camera, rest = _explain(dx, dy, dt, weight)
        scale = rest.abs().mean(dim=(2, 3), keepdim=True) / 2 + FLOOR
        weight = 1 / (1 + (rest / scale).square())
    energy = rest.square()
    moving = _smooth(energy).square() + FLOOR**4
    moving = moving / moving.sum(dim=(2, 3), keepdim=True)

    at = torch.linspace(-1, 1, dt.shape[-1], dtype=dt.dtype, device=dt.device)
    across, down = at.view(1, -1), at.view(-1, 1)
    over = lambda values: (moving * values).sum(dim=(2, 3))
    x, y = over(across), over(down)
    from_x, from_y = across - x[..., None, None], down - y[..., None, None]
    width, height = (over(distance.square()) + FLOOR for distance in (from_x, from_y))
    size, elongation, change = (width + height).log(), (width / height).log(), (energy.mean(dim=(2, 3)) + 1e-6).log()
    # Its shift first; what that leaves tells how it grows and turns around its middle.
    reach = (width + height).sqrt()[..., None, None]
    from_x, from_y = from_x / reach, from_y / reach
    shift, rest = _explain(dx, dy, rest, moving)
    turning, _ = _explain(dx * from_x + dy * from_y, dy * from_x - dx * from_y, rest, moving)

    time = torch.linspace(-1, 1, dt.shape[1], dtype=dt.dtype, device=dt.device)
    slope = lambda values: (values * time).sum(dim=1) / time.square().sum().clamp_min(FLOOR)
    mean = lambda values: values.mean(dim=1)
    speed = (shift.square().sum(dim=-1) + FLOOR**2).sqrt()
    told = [mean(x), mean(y), mean(size), mean(width.log()), mean(height.log()), mean(elongation).abs(), mean(change)]
    told += [slope(x), slope(y), slope(size), slope(change)]
    told += [*mean(shift).unbind(-1), *mean(turning).unbind(-1), mean(speed), *mean(turning.abs()).unbind(-1)]
    told += mean(camera).unbind(-1)
    where = _smooth(moving)[:, (moving.shape[1] - 1) // 2]
    course = torch.stack([mean(x), mean(y), mean(size)], dim=1)
    return torch.stack(told, dim=1), where / where.sum(dim=(1, 2), keepdim=True), course


def _explain(dx: Tensor, dy: Tensor, dt: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """By weighted least squares (Lucas and Kanade, IJCAI 1981) the motion (N,T,2) that explains changes dt (N,T,h,w) by
    slopes dx and dy, and what it leaves."""
    total = weight.sum(dim=(2, 3))
    over = lambda values: (weight * values).sum(dim=(2, 3)) / total
    xx, yy, xy = over(dx * dx), over(dy * dy), over(dx * dy)
    ridge = 0.02 * (xx + yy) + 1e-6
    xx, yy = xx + ridge, yy + ridge
    xt, yt = over(dx * dt), over(dy * dt)
    determinant = xx * yy - xy * xy
    right, down = (xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant
    rest = dt + right[..., None, None] * dx + down[..., None, None] * dy
    return torch.stack([right, down], dim=-1), rest


def _smooth(x: Tensor) -> Tensor:
    """(N,T,H,W) through a binomial filter of five taps each way."""
    taps = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = F.pad(x.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, 5)), taps.view(1, 1, 5, 1)).view_as(x)
