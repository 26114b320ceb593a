"""The report of one results file: how each score is distributed, what ranks where, what is worst, what failed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from dover_eval.looking.media import thumbnail
from dover_eval.looking.page import render_page
from dover_eval.opinion import MOS_MAX, MOS_MIN, SCORE_NAMES
from dover_eval.results import Results
from dover_eval.video.decode import VideoError

BINS = 32
PREVIEW_BYTES = 12_000_000  # all clips of a page together, before base64 adds a third


def report_page(
    results: Results,
    *,
    clips: int = 6,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """The page, as HTML text that needs nothing else.

    Args:
        clips: how many of the worst and of the best, by each score, are shown playing.
        folder: where the clips lie, for names that are relative; by default the working folder.
        progress: called with how many clips are read, and of how many.
    """
    shown = _extremes(results, clips)
    rows = in_turn(end for ends in shown for end in ends)
    made = make_previews([(folder or Path()) / results.videos[i] for i in rows], progress)
    previews = {str(i): preview for i, preview in zip(rows, made, strict=True)}
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(results.prompts))}
    data = {
        "names": SCORE_NAMES,
        "videos": results.videos,
        "prompts": list(prompts),
        "prompt": [prompts[prompt] for prompt in results.prompts],
        "scores": [columns(results.scores[:, i]) for i in range(len(SCORE_NAMES))],
        "errors": {str(i): error for i, error in enumerate(results.errors) if error},
        "extremes": shown,
        "previews": previews,
        "edges": np.linspace(MOS_MIN, MOS_MAX, BINS + 1).tolist(),
        "summary": [_summary(results, i) for i in range(len(SCORE_NAMES))],
        "spearman": _spearman(results),
    }
    return render_page(
        "report.html",
        title=f"{results.path.name}: report",
        data=data,
        scripts=("common.js", "table.js", "report.js"),
        kind="report",
        results=results,
        scored=int(results.scored.sum()),
        failures=_failures(results),
        summary=data["summary"],
        names=SCORE_NAMES,
    )


def in_turn(lists: Iterable[Sequence[int]]) -> list[int]:
    """The first of every list, then the second of every list, and so on; each once."""
    return list(dict.fromkeys(i for turn in zip_longest(*lists) for i in turn if i is not None))


def make_previews(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[dict[str, Any]]:
    """For each file a clip that plays, or a note that says why there is none; the first have them where all together
    would be more than `PREVIEW_BYTES`."""
    made: list[dict[str, Any]] = []
    total = 0
    for i, path in enumerate(paths):
        if total > PREVIEW_BYTES:
            made.append({"note": "left out: the page's previews are full"})
        else:
            try:
                clip = thumbnail(path)
                made.append({"mp4": clip.base64})
                total += len(clip.mp4)
            except VideoError as error:
                made.append({"note": f"no preview: {str(error).removeprefix(f'{path}: ')}"})
        if progress:
            progress(i + 1, len(paths))
    return made


def columns(values: np.ndarray) -> list[float | None]:
    """Scores as a page holds them, which sorts and subtracts them: with a float32's decimals, because only displayed
    values are rounded; None for NaN, which JSON does not know."""
    return [None if value != value else round(value, 6) for value in values.tolist()]


def _extremes(results: Results, count: int) -> list[list[list[int]]]:
    """By score: the rows of the worst and of the best, each from the end inwards; never one row in both."""
    good = np.flatnonzero(results.scored)
    ends = []
    for column in range(len(SCORE_NAMES)):
        order = good[np.argsort(results.scores[good, column], kind="stable")]
        worst = order[: min(count, (len(order) + 1) // 2)]
        best = order[::-1][: min(count, len(order) // 2)]
        ends.append([worst.tolist(), best.tolist()])
    return ends


def _summary(results: Results, column: int) -> dict[str, Any] | None:
    values = results.scores[results.scored, column]
    if not len(values):
        return None
    low, middle, high = np.percentile(values, (5, 50, 95))
    return {
        "mean": round(float(values.mean()), 3),
        "median": round(float(middle), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "counts": np.histogram(values, BINS, (MOS_MIN, MOS_MAX))[0].tolist(),
    }


def _spearman(results: Results) -> list[list[float | None]]:
    """Rank correlation of each two scores; None where one is constant or there are fewer than three clips."""
    from scipy import stats

    values = results.scores[results.scored]
    if len(values) < 3:
        return [[None] * len(SCORE_NAMES)] * len(SCORE_NAMES)
    ranks = stats.rankdata(values, axis=0)
    spread = ranks.std(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.cov(ranks.T, bias=True) / np.outer(spread, spread)
    return [[None if not np.isfinite(value) else round(value, 3) for value in row] for row in matrix.tolist()]


def _failures(results: Results) -> list[tuple[str, list[str]]]:
    """Reasons, less the file's own name, with the clips that failed for them; the most frequent first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for video, error in zip(results.videos, results.errors, strict=True):
        if error:
            groups[error.removeprefix(f"{video}: ")].append(video)
    return sorted(groups.items(), key=lambda item: -len(item[1]))
