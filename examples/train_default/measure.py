"""What a checkpoint is worth on clips that training never saw: does the right score move, the right way, and alone?

Every figure is a mean over clips (or pairs) with its 95% interval, by bootstrap over the clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, spearmanr

from dover_eval.distortions import ASPECT_OF, Frames, distort, h264
from dover_eval.opinion import ASPECTS
from dover_eval.scorer import VideoScorer
from examples.train_default import scenes
from examples.train_default.spoil import NEED_MOTION, UNSEEN, ms_ssim_of, resized

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
QUALITY = ("Traditional", "Aesthetic", "Temporal")
NEAR = ("thing", "colour", "motion", "number")


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval over `count` clips."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[Any]) -> Estimate:
        values = np.asarray(values, float)
        mean = float(values.mean())
        if len(values) < 2 or np.ptp(values) == 0:
            return cls(mean, mean, mean, len(values))
        found = bootstrap((values,), np.mean, rng=np.random.default_rng(0), method="percentile").confidence_interval
        return cls(mean, float(found.low), float(found.high), len(values))


@dataclass(frozen=True)
class DefectResult:
    """How one defect is seen, by clips at every strength of `STRENGTHS`.

    rank: Spearman's correlation between the defect's own score and its absence, within a clip. moved: how far the own
    score falls from none to full strength, in points. others_moved: the same for the mean of the two other quality
    scores, in absolute value.
    """

    aspect: str
    rank: Estimate
    moved: Estimate
    others_moved: Estimate


def defects(
    scorer: VideoScorer,
    clips: Sequence[Frames],
    captions: Sequence[str],
    seed: int,
    *,
    names: Sequence[str] = tuple(ASPECT_OF),
) -> dict[str, DefectResult]:
    """`DefectResult` by name. Clips that a defect does not change (frames dropped from a still) are left out of it."""
    results = {}
    for name in names:
        versions, texts = [], []
        for i, clip in enumerate(clips):
            spoiled = [distort(clip, name, s, np.random.default_rng([seed, i])) if s else clip for s in STRENGTHS]
            if name not in NEED_MOTION or np.abs(spoiled[-1].astype(np.int16) - clip).mean() >= UNSEEN:
                versions += spoiled
                texts += [captions[i]] * len(STRENGTHS)
        values = _score(scorer, versions, texts).reshape(-1, len(STRENGTHS), 5)
        own = ASPECTS.index(ASPECT_OF[name])
        others = [ASPECTS.index(aspect) for aspect in QUALITY if aspect != ASPECT_OF[name]]
        fall = values[:, 0] - values[:, -1]
        results[name] = DefectResult(
            aspect=ASPECT_OF[name],
            rank=Estimate.of([_rank(clip[:, own]) for clip in values]),
            moved=Estimate.of(fall[:, own]),
            others_moved=Estimate.of(np.abs(fall[:, others]).mean(axis=1)),
        )
    return results


def agreement_with_ms_ssim(
    scorer: VideoScorer, clips: Sequence[Frames], captions: Sequence[str], seed: int
) -> Estimate:
    """Spearman's correlation, across clips, of Traditional with the MS-SSIM of the spoiled clip to the whole one.

    Each clip is spoiled once, by one defect at one strength. The interval is over resampled clips.
    """
    rng = np.random.default_rng([seed, 1])
    names = [name for name, aspect in ASPECT_OF.items() if aspect == "Traditional"]
    spoiled = [distort(clip, str(rng.choice(names)), float(rng.uniform(0.05, 1)), rng) for clip in clips]
    similarity = np.array([ms_ssim_of(a[::5], b[::5]) for a, b in zip(clips, spoiled, strict=True)])
    scores = _score(scorer, spoiled, captions)[:, ASPECTS.index("Traditional")]
    correlation = lambda a, b: float(spearmanr(a, b).statistic)
    found = bootstrap(
        (scores, similarity),
        correlation,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(correlation(scores, similarity), float(found.low), float(found.high), len(clips))


def captions_told(
    scorer: VideoScorer, chosen: Sequence[scenes.Scene], clips: Sequence[Frames], captions: Sequence[str], seed: int
) -> dict[str, Estimate]:
    """How often the right caption beats those of three other scenes, and one with a word wrong, by kind of word."""
    rng = np.random.default_rng([seed, 2])
    right = _score(scorer, clips, captions)[:, ASPECTS.index("Alignment")]
    align = lambda which, texts: _score(scorer, [clips[i] for i in which], texts)[:, ASPECTS.index("Alignment")]
    which = [(i, j) for i in range(len(clips)) for j in rng.permutation(_others(chosen, i))[:3]]
    wins = right[[i for i, _ in which]] > align([i for i, _ in which], [captions[j] for _, j in which])
    told = {"another scene's": Estimate.of(wins.reshape(len(clips), -1).mean(axis=1))}
    near: list[float] = []
    for attribute in NEAR:
        with_thing = [i for i, scene in enumerate(chosen) if scene.thing is not None]
        changed = [scenes.near_miss(chosen[i], rng, attribute) for i in with_thing]
        # The same words but for one: the same generator writes both.
        pairs = [_two_captions(chosen[i], other, rng) for i, other in zip(with_thing, changed, strict=True)]
        own, wrong = align(with_thing, [a for a, _ in pairs]), align(with_thing, [b for _, b in pairs])
        told[f"one {attribute} wrong"] = Estimate.of(own > wrong)
        near += list(own > wrong)
    return told | {"one word wrong": Estimate.of(near)}


def right_over_wrong(scorer: VideoScorer, clips: Sequence[Frames], prompts: Sequence[str]) -> list[int]:
    """Of all pairs of a clip and another clip's prompt, how many have less Alignment than the clip with its own prompt,
    and how many there are."""
    count = len(clips)
    pairs = [(clip, text) for clip in clips for text in prompts]
    align = _score(scorer, *zip(*pairs, strict=True))[:, ASPECTS.index("Alignment")].reshape(count, count)
    return [int((align.diagonal()[:, None] > align).sum()), count * (count - 1)]


def steadiness(scorer: VideoScorer, longer: Sequence[Frames], captions: Sequence[str]) -> dict[str, Estimate]:
    """How far the five scores move, in absolute points, under what should not matter. `longer`: a frame too many."""
    clips = [clip[:-1] for clip in longer]
    before = _score(scorer, clips, captions)
    harmless = {
        "encoded at CRF 18": [h264(clip, 18) for clip in clips],
        "a frame later": [clip[1:] for clip in longer],
        "10% smaller": [resized(clip, 0.9) for clip in clips],
        "10% larger": [resized(clip, 1.1) for clip in clips],
    }
    return {
        name: Estimate.of(np.abs(_score(scorer, after, captions) - before).mean(axis=1))
        for name, after in harmless.items()
    }


def held_out_scenes(scorer: VideoScorer, count: int, seed: int) -> tuple[list[scenes.Scene], list[Frames], list[str]]:
    """Scenes whose places and things training never showed, with one frame more than the scorer samples."""
    rng = np.random.default_rng(seed)
    chosen: list[scenes.Scene] = []
    while len(chosen) < count:
        scene = scenes.random_scene(rng, held_out=True)
        if scene.moves:
            chosen.append(scene)
    clips = [scenes.render(scene, rng, runs=1, length=scorer.config.num_frames + 1) for scene in chosen]
    return chosen, clips, [scenes.caption(scene, rng) for scene in chosen]


def measure(scorer: VideoScorer, count: int = 24, *, seed: int = 12345) -> dict[str, Any]:
    """All of it on `count` held-out scenes, fit for JSON."""
    _, longer, captions = held_out_scenes(scorer, count, seed)
    clips = [clip[:-1] for clip in longer]
    more, more_clips, more_captions = held_out_scenes(scorer, 4 * count, seed + 1)
    more_clips = [clip[:-1] for clip in more_clips]
    return {
        "scenes": count,
        "seed": seed,
        "defects": {name: asdict(result) for name, result in defects(scorer, clips, captions, seed).items()},
        "ms_ssim": asdict(agreement_with_ms_ssim(scorer, more_clips, more_captions, seed)),
        "captions": {
            name: asdict(told) for name, told in captions_told(scorer, more, more_clips, more_captions, seed).items()
        },
        "harmless": {name: asdict(moved) for name, moved in steadiness(scorer, longer, captions).items()},
    }


def _others(chosen: Sequence[scenes.Scene], i: int) -> list[int]:
    return [j for j, other in enumerate(chosen) if chosen[i].matches(other) < 0.5]


def _two_captions(right: scenes.Scene, wrong: scenes.Scene, rng: np.random.Generator) -> tuple[str, str]:
    seed = int(rng.integers(2**31))
    return scenes.caption(right, np.random.default_rng(seed)), scenes.caption(wrong, np.random.default_rng(seed))


def _rank(scores: NDArray[Any]) -> float:
    return 0.0 if np.ptp(scores) < 1e-4 else float(spearmanr(scores, -np.array(STRENGTHS)).statistic)


def _score(scorer: VideoScorer, clips: Sequence[Frames], texts: Sequence[str]) -> NDArray[Any]:
    """(N,5) float64."""
    return scorer.score(list(clips), list(texts), layout="THWC").values.double().numpy()
