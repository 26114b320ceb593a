"""Scores against a benchmark's items: who is who, what is missing, and the figures by aspect."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from dover_eval.evaluation.benchmarks import JudgedPair, RatedClip
from dover_eval.evaluation.metrics import (
    FEWEST_RATINGS,
    LEVEL,
    RESAMPLES,
    PairMetrics,
    RatingMetrics,
    pair_metrics,
    rating_metrics,
)
from dover_eval.evaluation.tables import TableError, number, read_rows
from dover_eval.models.heads import SCORE_NAMES

Items = Sequence[RatedClip | JudgedPair]
Scores = Mapping[tuple[str, str], Mapping[str, float]]


@dataclass(frozen=True)
class EvaluationReport:
    """Figures by score name, for those that the benchmark judges.

    items: clips or pairs of the benchmark; used: those whose clips were all found and scored.
    missing: names of clips that were not found. failed: clips whose scores are NaN. left_out: reasons by score name
    for which no figure could be had. fingerprint: of the scorer, where one is known.
    """

    benchmark: str
    items: int
    used: int
    aspects: dict[str, RatingMetrics] | dict[str, PairMetrics]
    missing: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the figures are of the whole benchmark."""
        return not (self.missing or self.failed or self.left_out)

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON: a figure without a value is None."""
        return _without_nan(asdict(self))


class ClipIndex:
    """Finds clips by what benchmarks call them: the path, its end, the name, the stem, or what a stem begins with."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by: list[dict[str, set[str]]] = [defaultdict(set) for _ in range(4)]
        for name in names:
            path = PurePosixPath(name.replace("\\", "/"))
            parts = path.parts
            self._by[0][name].add(name)
            for i in range(len(parts)):
                self._by[1]["/".join(parts[i:])].add(name)
            self._by[2][path.stem].add(name)
            self._by[3][path.stem.split("_")[0]].add(name)

    def find(self, called: str) -> str | None:
        """The one clip that `called` (a path, a name or a URL) is, or None.

        Raises ValueError where it fits several, which differ in their folders.
        """
        wanted = unquote(urlsplit(called).path) if "://" in called else called.replace("\\", "/").removeprefix("./")
        path = PurePosixPath(wanted)
        ends = ["/".join(path.parts[i:]) for i in range(len(path.parts))]
        tries = [(0, called), *((1, end) for end in ends), (2, path.name), (3, path.name)]
        for table, key in tries:
            if found := self._by[table].get(key):
                if len(found) > 1:
                    raise ValueError(f"{called} is any of {', '.join(sorted(found)[:3])}: keep its folder in the name")
                return next(iter(found))
        return None


def wanted_clips(items: Items) -> list[tuple[str, str]]:
    """Every (video, prompt) of the items, once, in order: what has to be scored."""
    wanted: dict[tuple[str, str], None] = {}
    for item in items:
        names = (item.video,) if isinstance(item, RatedClip) else (item.video_a, item.video_b)
        wanted |= dict.fromkeys((name, item.prompt) for name in names)
    return list(wanted)


def read_scores(path: Path, items: Items) -> tuple[Scores, str]:
    """What `dover-eval score --output` wrote, by (video, prompt) as `items` call them, and its fingerprint.

    Raises TableError for another table, and for one that holds scores of two fingerprints.
    """
    rows = read_rows(path, ("video_name", "Prompt", *SCORE_NAMES, "error", "fingerprint"))
    if len(prints := {row["fingerprint"] for _, row in rows}) > 1:
        raise TableError(f"{path}: scores of {len(prints)} fingerprints ({', '.join(sorted(prints))}), expected one")
    found = {}
    for line, row in rows:
        value = lambda name, line=line, row=row: math.nan if row["error"] else number(path, line, name, row[name])
        found[row["video_name"], row["Prompt"]] = {name: value(name) for name in SCORE_NAMES}
    index = ClipIndex(name for name, _ in found)
    known = {key: (index.find(key[0]), key[1]) for key in wanted_clips(items)}
    return {key: found[place] for key, place in known.items() if place in found}, prints.pop()


def evaluate(
    items: Items,
    scores: Scores,
    *,
    benchmark: str = "ratings",
    fingerprint: str | None = None,
    tie_thresholds: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> EvaluationReport:
    """Figures for every score name that the items judge.

    Args:
        items: rated clips or judged pairs.
        scores: for (video, prompt) as the items call them, values by score name; NaN for a clip that failed. Clips
            without an entry are reported as missing.
        tie_thresholds: for pairs, by score name; one that is absent is chosen on the pairs, as the protocol has it.
    """
    wanted = wanted_clips(items)
    missing = tuple(dict.fromkeys(key[0] for key in wanted if key not in scores))
    nan = lambda key: key in scores and any(math.isnan(value) for value in scores[key].values())
    failed = tuple(dict.fromkeys(key[0] for key in wanted if nan(key)))
    usable = {key for key in wanted if key in scores and not nan(key)}
    used = [item for item in items if all(key in usable for key in wanted_clips([item]))]

    options: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}
    figures: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in SCORE_NAMES:
        rated = [(item, item.ratings[name]) for item in used if isinstance(item, RatedClip) and name in item.ratings]
        judged = [
            (item, item.verdicts[name]) for item in used if isinstance(item, JudgedPair) and name in item.verdicts
        ]
        if len(rated) >= FEWEST_RATINGS:
            predicted = [scores[item.video, item.prompt][name] for item, _ in rated]
            figures[name] = rating_metrics(predicted, [rating for _, rating in rated], **options)
        elif rated:
            left_out[name] = f"{len(rated)} ratings, at least {FEWEST_RATINGS} are needed"
        elif judged:
            score = lambda video, prompt, name=name: scores[video, prompt][name]
            differences = [score(p.video_a, p.prompt) - score(p.video_b, p.prompt) for p, _ in judged]
            threshold = (tie_thresholds or {}).get(name)
            figures[name] = pair_metrics(differences, [v for _, v in judged], tie_threshold=threshold, **options)
    return EvaluationReport(benchmark, len(items), len(used), figures, missing, failed, left_out, fingerprint)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
