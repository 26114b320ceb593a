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

from dover_eval.evaluation.benchmarks import KONVID_TAIL, Item, pairs_of, ratings_of
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
from dover_eval.results import read_results
from dover_eval.tables import TableError
from dover_eval.wording import without_nan

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
    used = [item for item in items if usable.issuperset(wanted_clips([item]))]
    figures: dict[str, RatingMetrics | PairMetrics] = {}
    left_out: dict[str, str] = {}
    for name in SCORE_NAMES:
        threshold = (tie_thresholds or {}).get(name)
        found, remarks = _figures(name, used, scores, threshold, resamples=resamples, seed=seed)
        if found is not None:
            figures[name] = found
        if remarks:
            left_out[name] = "; ".join(remarks)
    return EvaluationReport(benchmark, len(items), len(used), figures, missing, failed, left_out, fingerprint)


def _figures(
    name: str, items: Sequence[Item], scores: Scores, tie_threshold: float | None, **bootstrap: int
) -> tuple[RatingMetrics | PairMetrics | None, list[str]]:
    """The figures of one score, if the items judge it enough for any, and what is to be said of them."""
    opinions, pairs = ratings_of(items, name), pairs_of(items, name)
    few = f"{len(opinions)} rated clips, at least {FEWEST_RATINGS} are needed"
    if len(opinions) >= FEWEST_RATINGS:
        predicted = [scores[key][name] for key in opinions]
        ratings = [fmean(own) for own in opinions.values()]  # exactly rounded: no order of raters decides a rank
        flat = [(what, of[0]) for what, of in (("score", predicted), ("rating", ratings)) if len(set(of)) == 1]
        remarks = [f"every {what} is {value:g}, which correlates with nothing" for what, value in flat]
        remarks += [f"the figures are of its ratings, and not of its {len(pairs)} pairs"] if pairs else []
        return rating_metrics(predicted, ratings, groups=[prompt for _, prompt in opinions], **bootstrap), remarks
    if not pairs:
        return None, [few] if opinions else []
    first, second = ([scores[pair.videos[side], pair.prompt][name] for pair in pairs] for side in (0, 1))
    verdicts = [pair.verdicts[name] for pair in pairs]
    remarks = [f"{few}: the figures are of its pairs"] if opinions else []
    remarks += [] if any(verdicts) else ["every pair is a tie, which tells no preference"]
    differences, prompts = np.subtract(first, second), [pair.prompt for pair in pairs]
    return pair_metrics(differences, verdicts, tie_threshold=tie_threshold, groups=prompts, **bootstrap), remarks
