"""Scores against a benchmark's items: who is who, what is missing, and the figures by aspect."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from dover_eval.evaluation.benchmarks import KONVID_TAIL, Item, JudgedPair, RatedClip
from dover_eval.evaluation.metrics import (
    FEWEST_RATINGS,
    RESAMPLES,
    PairMetrics,
    RatingMetrics,
    pair_metrics,
    rating_metrics,
)
from dover_eval.files import composed, own_path
from dover_eval.opinion import SCORE_NAMES
from dover_eval.results import read_results, without_nan
from dover_eval.tables import TableError

Key = tuple[str, str]  # (video, prompt), as the items call them
Scores = Mapping[Key, Mapping[str, float]]


@dataclass(frozen=True)
class EvaluationReport:
    """Figures by score name, for those that the benchmark judges.

    items: clips or pairs of the benchmark; used: those whose clips were all found and scored.
    missing: names of clips that were not found. failed: why clips have no scores, by name. left_out: reasons by score
    name for which there are no figures, or some that are no number, or figures of a part. fingerprint: of the scorer,
    where one is known.
    """

    benchmark: str
    items: int
    used: int
    aspects: dict[str, RatingMetrics | PairMetrics]
    missing: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the figures are of the whole benchmark."""
        return not (self.missing or self.failed or self.left_out)

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON: a figure without a value is None."""
        return without_nan(asdict(self))


class ClipIndex:
    """Finds clips by what tables call them: a path, the end of one, a name, a stem, or KoNViD-1k's number of a clip.

    Folders never contradict: `a/1.mp4` is found as `1.mp4`, or as `set/a/1.mp4`, and not as `b/1.mp4`. Nor is part of a
    name enough: `dog_running.mp4` is no clip that a table calls `dog`.

    Args:
        names: the clips' paths.
        root: the folder that they lie in, which counts for nothing; by default the one that they share.
    """

    def __init__(self, names: Iterable[str], root: str | None = None) -> None:
        names = list(names)
        folders = [os.path.dirname(os.path.abspath(own_path(name))) for name in names]
        root = os.path.abspath(root) if root is not None else os.path.commonpath(folders) if folders else ""
        self._names = set(names)
        self._whole: dict[str, set[str]] = defaultdict(set)
        self._ends: dict[str, set[str]] = defaultdict(set)
        self._stems: dict[str, set[str]] = defaultdict(set)
        for name in names:
            inside = os.path.relpath(os.path.abspath(own_path(name)), root)
            path = PurePosixPath(composed(inside).replace("\\", "/"))
            self._whole[str(path)].add(name)
            for i in range(len(path.parts)):
                self._ends["/".join(path.parts[i:])].add(name)
            for stem in (path.stem, path.stem.removesuffix(KONVID_TAIL)):
                self._stems[stem].add(name)

    def find(self, called: str) -> str | None:
        """The clip that `called` (a path, a name or a URL) is, or None. Raises TableError where it fits several."""
        if called in self._names:
            return called
        wanted = unquote(urlsplit(called).path) if "://" in called else called.replace("\\", "/")
        parts = [part for part in PurePosixPath(composed(wanted)).parts if part not in ("/", ".")]
        candidates = [self._ends.get("/".join(parts), set())]
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        candidates.append(next((self._whole[end] for end in ends if end in self._whole), set()))
        if len(parts) == 1:
            candidates.append(self._stems.get(parts[0], set()))
        found = next((names for names in candidates if names), set())
        if len(found) > 1:
            raise TableError(f"{called} is any of {', '.join(sorted(found)[:3])}: keep its folder in the name")
        return next(iter(found), None)


def match_clips(items: Sequence[Item], index: ClipIndex) -> dict[Key, str]:
    """The clip of each (video, prompt) that is there. Raises TableError where two videos of the items are one clip."""
    called: dict[str, str] = {}
    matched = {}
    for video, prompt in wanted_clips(items):
        name = index.find(video)
        if name is None:
            continue
        if called.setdefault(name, video) != video:
            raise TableError(f"{called[name]} and {video} are both {name}: keep the table's folders")
        matched[video, prompt] = name
    return matched


def wanted_clips(items: Sequence[Item]) -> list[Key]:
    """Every (video, prompt) of the items, once, in order: what has to be scored."""
    return list(dict.fromkeys((video, item.prompt) for item in items for video in item.videos))


def read_scores(path: Path, items: Sequence[Item]) -> tuple[Scores, dict[Key, str], str]:
    """What `dover-eval score --output` wrote, by (video, prompt) as `items` call them: scores, NaN for a clip that
    failed; its reason; and the fingerprint.

    Raises TableError for another table, for one that holds scores of two fingerprints, or two rows of one clip that
    differ, and where a clip of the items was scored under other prompts alone.
    """
    results = read_results(path)
    rows: dict[Key, int] = {}
    for i, key in enumerate(zip(results.videos, results.prompts, strict=True)):
        first = rows.setdefault(key, i)
        if not np.array_equal(results.scores[first], results.scores[i], equal_nan=True):
            raise TableError(f"{path}: {key[0]} has two rows under {key[1]!r} whose scores differ, expected one")
    places = match_clips(items, ClipIndex({name for name, _ in rows}))
    for (video, prompt), name in places.items():
        if (name, prompt) not in rows:
            under = next(scored for clip, scored in rows if clip == name)
            raise TableError(f"{path}: {video} was scored under {under!r}, and not under {prompt!r}")
    found = {key: rows[name, key[1]] for key, name in places.items()}
    scores = {key: dict(zip(SCORE_NAMES, results.scores[i].tolist(), strict=True)) for key, i in found.items()}
    return scores, {key: error for key, i in found.items() if (error := results.errors[i])}, results.fingerprint


def evaluate(
    items: Sequence[Item],
    scores: Scores,
    *,
    errors: Mapping[Key, str] | None = None,
    benchmark: str = "ratings",
    fingerprint: str | None = None,
    tie_thresholds: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> EvaluationReport:
    """Figures for every score name that the items judge.

    Args:
        items: rated clips or judged pairs. Several ratings of one clip under one prompt count as their mean.
        scores: for (video, prompt) as the items call them, values by score name; NaN for a clip that failed. Clips
            without an entry are reported as missing.
        errors: why clips failed, where it is known.
        tie_thresholds: for pairs, by score name; one that is absent is chosen on the pairs, as the protocol has it.
    """
    wanted = wanted_clips(items)
    missing = tuple(dict.fromkeys(key[0] for key in wanted if key not in scores))
    nan = lambda key: key in scores and any(math.isnan(value) for value in scores[key].values())
    reasons = errors or {}
    failed = {key[0]: reasons.get(key, "scores that are no numbers") for key in wanted if nan(key)}
    usable = {key for key in wanted if key in scores and not nan(key)}
    used = [item for item in items if all(key in usable for key in wanted_clips([item]))]

    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    figures: dict[str, Any] = {}
    left_out: dict[str, str] = {}

    def remark(name: str, reason: str) -> None:
        left_out[name] = f"{left_out[name]}; {reason}" if name in left_out else reason

    for name in SCORE_NAMES:
        opinions: dict[Key, list[float]] = defaultdict(list)
        for item in used:
            if isinstance(item, RatedClip) and name in item.ratings:
                opinions[item.video, item.prompt].append(item.ratings[name])
        judged = [
            (item, item.verdicts[name]) for item in used if isinstance(item, JudgedPair) and name in item.verdicts
        ]
        if len(opinions) >= FEWEST_RATINGS:
            predicted = [scores[key][name] for key in opinions]
            ratings = [fmean(own) for own in opinions.values()]  # exactly rounded: no order of raters decides a rank
            prompts = [prompt for _, prompt in opinions]
            figures[name] = rating_metrics(predicted, ratings, groups=prompts, **options)
            for what, values in (("score", predicted), ("rating", ratings)):
                if len(set(values)) == 1:
                    remark(name, f"every {what} is {values[0]:g}, which correlates with nothing")
            if judged:
                remark(name, f"the figures are of its ratings, and not of its {len(judged)} pairs")
        elif judged:
            score = lambda video, prompt, name=name: scores[video, prompt][name]
            differences = [score(p.video_a, p.prompt) - score(p.video_b, p.prompt) for p, _ in judged]
            threshold = (tie_thresholds or {}).get(name)
            verdicts, prompts = [v for _, v in judged], [p.prompt for p, _ in judged]
            figures[name] = pair_metrics(differences, verdicts, tie_threshold=threshold, groups=prompts, **options)
            if opinions:
                few = f"{len(opinions)} rated clips, at least {FEWEST_RATINGS} are needed"
                remark(name, f"{few}: the figures are of its pairs")
            if not any(verdicts):
                remark(name, "every pair is a tie, which tells no preference")
        elif opinions:
            remark(name, f"{len(opinions)} rated clips, at least {FEWEST_RATINGS} are needed")
    return EvaluationReport(benchmark, len(items), len(used), figures, missing, failed, left_out, fingerprint)
