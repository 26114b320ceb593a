"""Colours and motion in closed form: what is told is there, whatever the camera does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dover_eval.config import IMAGENET_MEAN, IMAGENET_STD
from dover_eval.models.sights import COLOURS, HUES, MOTIONS, PLACES, SIGHTS, sights
from tests.conftest import normalised

SIDE, COUNT = 112, 16
# RGB, and where it belongs among a place's colours: bright hues by thirds of a circle, dark ones, and greys.
NAMED = {
    "red": ((230, 30, 30), 0),
    "green": ((30, 220, 30), HUES // 3),
    "blue": ((30, 30, 230), 2 * HUES // 3),
    "dark red": ((110, 0, 0), HUES),
    "black": ((10, 10, 10), 2 * HUES),
    "grey": ((120, 120, 120), 2 * HUES + 1),
    "white": ((245, 245, 245), 2 * HUES + 2),
}


def scene(
    *,
    shift: tuple[float, float] = (0, 0),
    growth: float = 0,
    turn: float = 0,
    camera: tuple[float, float] = (0, 0),
    colour: tuple[int, int, int] = (230, 30, 30),
    waves: float = 25,
) -> np.ndarray:
    """A patterned ellipse over wavy grey, (T,H,W,3): `shift` and `camera` in pixels a frame, right and down."""
    down, right = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    frames = []
    for t in np.arange(COUNT) - (COUNT - 1) / 2:
        x, y = right - camera[0] * t, down - camera[1] * t
        ground = 120 + waves * (np.sin(x / 5) + np.cos(y / 6 + x / 9))
        u, v = right - SIDE / 2 - (shift[0] + camera[0]) * t, down - SIDE / 2 - (shift[1] + camera[1]) * t
        angle, scale = turn * t, 2.0 ** (growth * t)
        u, v = (u * np.cos(angle) + v * np.sin(angle)) / scale, (v * np.cos(angle) - u * np.sin(angle)) / scale
        inside = 1 / (1 + np.exp((u * u / 22**2 + v * v / 15**2 - 1) * 8))[..., None]
        pattern = (0.75 + 0.25 * np.sin(u / 3) * np.cos(v / 4))[..., None]
        frames.append(inside * np.array(colour) * pattern + (1 - inside) * ground[..., None])
    return np.stack(frames).clip(0, 255).astype(np.float32)


def motion(frames: np.ndarray) -> dict[str, float]:
    told = sights(normalised(frames), IMAGENET_MEAN, IMAGENET_STD)[0, PLACES * COLOURS :]
    return dict(zip(MOTIONS, told.tolist(), strict=True))


def colours(frames: np.ndarray) -> dict[str, Tensor]:
    """The colours everywhere, in the middle and where something moves."""
    told = sights(normalised(frames), IMAGENET_MEAN, IMAGENET_STD)[0, : PLACES * COLOURS].view(PLACES, COLOURS)
    return dict(zip(("all", "middle", "moving"), told, strict=True))


@pytest.mark.parametrize("name", NAMED)
def test_a_colour_that_fills_the_frame_is_told_everywhere(name: str) -> None:
    colour, index = NAMED[name]
    frames = np.broadcast_to(np.array(colour, np.float32), (COUNT, SIDE, SIDE, 3)).copy()
    for place, shares in colours(frames).items():
        assert shares.argmax().item() == index, place
        assert shares[index] > 0.6


@pytest.mark.parametrize("name", ["red", "green", "blue"])
def test_the_colour_of_what_moves_stands_out_from_the_ground(name: str) -> None:
    colour, index = NAMED[name]
    found = colours(scene(shift=(1.5, 0), colour=colour))
    assert found["moving"][index] > 1.5 * found["all"][index]


@pytest.mark.parametrize("camera", [(0.0, 0.0), (0.6, 0.0), (-0.3, 0.5)])
@pytest.mark.parametrize(("name", "step"), [("right", (1, 0)), ("down", (0, 1))])
def test_a_thing_s_own_direction_is_told_whatever_the_camera_does(
    name: str, step: tuple[int, int], camera: tuple[float, float]
) -> None:
    there, back = (motion(scene(shift=(s * step[0], s * step[1]), camera=camera)) for s in (1, -1))
    assert there[name] > 0.5 > -0.5 > back[name]


def test_what_moves_is_later_where_it_went() -> None:
    for figure, step in (("x later", (1, 0)), ("y later", (0, 1))):
        there, back = (motion(scene(shift=(s * step[0], s * step[1]), waves=0)) for s in (1, -1))
        assert there[figure] > 0.1 > -0.1 > back[figure], figure


def test_growing_and_shrinking_are_contraries() -> None:
    growing, shrinking = motion(scene(growth=0.05)), motion(scene(growth=-0.05))
    for figure in ("growth", "size later"):
        assert growing[figure] > 0 > shrinking[figure], figure


def test_turning_is_told_with_its_sense_and_without() -> None:
    one, other, still = motion(scene(turn=0.06)), motion(scene(turn=-0.06)), motion(scene())
    assert one["turn"] > 0 > other["turn"]
    assert min(one["any turn"], other["any turn"]) > 5 * still["any turn"]


def test_the_camera_s_motion_is_the_camera_s() -> None:
    panned, still = motion(scene(camera=(0.8, 0))), motion(scene())
    assert panned["camera right"] > 0.2 > abs(panned["camera down"])
    assert abs(still["camera right"]) < 0.02
    assert panned["change"] < motion(scene(shift=(0.8, 0)))["change"]


@pytest.mark.parametrize("shape", [(1, 3, 1, 32, 32), (1, 3, 2, 32, 48), (2, 3, 5, 33, 31), (3, 3, 8, 1, 1)])
def test_odd_and_short_clips_have_finite_figures(shape: tuple[int, ...]) -> None:
    told = sights(torch.randn(2, *shape), IMAGENET_MEAN, IMAGENET_STD)
    assert told.shape == (2, SIGHTS)
    assert told.isfinite().all()


def test_clips_do_not_depend_on_their_batch() -> None:
    runs = torch.cat([normalised(scene(shift=(1, 0))), normalised(scene(turn=0.05))])
    alone = torch.cat([sights(one[None], IMAGENET_MEAN, IMAGENET_STD) for one in runs])
    torch.testing.assert_close(sights(runs, IMAGENET_MEAN, IMAGENET_STD), alone)


@pytest.mark.parametrize("frames", [scene(shift=(1, 0)), scene(), np.full((COUNT, 32, 32, 3), 90, np.float32)])
def test_gradients_are_finite_even_where_nothing_moves(frames: np.ndarray) -> None:
    runs = normalised(frames).requires_grad_()
    (gradient,) = torch.autograd.grad(sights(runs, IMAGENET_MEAN, IMAGENET_STD).sum(), runs)
    assert gradient.isfinite().all()


def test_gradients_reach_every_frame() -> None:
    runs = normalised(scene(shift=(1, 0))).requires_grad_()
    (gradient,) = torch.autograd.grad(sights(runs, IMAGENET_MEAN, IMAGENET_STD).sum(), runs)
    assert (gradient.abs().amax(dim=(0, 2, 4, 5)) > 0).all()
