"""Clips in known states of repair: pictures that move, and drawn scenes; and what one can say of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dover_eval.config import DOVERConfig
from dover_eval.training import synthetic
from dover_eval.training.synthetic import CHOICES, STRESSES
from dover_eval.video.sample import prepare_clip
from examples.train_default import scenes
from examples.train_default.spoil import SPOILED, Camera, spoil

BEST, WORST = 4.6, 1.2  # what an untouched clip is taught to score, and one as bad as it gets
DRAWN = 0.25  # the share of scenes that a program draws
DARK, BRIGHT = 25, 90  # mean values, of 255, below and above which a caption may tell of the light
CUTS = 0.1  # the share of clips with a cut to another place, which is no fault

AnyScene = scenes.Scene | synthetic.Scene


@dataclass(frozen=True)
class Content:
    """A scene in V versions.

    frames: (V,views,3,T,h,w), prepared. defects: (V,D) strengths, as `ASPECT_OF`. bad: (V,3) as `SPOILED`, 0 to 1.
    """

    scene: AnyScene
    frames: Tensor
    defects: Tensor
    bad: Tensor


def make_content(config: DOVERConfig, index: int, *, seed: int, variants: int = 3) -> Content:
    """The content `index` of `seed`: always the same."""
    rng = np.random.default_rng([seed, index])
    frames, scene = _drawn(rng, config) if rng.random() < DRAWN else _pictured(rng, config)
    camera = Camera.random(rng)
    if isinstance(scene, scenes.Scene) and rng.random() < 0.5:
        scene = replace(scene, light=_light(frames.mean() * camera.light))
    moves = scene.moves if isinstance(scene, scenes.Scene) else scene.motion != "still"
    clips, defects, bad = [], [], []
    for _ in range(variants):
        spoiled, strengths, badness = spoil(frames, camera, moves, rng, hand=index)
        clip = torch.from_numpy(np.ascontiguousarray(spoiled)).permute(0, 3, 1, 2)
        clips.append(prepare_clip(clip, config))
        defects.append(list(strengths.values()))
        bad.append([badness[aspect] for aspect in SPOILED])
    return Content(scene=scene, frames=torch.stack(clips), defects=torch.tensor(defects), bad=torch.tensor(bad))


def matches(scene: AnyScene, other: AnyScene) -> float:
    """How much of a caption of `other` is true of `scene`, 0 to 1."""
    if isinstance(scene, scenes.Scene):
        return scene.matches(other)
    if isinstance(other, scenes.Scene):
        return 0.0
    return sum(getattr(scene, name) == getattr(other, name) for name in CHOICES) / len(CHOICES)


def near_miss(scene: AnyScene, rng: np.random.Generator) -> AnyScene:
    """The scene with one attribute changed."""
    if isinstance(scene, scenes.Scene):
        return scenes.near_miss(scene, rng)
    name = str(rng.choice(list(CHOICES)))
    others = [option for option in CHOICES[name] if option != getattr(scene, name)]
    return replace(scene, **{name: str(rng.choice(others))})


def some_stress(rng: np.random.Generator) -> str:
    """What a caption stresses, one of `STRESSES`: mostly nothing."""
    return str(rng.choice(list(STRESSES), p=[0.55, 0.15, 0.15, 0.15]))


def caption(scene: AnyScene, rng: np.random.Generator, stress: str) -> str:
    """One of the many true captions of a scene, stressing an aspect where asked."""
    says = scenes.caption if isinstance(scene, scenes.Scene) else synthetic.caption
    return says(scene, rng, stress)  # type: ignore[arg-type]


def _pictured(rng: np.random.Generator, config: DOVERConfig) -> tuple[np.ndarray, AnyScene]:
    scene = scenes.random_scene(rng)
    frames = scenes.render(scene, rng, runs=config.windows, length=config.num_frames // config.windows)
    return scenes.cut_away(frames, rng) if rng.random() < CUTS else frames, scene


def _light(mean: float) -> str | None:
    return "dark" if mean < DARK else "bright" if mean > BRIGHT else None


def _drawn(rng: np.random.Generator, config: DOVERConfig) -> tuple[np.ndarray, AnyScene]:
    scene = synthetic.random_scene(rng)
    size = int(rng.choice([128, 176, 224, 288]))
    return synthetic.draw(scene, rng, num_frames=config.num_frames, size=size), scene
