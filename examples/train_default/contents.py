"""Clips in known states of repair, with captions that are true or not: pictures that move, and drawn scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dover_eval.config import DOVERConfig
from dover_eval.training import synthetic
from dover_eval.training.synthetic import CHOICES, STRESSES
from dover_eval.video.sample import prepare_clip
from examples.train_default import scenes
from examples.train_default.spoil import SPOILED, Camera, spoil

BEST, WORST = 4.6, 1.2  # what an untouched clip is taught to score, and one as bad as it gets
DRAWN = 0.25  # the share of scenes that a program draws
CUTS = 0.1  # the share of clips with a cut to another place, which is no fault
ATTRIBUTES = {name: len(options) for name, options in CHOICES.items()}

AnyScene = scenes.Scene | synthetic.Scene


@dataclass(frozen=True)
class Content:
    """A scene in V versions.

    frames: (V,views,3,T,h,w), prepared. defects: (V,D) strengths, as `ASPECT_OF`. bad: (V,3) as `SPOILED`, 0 to 1.
    prompts and what they describe: the first is true of the scene, the second nearly.
    """

    scene: AnyScene
    frames: Tensor
    defects: Tensor
    bad: Tensor
    prompts: tuple[str, ...]
    prompt_scenes: tuple[AnyScene, ...]
    stresses: tuple[str, ...]


class Contents(IterableDataset):
    """`count` contents; the same seed gives the same ones, whatever the number of workers' shares."""

    def __init__(self, config: DOVERConfig, count: int, *, seed: int, variants: int = 3) -> None:
        self.config, self.count, self.seed, self.variants = config, count, seed, variants

    def __iter__(self) -> Iterator[Content]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(first, self.count, step):
            yield self.content(index)

    def content(self, index: int) -> Content:
        rng = np.random.default_rng([self.seed, index])
        frames, scene, near = _drawn(rng, self.config) if rng.random() < DRAWN else _pictured(rng, self.config)
        camera, moves = Camera.random(rng), scene.moves if isinstance(scene, scenes.Scene) else scene.motion != "still"
        clips, defects, bad = [], [], []
        for _ in range(self.variants):
            spoiled, strengths, badness = spoil(frames, camera, moves, rng, hand=index)
            clip = torch.from_numpy(np.ascontiguousarray(spoiled)).permute(0, 3, 1, 2)
            clips.append(prepare_clip(clip, self.config))
            defects.append(list(strengths.values()))
            bad.append([badness[aspect] for aspect in SPOILED])
        described = (scene, near)
        stresses = tuple(str(s) for s in rng.choice(list(STRESSES), 2, p=[0.55, 0.15, 0.15, 0.15]))
        return Content(
            scene=scene,
            frames=torch.stack(clips),
            defects=torch.tensor(defects),
            bad=torch.tensor(bad),
            prompts=tuple(_caption(s, rng, stress) for s, stress in zip(described, stresses, strict=True)),
            prompt_scenes=described,
            stresses=stresses,
        )


@dataclass(frozen=True)
class Batch:
    """N clips against P prompts: every pair is an example, because each caption's truth is known for all clips.

    frames (N,views,3,T,h,w); targets (N,P,4) on the 1-5 scale, columns as `ASPECTS`; fits (N,P) true for a true
    caption; weights (P,4) that the prompts ask for; classes: attribute -> (N,) class of the scene, -1 for none.
    """

    frames: Tensor
    prompts: list[str]
    targets: Tensor
    fits: Tensor
    weights: Tensor
    defects: Tensor
    classes: dict[str, Tensor]


def collate(contents: list[Content]) -> Batch:
    """Contents with their prompts, each clip against each prompt."""
    repeated = [content.scene for content in contents for _ in content.frames]
    described = [scene for content in contents for scene in content.prompt_scenes]
    share = torch.tensor([[matches(scene, other) for other in described] for scene in repeated])
    fits = share == 1
    quality = BEST - (BEST - WORST) * torch.cat([content.bad for content in contents])
    traditional, aesthetic, temporal = quality[:, :, None].expand(-1, -1, len(described)).unbind(1)
    alignment = torch.where(fits, torch.tensor(BEST), WORST + 2.4 * share)
    return Batch(
        frames=torch.cat([content.frames for content in contents]),
        prompts=[prompt for content in contents for prompt in content.prompts],
        targets=torch.stack([traditional, alignment, aesthetic, temporal], dim=2),
        fits=fits,
        weights=torch.tensor([STRESSES[stress][0] for content in contents for stress in content.stresses]),
        defects=torch.cat([content.defects for content in contents]),
        classes={name: torch.tensor([_classes(scene)[name] for scene in repeated]) for name in ATTRIBUTES},
    )


def matches(scene: AnyScene, other: AnyScene) -> float:
    """How much of a caption of `other` is true of `scene`, 0 to 1."""
    return scene.matches(other) if type(scene) is type(other) else 0.0


def _classes(scene: AnyScene) -> dict[str, int]:
    if isinstance(scene, scenes.Scene):
        return dict.fromkeys(ATTRIBUTES, -1) | scene.classes
    return {name: options.index(getattr(scene, name)) for name, options in CHOICES.items()}


def _caption(scene: AnyScene, rng: np.random.Generator, stress: str) -> str:
    says = scenes.caption if isinstance(scene, scenes.Scene) else synthetic.caption
    return says(scene, rng, stress)  # type: ignore[arg-type]


def _pictured(rng: np.random.Generator, config: DOVERConfig) -> tuple[np.ndarray, AnyScene, AnyScene]:
    scene = scenes.random_scene(rng)
    frames = scenes.render(scene, rng, runs=config.windows, length=config.num_frames // config.windows)
    if rng.random() < CUTS:
        frames = scenes.cut_away(frames, rng)
    return frames, scene, scenes.near_miss(scene, rng)


def _drawn(rng: np.random.Generator, config: DOVERConfig) -> tuple[np.ndarray, AnyScene, AnyScene]:
    scene = synthetic.random_scene(rng)
    size = int(rng.choice([128, 176, 224, 288]))
    return synthetic.draw(scene, rng, num_frames=config.num_frames, size=size), scene, synthetic.near_miss(scene, rng)
