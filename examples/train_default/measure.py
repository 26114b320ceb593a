"""What a checkpoint is worth on drawn clips that it never saw: does the right score move, the right way, and alone?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from dover_eval.distortions import ASPECT_OF, distort
from dover_eval.models.heads import ASPECTS
from dover_eval.scorer import VideoScorer
from dover_eval.training.synthetic import caption, draw, near_miss, random_scene

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
NEED_MOTION = ("drop", "shuffle")


@dataclass(frozen=True)
class DefectResult:
    """How one defect is seen. `contents` clips, each at every strength of `STRENGTHS`.

    rank: mean over contents of Spearman's correlation between the defect's own score and its absence.
    told_apart: share of contents whose untouched clip beats the one at strength 0.5.
    moved: how far the own score falls from strength 0 to 1, on average, in points of the 1-5 scale.
    others_moved: the same for the mean of the two other quality scores, in absolute value.
    """

    aspect: str
    contents: int
    rank: float
    told_apart: float
    moved: float
    others_moved: float


@dataclass(frozen=True)
class HeldOutReport:
    """Results by defect, and how often the right caption beats another one in Alignment."""

    defects: dict[str, DefectResult] = field(default_factory=dict)
    right_beats_wrong: float = 0.0
    right_beats_near_miss: float = 0.0
    caption_pairs: int = 0
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_held_out(
    scorer: VideoScorer, contents: int = 40, *, seed: int = 12345, defects: Sequence[str] = tuple(ASPECT_OF)
) -> HeldOutReport:
    """Score `contents` scenes of the held-out combinations, spoiled by every defect at every strength."""
    rng = np.random.default_rng(seed)
    num_frames = scorer.config.num_frames
    scenes = [random_scene(rng, held_out=True) for _ in range(contents)]
    drawn = [draw(scene, rng, num_frames=num_frames, size=160) for scene in scenes]
    captions = [caption(scene, rng) for scene in scenes]

    results = {}
    for name in defects:
        chosen = [i for i, scene in enumerate(scenes) if scene.motion != "still" or name not in NEED_MOTION]
        clips = [
            distort(drawn[i], name, strength, np.random.default_rng([seed, i]))
            for i in chosen
            for strength in STRENGTHS
        ]
        texts = [captions[i] for i in chosen for _ in STRENGTHS]
        values = scorer.score(clips, texts, layout="THWC").values
        results[name] = _defect(name, values.unflatten(0, (len(chosen), len(STRENGTHS))).numpy())

    fits = np.array([[first.matches(second) for second in scenes] for first in scenes])
    pairs, wrong_captions = [], []
    for i in range(contents):
        for j in rng.permutation([j for j in range(contents) if fits[i, j] < 0.5])[:3]:
            pairs.append(i)
            wrong_captions.append(captions[j])
    near = [caption(near_miss(scene, rng), rng) for scene in scenes]
    align = lambda clips, texts: scorer.score(clips, texts, layout="THWC").values[:, ASPECTS.index("Alignment")]
    right = align(drawn, captions)
    wrong = align([drawn[i] for i in pairs], wrong_captions)
    return HeldOutReport(
        defects=results,
        right_beats_wrong=(right[torch.tensor(pairs)] > wrong).float().mean().item(),
        right_beats_near_miss=(right > align(drawn, near)).float().mean().item(),
        caption_pairs=len(pairs),
        seed=seed,
    )


def _defect(name: str, values: np.ndarray) -> DefectResult:
    """From the scores (contents, strengths, 5)."""
    from scipy.stats import spearmanr

    own = ASPECTS.index(ASPECT_OF[name])
    others = [ASPECTS.index(aspect) for aspect in ("Traditional", "Aesthetic", "Temporal") if aspect != ASPECT_OF[name]]
    ranks = [spearmanr(clip[:, own], -np.array(STRENGTHS)).statistic for clip in values]
    fall = values[:, 0] - values[:, -1]
    return DefectResult(
        aspect=ASPECT_OF[name],
        contents=len(values),
        rank=float(np.nan_to_num(ranks).mean()),
        told_apart=float((values[:, 0, own] > values[:, STRENGTHS.index(0.5), own]).mean()),
        moved=float(fall[:, own].mean()),
        others_moved=float(np.abs(fall[:, others]).mean()),
    )
