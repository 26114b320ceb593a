"""Captioned clips made of pictures: a thing that moves in front of a place, in a colour, a number and a way.

A `Scene` says what is to be seen, `caption` puts it into words, `render` shows it. Captions are true by construction;
`near_miss` changes one of the attributes. Real clips and places on their own are scenes without a thing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dover_eval.training.synthetic import COLOURS, MOTIONS, NUMBERS, STRESSES
from dover_eval.video.pixels import LUMA, rgb_planes
from examples.train_default.pictures import Place, Thing, load_place, load_thing, places, things

Frames = NDArray[np.uint8]

LIGHTS = {
    "dark": ("at night", "in the dark", "in the dim light"),
    "bright": ("by day", "in daylight", "in bright light"),
}
PHOTOGRAPHED = 0.4  # the share of things that are photographs, so that pictures from life are no exception
COLOUR_NAMES = tuple(COLOURS)
MOTION_NAMES = tuple(MOTIONS)
NUMBER_NAMES = tuple(NUMBERS)
_STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


@dataclass(frozen=True)
class Scene:
    """`thing` None: the place alone. `colour` None: as it is. `light`, of `LIGHTS`; None: neither here nor there."""

    place: Place
    thing: Thing | None
    colour: str | None
    motion: str
    number: str
    light: str | None = None

    @property
    def moves(self) -> bool:
        return self.place.is_clip or self.motion != "still"

    def matches(self, other: object) -> float:
        """How much of a caption of `other` is true of this, 0 to 1; 1 where it fits."""
        if not isinstance(other, Scene):
            return 0.0
        same = [self.place.path == other.place.path]
        if self.thing is None or other.thing is None:
            same += [self.thing is other.thing] * 2
        else:
            same += [
                self.thing.name == other.thing.name,
                self.colour == other.colour,
                self.motion == other.motion,
                self.number == other.number,
            ]
        if self.light is not None and other.light is not None:
            same.append(self.light == other.light)
        return sum(same) / len(same)


def random_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A scene of training, or one whose place and thing training never shows."""
    choose = lambda options: options[int(rng.integers(len(options)))]
    place = choose(_places(held_out))
    if place.is_clip or rng.random() < 0.15:
        return Scene(place, None, None, "still" if not place.is_clip else "moving", "one")
    photographed = rng.random() < PHOTOGRAPHED
    colour = str(rng.choice(COLOUR_NAMES)) if rng.random() < (0.2 if photographed else 0.5) else None
    thing = choose([thing for thing in _things(held_out) if thing.is_photograph == photographed])
    return Scene(place, thing, colour, str(rng.choice(MOTION_NAMES)), str(rng.choice(NUMBER_NAMES)))


def near_miss(scene: Scene, rng: np.random.Generator, attribute: str | None = None) -> Scene:
    """The scene with one attribute changed: its place where it has no thing."""
    if scene.light is not None and attribute is None and rng.random() < 0.3:
        return replace(scene, light="bright" if scene.light == "dark" else "dark")
    if scene.thing is None:
        others = [place for place in _places(scene.place.held_out) if place.path != scene.place.path]
        return replace(scene, place=others[int(rng.integers(len(others)))])
    name = attribute or str(rng.choice(["colour", "motion", "number", "thing"]))
    if name == "thing":
        others = [thing for thing in _things(scene.thing.held_out) if thing.name != scene.thing.name]
        return replace(scene, thing=others[int(rng.integers(len(others)))])
    names = {"colour": COLOUR_NAMES, "motion": MOTION_NAMES, "number": NUMBER_NAMES}[name]
    return replace(scene, **{name: str(rng.choice([n for n in names if n != getattr(scene, name)]))})


