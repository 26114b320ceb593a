"""Drawn clips in known states of repair, endlessly, for the embedded default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dover_eval.config import DOVERConfig
from dover_eval.distortions import ASPECT_OF, DISTORTIONS, distort, h264
from dover_eval.training.synthetic import STRESSES, Scene, caption, draw, near_miss, random_scene
from dover_eval.video.sample import prepare_clip

SPOILED = ("Traditional", "Aesthetic", "Temporal")
BEST, WORST = 4.6, 1.2  # what an untouched clip is taught to score, and one as bad as it gets


@dataclass(frozen=True)
class Content:
    """A scene in several states: frames (V,3,T,h,w) and, for each, every defect's strength (V,12), as `ASPECT_OF`."""

    scene: Scene
    frames: Tensor
    defects: Tensor
    prompts: tuple[str, ...]
    prompt_scenes: tuple[Scene, ...]
    stresses: tuple[str, ...]

    @property
    def strengths(self) -> Tensor:
        """(V,3): how badly each of `SPOILED` is spoiled, 0 to 1."""
        return torch.stack([self.defects[:, _columns(aspect)].amax(1) for aspect in SPOILED], dim=1)


def _columns(aspect: str) -> list[int]:
    return [i for i, name in enumerate(ASPECT_OF) if ASPECT_OF[name] == aspect]


def spoil(frames: np.ndarray, scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
    """Frames with one defect an aspect at most, each with an even chance, and the strengths by defect."""
    strengths = dict.fromkeys(ASPECT_OF, 0.0)
    for aspect in ("Temporal", "Aesthetic", "Traditional"):  # a codec comes last, as it does in life
        if rng.random() < 0.5:
            continue
        names = [n for n in DISTORTIONS[aspect] if scene.motion != "still" or n not in ("drop", "shuffle")]
        name = str(rng.choice(names))
        strengths[name] = float(rng.uniform(0.05, 1))
        frames = distort(frames, name, strengths[name], rng)
    if not any(strengths[name] for name in DISTORTIONS["Traditional"]) and rng.random() < 0.4:
        # Real clips are compressed, and good ones are not worse for it.
        frames = h264(frames, int(rng.integers(14, 22)))
    return frames, strengths


class DrawnContents(IterableDataset):
    """`Content` after content. The same seed gives the same ones, whatever the number of workers' shares."""

    def __init__(
        self, config: DOVERConfig, count: int, *, seed: int, variants: int = 2, held_out: bool = False
    ) -> None:
        self.config, self.count, self.seed = config, count, seed
        self.variants, self.held_out = variants, held_out

    def __iter__(self) -> Iterator[Content]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(first, self.count, step):
            yield self.content(index)

    def content(self, index: int) -> Content:
        rng = np.random.default_rng([self.seed, self.held_out, index])
        scene = random_scene(rng, held_out=self.held_out)
        drawn = draw(scene, rng, num_frames=self.config.num_frames, size=int(rng.choice([112, 128, 144, 176])))
        frames, defects = [], []
        for _ in range(self.variants):
            spoiled, strengths = spoil(drawn, scene, rng)
            clip = torch.from_numpy(np.ascontiguousarray(spoiled)).permute(0, 3, 1, 2)
            frames.append(prepare_clip(clip, self.config))
            defects.append(list(strengths.values()))
        scenes = (scene, near_miss(scene, rng))
        stresses = tuple(str(s) for s in rng.choice(list(STRESSES), 2, p=[0.55, 0.15, 0.15, 0.15]))
        return Content(
            scene=scene,
            frames=torch.stack(frames),
            defects=torch.tensor(defects),
            prompts=tuple(caption(s, rng, stress) for s, stress in zip(scenes, stresses, strict=True)),
            prompt_scenes=scenes,
            stresses=stresses,
        )


@dataclass(frozen=True)
class Batch:
    """V clips against P prompts: every pair is an example, because the caption's truth is known for all of them.

    frames (V,3,T,h,w); targets (V,P,4) on the 1-5 scale, columns as `ASPECTS`; fits (V,P) true for a true caption;
    weights (P,4) that the prompts ask for; attributes: name -> (V,) class of the scene.
    """

    frames: Tensor
    prompts: list[str]
    targets: Tensor
    fits: Tensor
    weights: Tensor


def collate(contents: list[Content]) -> Batch:
    """Contents with their prompts, each clip against each prompt."""
    scenes = [content.scene for content in contents for _ in content.frames]
    prompt_scenes = [scene for content in contents for scene in content.prompt_scenes]
    share = torch.tensor([[scene.matches(other) for other in prompt_scenes] for scene in scenes])
    fits = share == 1
    quality = BEST - (BEST - WORST) * torch.cat([content.strengths for content in contents])
    traditional, aesthetic, temporal = quality[:, :, None].expand(-1, -1, len(prompt_scenes)).unbind(1)
    alignment = torch.where(fits, torch.tensor(BEST), WORST + 2.4 * share)
    return Batch(
        frames=torch.cat([content.frames for content in contents]),
        prompts=[prompt for content in contents for prompt in content.prompts],
        targets=torch.stack([traditional, alignment, aesthetic, temporal], dim=2),
        fits=fits,
        weights=torch.tensor([STRESSES[stress][0] for content in contents for stress in content.stresses]),
    )
