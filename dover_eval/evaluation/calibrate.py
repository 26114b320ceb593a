"""Fits a `Calibration` from a user's own ratings or preferences.

- From ratings: an increasing logistic, or isotonic regression, from scores to the raters' mean opinions on 1-5; and
  split-conformal intervals (Vovk et al. 2005; Lei et al. 2018), which hold a new clip's opinion with the stated
  probability if it is like the rated ones, whatever the map is worth.
- From pairs: the Bradley-Terry model with ties (Rao and Kupper 1967) on differences of scores. Preferences know no
  level, so the map is 1 + 4 x the modelled chance of beating a clip of the table, which sets 3 at its middle.
- A threshold below which two scores are a tie, and percentiles among reference clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from scipy.special import expit

from dover_eval.calibration import BOUND_TO, AspectCalibration, Calibration, CalibrationError
from dover_eval.evaluation.benchmarks import Item, pairs_of, ratings_of
from dover_eval.evaluation.metrics import best_tie_threshold
from dover_eval.evaluation.report import wanted_clips
from dover_eval.opinion import MOS_MAX, MOS_MIN, SCORE_NAMES, to_mos
from dover_eval.scores import VideoScores

Vector = NDArray[np.float64]
#: Points between the least and the greatest calibrated score, below which a map says nothing.
FLAT = 0.05
FEWEST = 10
KNOTS = 192
REFERENCE_POINTS = 1001


def calibrate(
    items: Sequence[Item],
    keys: Sequence[tuple[str, str]],
    scores: VideoScores,
    *,
    reference: VideoScores | None = None,
    rating_range: tuple[float, float] = (MOS_MIN, MOS_MAX),
    method: Literal["logistic", "isotonic"] = "logistic",
    level: float = 0.9,
    seed: int = 0,
) -> tuple[Calibration, dict[str, str]]:
    """A calibration from rated clips, judged pairs or both, and the reasons why an aspect of theirs has no map.

    Args:
        items: ratings give maps and margins, those of one clip under one prompt by their mean; pairs give tie
            thresholds, and maps to the aspects without ratings.
        keys: (video, prompt) of each row of `scores`, as the items call them. A clip that failed takes no part.
        scores: by a scorer without a calibration.
        reference: what percentiles are among; by default the clips of `scores`.
        rating_range: the ends of the raters' scale, which become 1 and 5.
        method, level, seed: see `fit_ratings`.
    """
    if scores.fingerprint.calibration is not None:
        raise CalibrationError("expected scores as scored, got scores that are calibrated already")
    if not rating_range[0] < rating_range[1]:
        raise CalibrationError(f"expected a rating_range of two rising numbers, got {rating_range}")
    rows = {key: i for i, key in enumerate(keys) if scores.errors[i] is None}
    used = [item for item in items if all(key in rows for key in wanted_clips([item]))]
    sides = lambda pairs: tuple([rows[pair.videos[side], pair.prompt] for pair in pairs] for side in (0, 1))

    aspects: dict[str, AspectCalibration] = {}
    left_out: dict[str, str] = {}
    for column, name in enumerate(SCORE_NAMES):
        raw = scores.values[:, column].double().numpy()
        opinions, pairs = ratings_of(used, name), pairs_of(used, name)
        try:
            if opinions:  # a clip's mean one, as its rating: single raters are further away
                ratings = [_mean_opinion(video, own, rating_range) for (video, _), own in opinions.items()]
                at = [rows[key] for key in opinions]
                groups = [video for video, _ in opinions]
                aspects[name] = fit_ratings(raw[at], ratings, groups, method=method, level=level, seed=seed)
            elif pairs:
                a, b = sides(pairs)
                aspects[name] = fit_pairs(raw[a], raw[b], [pair.verdicts[name] for pair in pairs])
        except CalibrationError as error:
            left_out[name] = str(error)

    mark = scores.fingerprint
    calibration = Calibration(aspects, **{name: getattr(mark, name) for name in BOUND_TO})
    final = calibration.apply(scores.values, scores.quality_weights).double().numpy()
    others = scores if reference is None else reference
    among = calibration.apply(others.values, others.quality_weights).double().numpy()
    for column, name in enumerate(SCORE_NAMES):
        aspect = replace(aspects.get(name, AspectCalibration()), reference=_quantiles(among[:, column]))
        if pairs := pairs_of(used, name):
            a, b = sides(pairs)
            verdicts = np.array([pair.verdicts[name] for pair in pairs], float)
            aspect = replace(aspect, tie_threshold=best_tie_threshold(final[a, column] - final[b, column], verdicts))
        aspects[name] = aspect
    return replace(calibration, aspects=aspects), left_out


def _mean_opinion(video: str, ratings: Sequence[float], ends: tuple[float, float]) -> float:
    try:
        return fmean(to_mos(rating, *ends) for rating in ratings)
    except ValueError as error:
        raise CalibrationError(f"{video}: {error}; rating_range sets the ends") from error


def _quantiles(values: Vector) -> tuple[float, ...]:
    """The values, sorted; of very many, evenly spaced quantiles."""
    values = np.sort(values[np.isfinite(values)])
    if len(values) > REFERENCE_POINTS:
        values = np.quantile(values, np.linspace(0, 1, REFERENCE_POINTS))
    return tuple(values.tolist())


def fit_ratings(
    scores: ArrayLike,
    ratings: ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    method: Literal["logistic", "isotonic"] = "logistic",
    level: float = 0.9,
    seed: int = 0,
) -> AspectCalibration:
    """A map from scores (N,) to ratings (N,) in 1-5, and the margin that holds a rating with probability `level`.

    Half of the rated clips, drawn with `seed`, fit the map, the other half measure it. `groups` (a clip's name, say)
    keeps rows of one group on one side.

    Raises CalibrationError for too few ratings (twenty, and twice level / (1 - level)), ratings outside 1-5, or scores
    that do not rise with the ratings.
    """
    x, y = np.asarray(scores, float), np.asarray(ratings, float)
    if x.ndim != 1 or x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise CalibrationError(f"expected as many finite scores as ratings, got shapes {x.shape} and {y.shape}")
    if y.size and not (y.min() >= MOS_MIN and y.max() <= MOS_MAX):
        raise CalibrationError(f"expected ratings in {MOS_MIN:g}-{MOS_MAX:g}, got {y.min():g} to {y.max():g}")
    names = np.array(groups if groups is not None else [str(i) for i in range(len(x))])
    order = np.random.default_rng(seed).permutation(np.unique(names))
    fitting = np.isin(names, order[: len(order) // 2])
    fewest = max(FEWEST, math.ceil(level / (1 - level) - 1e-9))  # fewer residuals bound nothing at this level
    if min(fitting.sum(), (~fitting).sum()) < fewest:
        raise CalibrationError(
            f"{len(x)} ratings of {len(order)} clips: at least {2 * fewest} are needed at level {level}"
        )
    knots = _FITS[method](x[fitting], y[fitting])
    mapped = AspectCalibration(knots, method)
    if np.ptp(mapped(x)) < FLAT:
        raise CalibrationError(
            f"the best map makes every score {mapped(x).mean():.2f}: these ratings tell nothing of it"
        )
    residuals = np.sort(np.abs(y - mapped(x))[~fitting])
    rank = math.ceil((len(residuals) + 1) * level - 1e-9)
    return AspectCalibration(knots, method, len(x), float(residuals[rank - 1]), level)


def fit_pairs(scores_a: ArrayLike, scores_b: ArrayLike, verdicts: ArrayLike) -> AspectCalibration:
    """A map from preferences: scores (N,) of A and of B, verdicts 1 (A), -1 (B) and 0 (a tie).

    Raises CalibrationError for fewer than ten pairs, or where the higher score is not the preferred one.
    """
    a, b, h = (np.asarray(values, float) for values in (scores_a, scores_b, verdicts))
    if len(h) < FEWEST:
        raise CalibrationError(f"{len(h)} pairs: at least {FEWEST} are needed")
    unit = float(np.std(a - b)) or 1.0
    d = (a - b) / unit

    def loss(parameters: Vector) -> float:
        slope, width = parameters
        wins, losses = expit(slope * d - width), expit(-slope * d - width)
        ties = np.clip(1 - wins - losses, 1e-12, 1)
        return float(-np.log(np.select([h > 0, h < 0], [wins, losses], ties).clip(1e-12)).mean() + 1e-4 * slope**2)

    # The weak pull on the slope keeps it finite where the scores tell every pair rightly.
    found = optimize.minimize(loss, (1.0, 0.5), bounds=((0, None), (1e-6, None)), method="L-BFGS-B")
    slope = float(found.x[0]) / unit
    if found.x[0] < 1e-3:
        raise CalibrationError("the preferred clip is not the one that scores higher: no rising map fits these pairs")
    grid = _grid(np.concatenate([a, b]))
    chance = expit(slope * (grid[:, None] - np.concatenate([a, b])[None])).mean(axis=1)
    return AspectCalibration(_as_knots(grid, MOS_MIN + (MOS_MAX - MOS_MIN) * chance), "pairs", len(h))


def _fit_logistic(x: Vector, y: Vector) -> tuple[tuple[float, float], ...]:
    _refuse_falling(x, y)
    curve = lambda p, at: p[0] + (p[1] - p[0]) * expit((at - p[2]) / p[3])
    spread = max(float(x.std()), 1e-3)
    start = [max(y.min() - 0.1, MOS_MIN), min(y.max() + 0.1, MOS_MAX), float(x.mean()), spread]
    mean = float(y.mean())
    bounds = ([MOS_MIN, mean, MOS_MIN - 4, spread / 20], [mean, MOS_MAX, MOS_MAX + 4, 20 * spread])
    start = np.clip(start, np.array(bounds[0]) + 1e-9, np.array(bounds[1]) - 1e-9)
    found = optimize.least_squares(lambda p: curve(p, x) - y, start, bounds=bounds)
    if not found.success:
        raise CalibrationError(f"the logistic did not converge ({found.message})")
    grid = _grid(x)
    return _as_knots(grid, curve(found.x, grid))


def _fit_isotonic(x: Vector, y: Vector) -> tuple[tuple[float, float], ...]:
    _refuse_falling(x, y)
    at, inverse, weights = np.unique(x, return_inverse=True, return_counts=True)  # equal scores share one value
    means = np.bincount(inverse, weights=y) / weights
    return _as_knots(at, optimize.isotonic_regression(means, weights=weights).x)


_FITS = {"logistic": _fit_logistic, "isotonic": _fit_isotonic}


def _refuse_falling(x: Vector, y: Vector) -> None:
    rank = stats.spearmanr(x, y).statistic if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0
    if not rank > 0:
        raise CalibrationError(f"scores do not rise with the ratings (SROCC {rank:.2f}): no rising map fits them")


def _grid(scores: Vector) -> Vector:
    """Points over the whole scale, and most of them where the scores lie, which may be a narrow band."""
    low, high = scores.min(), scores.max()
    around = np.linspace(low - (high - low) / 2, high + (high - low) / 2, KNOTS)
    return np.unique(np.concatenate([np.linspace(MOS_MIN, MOS_MAX, 65), around.clip(MOS_MIN, MOS_MAX)]))


def _as_knots(x: Vector, y: Vector) -> tuple[tuple[float, float], ...]:
    y = np.maximum.accumulate(np.clip(y, MOS_MIN, MOS_MAX))  # against rounding
    return tuple((float(a), float(b)) for a, b in zip(x, y, strict=True))