def caption(scene: Scene, rng: np.random.Generator, stress: str = "none") -> str:
    """One of the many true captions of a scene, stressing an aspect where asked."""
    pick = lambda options: str(rng.choice(options))
    place, end = pick(scene.place.words), pick(STRESSES[stress][1])
    if scene.light is not None:
        end = f" {pick(LIGHTS[scene.light])}{end}"
    if scene.thing is None:
        return pick(("{p}", "a clip of {p}", "a scene with {p}")).format(p=place) + end
    noun = scene.thing.name
    described = f"{scene.colour} {noun}" if scene.colour else noun
    if scene.number == "one":
        subject = f"{'an' if described[0] in 'aeiou' else 'a'} {described}"
    else:
        subject = f"{scene.number} {described}{'' if described.endswith('s') else 's'}"
    motion = pick(MOTIONS[scene.motion])
    if scene.number != "one":
        motion = motion.replace("that does not move", "that do not move")
    form = pick(("{s} {m} in front of {p}", "{s} {m} over {p}", "{p} with {s} {m}", "{s}, {m}, {p} behind"))
    return form.format(s=subject, m=motion, p=place) + end


def render(scene: Scene, rng: np.random.Generator, *, runs: int = 2, length: int = 8) -> Frames:
    """(runs * length,H,W,3): runs of consecutive frames with a while between them, at a random size and speed."""
    short = int(rng.integers(192, 361)) // 2 * 2
    height, width = [(short, short * 16 // 9), (short, short * 4 // 3), (short, short), (short * 4 // 3, short)][
        int(rng.choice(4, p=[0.5, 0.25, 0.1, 0.15]))
    ]
    gap = 0 if rng.random() < 0.4 else int(rng.integers(4, 40))
    ticks = np.array([run * (length + gap) + i for run in range(runs) for i in range(length)], np.float32)
    behind = _behind(scene.place, ticks, height, width, rng)
    if scene.thing is not None:
        behind = _in_front(scene, behind, ticks, rng)
    return (behind * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def cut_away(frames: Frames, rng: np.random.Generator) -> Frames:
    """The clip with its end, a half at most, in another place."""
    place = _places(False)[int(rng.integers(len(_places(False))))]
    first = int(rng.integers(len(frames) // 2, len(frames)))
    ticks = np.arange(len(frames) - first, dtype=np.float32)
    elsewhere = _behind(place, ticks, *frames.shape[1:3], rng)
    shown = (elsewhere * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return np.concatenate([frames[:first], shown])


@cache
def _places(held_out: bool) -> tuple[Place, ...]:
    return tuple(place for place in places() if place.held_out == held_out)


@cache
def _things(held_out: bool) -> tuple[Thing, ...]:
    return tuple(thing for thing in things() if thing.held_out == held_out)


def _behind(place: Place, ticks: NDArray[np.float32], height: int, width: int, rng: np.random.Generator) -> Tensor:
    """(T,3,H,W) in 0-1: a slow pan and zoom over a part of the picture, or the clip itself."""
    if place.is_clip:
        first = int(rng.integers(0, max(1, _clip_length(place) - ticks[-1])))
        chosen = torch.from_numpy(_clip_frames(place, [first + int(tick) for tick in ticks]))
        return F.interpolate(chosen.permute(0, 3, 1, 2).float() / 255, (height, width), mode="bilinear", antialias=True)
    picture = load_place(place.path)
    share = rng.uniform(0.45, 0.85)  # of the picture's largest part with these proportions
    scale = share * min(picture.shape[0] / height, picture.shape[1] / width)
    box = (round(height * scale), round(width * scale))
    top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(picture.shape, box, strict=False))
    part = torch.from_numpy(picture[top : top + box[0], left : left + box[1]].copy())
    part = part.permute(2, 0, 1)[None].float() / 255
    margin = 1.15
    size = (round(height * margin), round(width * margin))
    part = F.interpolate(part, size, mode="bilinear", antialias=True)
    if rng.random() < 0.3:
        pan, zoom = np.zeros(2), 0.0
    else:  # the further the slower, so that the picture never ends
        pan = rng.uniform(-1, 1, 2) * 0.12 / max(ticks[-1], 15)
        zoom = rng.uniform(-1, 1) * 0.1 / max(ticks[-1], 15)
    centred = ticks - ticks.mean()
    theta = torch.zeros(len(ticks), 2, 3)
    for i, tick in enumerate(centred):
        theta[i, 0, 0] = theta[i, 1, 1] = float(1 + zoom * tick) / margin
        theta[i, :, 2] = torch.from_numpy(pan[::-1] * tick)
    grid = F.affine_grid(theta, [len(ticks), 3, height, width], align_corners=False)
    return F.grid_sample(part.expand(len(ticks), -1, -1, -1), grid, padding_mode="reflection", align_corners=False)


def _in_front(scene: Scene, frames: Tensor, ticks: NDArray[np.float32], rng: np.random.Generator) -> Tensor:
    assert scene.thing is not None
    picture = torch.from_numpy(load_thing(scene.thing)).permute(2, 0, 1)
    if scene.colour is not None:
        picture = _recoloured(picture, scene.colour)
    height, width = frames.shape[2:]
    short = min(height, width)
    count = NUMBERS[scene.number]
    side = short * (rng.uniform(0.35, 0.6) if count == 1 else rng.uniform(0.22, 0.3))
    slots = np.array({1: [0.0], 2: [-0.5, 0.5], 3: [-1.0, 0.0, 1.0]}[count]) * side * 1.15
    along_x = scene.motion not in ("left", "right")  # the things of a row must not run into each other
    start = rng.uniform(-0.1, 0.1, 2) * short
    phase = (ticks - ticks.mean()) / max(ticks[-1], 1)
    travel = short * rng.uniform(0.25, 0.5) * (1 if ticks[-1] < 20 else 1.5)
    step = np.array(_STEPS.get(scene.motion, (0, 0)), float) * travel
    growth = {"growing": 1, "shrinking": -1}.get(scene.motion, 0) * rng.uniform(0.8, 1.3)
    turn = rng.uniform(-0.2, 0.2)
    spin = rng.uniform(1.2, 3.0) * rng.choice([-1, 1]) if scene.motion == "spinning" else 0.0
    frames = frames.clone()
    for slot in slots:
        theta = torch.zeros(len(ticks), 2, 3)
        for i, at in enumerate(phase):
            centre = np.array([height, width]) / 2 + start + step * at
            centre += np.array([0, slot]) if along_x else np.array([slot, 0])
            half = side * 2.0 ** (growth * at) / 2
            cos, sin = np.cos(turn + spin * at), np.sin(turn + spin * at)
            # From the canvas's coordinates to the picture's, both in -1..1.
            to_pixels = np.array([[width / 2, 0, width / 2 - centre[1]], [0, height / 2, height / 2 - centre[0]]])
            theta[i] = torch.tensor(np.array([[cos, sin], [-sin, cos]]) @ to_pixels / half)
        grid = F.affine_grid(theta, [len(ticks), 4, height, width], align_corners=False)
        shown = F.grid_sample(picture.expand(len(ticks), -1, -1, -1), grid, align_corners=False)
        frames += shown[:, 3:] * (shown[:, :3] - frames)
    return frames


def _recoloured(picture: Tensor, colour: str) -> Tensor:
    """The picture's light and shade in another colour."""
    light = (picture[:3] * torch.tensor(LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    opaque = picture[3:] > 0.5
    middle = light[opaque].mean() if opaque.any() else torch.tensor(0.5)
    paint = torch.tensor(COLOURS[colour], dtype=torch.float32).view(3, 1, 1) / 255
    return torch.cat([(paint * (1 + 0.8 * (light - middle))).clamp(0, 1), picture[3:]])


@cache
def _clip_length(place: Place) -> int:
    with av.open(str(place.path)) as container:
        return sum(1 for _ in container.decode(video=0))


def _clip_frames(place: Place, indices: list[int]) -> Frames:
    last = _clip_length(place) - 1
    wanted = [min(index, last) for index in indices]
    found = {}
    with av.open(str(place.path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                found[index] = rgb_planes(frame).permute(1, 2, 0).numpy()
            if index >= max(wanted):
                break
    return np.stack([found[index] for index in wanted])
