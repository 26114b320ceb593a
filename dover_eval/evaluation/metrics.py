"""The field's figures for a quality metric, each with a bootstrap confidence interval.

Ratings: SROCC, PLCC as scored and after the four-parameter logistic of VQEG (2000), KRCC, RMSE after that logistic, and
the challenge's (SROCC + PLCC) / 2. Pairs: accuracy without ties, and with ties after tie calibration (Deutsch, Foster
and Freitag, 2023, arXiv:2305.14324), as VideoGen-RewardBench counts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

Vector = NDArray[np.float64]
LEVEL, RESAMPLES = 0.95, 1000
FEWEST_RATINGS = 5  # four parameters of the logistic, and one to spare
MOST_TRIALS = 400  # of one fit
FEW_GROUPS = 8  # of which the same resamples come again and again


@dataclass(frozen=True)
class Interval:
    """A figure and its percentile bootstrap interval; NaN where the figure has no value (constant scores)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class RatingMetrics:
    """Scores against ratings of `count` clips.

    srocc, krcc: Spearman's and Kendall's (tau-b) rank correlations. plcc: Pearson's, as scored; plcc_fit: after the
    logistic. rmse_fit: root mean squared error after the logistic, in units of the ratings.
    challenge: (srocc + plcc) / 2. level: of the intervals.
    """

    count: int
    srocc: Interval
    plcc: Interval
    plcc_fit: Interval
    krcc: Interval
    rmse_fit: Interval
    challenge: Interval
    level: float


@dataclass(frozen=True)
class PairMetrics:
    """Differences of scores against verdicts on `count` pairs, `ties` of which people called equal.

    without_ties: share of the pairs with a preference whose preferred clip scores higher; equal scores are wrong.
    with_ties: share of all pairs told rightly as A, B or tie, a tie being a difference of at most `tie_threshold`.
    calibrated: whether the threshold was chosen on these very pairs, as the protocol has it, which flatters.
    """

    count: int
    ties: int
    without_ties: Interval
    with_ties: Interval
    tie_threshold: float
    calibrated: bool
    level: float


def rating_metrics(
    scores: ArrayLike,
    ratings: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> RatingMetrics:
    """Scores (N,) against ratings (N,), any scale. Raises ValueError for fewer than five, other shapes or NaN.

    `groups` (N,), each clip's prompt say, are resampled whole, since what shares one is not independent; rows are where
    there is but one group. Resamples in which a figure has no value are left out of its interval.
    """
    x, y = _paired(scores, ratings, "scores", "ratings", fewest=FEWEST_RATINGS)
    start = fit_logistic(x, y)
    figures = lambda i: _rating_figures(x[i], y[i], start)
    srocc, plcc, plcc_fit, krcc, rmse_fit, challenge = _bootstrap(figures, len(x), groups, resamples, level, seed)
    return RatingMetrics(len(x), srocc, plcc, plcc_fit, krcc, rmse_fit, challenge, level)


def pair_metrics(
    differences: ArrayLike,
    verdicts: ArrayLike,
    *,
    tie_threshold: float | None = None,
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> PairMetrics:
    """Differences score(A) - score(B) (N,) against verdicts (N,): 1 for A, -1 for B, 0 for a tie.

    `tie_threshold`: None chooses the best on these pairs, on each resample anew. Candidates are none at all and the
    differences that occur, as in the benchmark's own script; where several are equal they count as one, whereas that
    script's result depends on the order of the pairs. `groups` are resampled as in `rating_metrics`.
    """
    d, h = _paired(differences, verdicts, "differences", "verdicts", fewest=1)
    if not np.isin(h, (-1, 0, 1)).all():
        raise ValueError(f"expected verdicts of -1, 0 and 1, got {sorted(set(h.tolist()) - {-1.0, 0.0, 1.0})}")
    threshold = best_tie_threshold(d, h) if tie_threshold is None else tie_threshold
    if not threshold >= 0:
        raise ValueError(f"expected a tie_threshold of at least 0, got {threshold}")

    def figures(i: NDArray[np.int64]) -> tuple[float, float]:
        best = best_tie_threshold(d[i], h[i]) if tie_threshold is None else threshold
        return _accuracy_without_ties(d[i], h[i]), _accuracy_with_ties(d[i], h[i], best)

    without_ties, with_ties = _bootstrap(figures, len(d), groups, resamples, level, seed)
    ties = int((h == 0).sum())
    return PairMetrics(len(d), ties, without_ties, with_ties, threshold, tie_threshold is None, level)


def best_tie_threshold(differences: Vector, verdicts: Vector) -> float:
    """The difference that, taken as the largest tie, tells most pairs rightly; the least of equals, 0 for no ties."""
    size = np.abs(differences)
    order = np.argsort(size, kind="stable")
    size, tied = size[order], verdicts[order] == 0
    right = verdicts[order] * differences[order] > 0
    # With the first k pairs as ties: the ties among them and the right ones among the others.
    hits = np.cumsum(tied) + right.sum() - np.cumsum(right)
    last_of_its_size = np.append(size[1:] > size[:-1], True)
    size, hits = size[last_of_its_size], hits[last_of_its_size]
    return float(size[np.argmax(hits)]) if size[0] == 0 or hits.max() > right.sum() else 0.0


def fit_logistic(scores: ArrayLike, ratings: ArrayLike, start: Logistic | None = None) -> Logistic:
    """Least squares of b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)), the usual map from scores to ratings.

    Constant scores or ratings give the flat map. Where the optimum lies at infinity (a nearly exponential curve) the
    search stops near it, and its result is used; only one that ran into NaN is NaN everywhere. No scale makes a
    difference. Raises ValueError for fewer than five, other shapes or NaN.
    """
    x, y = _paired(scores, ratings, "scores", "ratings", fewest=FEWEST_RATINGS)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Logistic(y.mean(), y.mean(), x.mean(), 1.0)
    # Both of size one about zero, for the search ends by how little it moves, and has a least width.
    center, spread, level, height = (float(value) for value in (x.mean(), np.ptp(x), y.mean(), np.ptp(y)))
    x, y = (x - center) / spread, (y - level) / height
    if start is None or not math.isfinite(start.top):
        sign = 1.0 if np.corrcoef(x, y)[0, 1] >= 0 else -1.0
        ends = (y.max(), y.min()) if sign > 0 else (y.min(), y.max())
        start = Logistic(*ends, 0.0, x.std())
    else:
        ends = ((start.top - level) / height, (start.bottom - level) / height)
        start = Logistic(*ends, (start.middle - center) / spread, start.width / spread)
    # MINPACK's search as `least_squares(method="lm")` has it, to the bit, without what that does around each step: a
    # bootstrap has thousands of fits.
    found, _, told, _, _ = optimize.leastsq(
        lambda b: Logistic(*b)(x) - y,
        start.parameters,
        Dfun=lambda b: Logistic(*b).slopes(x),
        xtol=1e-6,
        ftol=1e-8,
        gtol=1e-8,
        maxfev=MOST_TRIALS,
        full_output=True,
    )
    ended_well = np.isfinite(found).all() and np.isfinite(told["fvec"]).all()
    top, bottom, middle, width = map(float, found) if ended_well else [math.nan] * 4
    return Logistic(level + height * top, level + height * bottom, center + spread * middle, spread * width, spread)


@dataclass(frozen=True)
class Logistic:
    """VQEG's four-parameter logistic: from `bottom` to `top` with its middle at `middle` and its width `width`.

    spread: of the scores; a width of less than a billionth of it is a step.
    """

    top: float
    bottom: float
    middle: float
    width: float
    spread: float = 1.0

    @property
    def parameters(self) -> tuple[float, float, float, float]:
        return self.top, self.bottom, self.middle, self.width

    def __call__(self, x: Vector) -> Vector:
        return self.bottom + (self.top - self.bottom) * self._rise(x)

    def slopes(self, x: Vector) -> NDArray[np.float64]:
        """The derivative with respect to each parameter, (N,4)."""
        rise = self._rise(x)
        steep = (self.top - self.bottom) * rise * (1 - rise) / self._width
        by_width = -steep * (x - self.middle) / self._width * math.copysign(1.0, self.width)
        return np.stack([rise, 1 - rise, -steep, by_width], axis=1)

    @property
    def _width(self) -> float:
        return max(abs(self.width), 1e-9 * self.spread)  # a step, rather than a division by zero

    def _rise(self, x: Vector) -> Vector:
        return 0.5 + 0.5 * np.tanh((x - self.middle) / (2 * self._width))  # a sigmoid that does not overflow


def _rating_figures(x: Vector, y: Vector, start: Logistic) -> tuple[float, ...]:
    if len(x) < FEWEST_RATINGS:  # a resample of small groups
        return (math.nan,) * 6
    fitted = fit_logistic(x, y, start)(x)
    srocc, plcc = _pearson(stats.rankdata(x), stats.rankdata(y)), _pearson(x, y)
    krcc = float(stats.kendalltau(x, y).statistic)
    rmse_fit = float(np.sqrt(np.mean((fitted - y) ** 2)))
    return srocc, plcc, _pearson(fitted, y), krcc, rmse_fit, (srocc + plcc) / 2


def _pearson(x: Vector, y: Vector) -> float:
    """numpy's, because scipy's also runs a significance test on each resample; NaN where either is constant."""
    if not np.isfinite(x).all() or np.allclose(x, x[0], rtol=1e-12, atol=0) or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x / np.ptp(x), y / np.ptp(y))[0, 1])  # squares of tiny numbers would be zero


def _accuracy_without_ties(differences: Vector, verdicts: Vector) -> float:
    decided = verdicts != 0
    return float((verdicts * differences > 0)[decided].mean()) if decided.any() else math.nan


def _accuracy_with_ties(differences: Vector, verdicts: Vector, threshold: float) -> float:
    tied = np.abs(differences) <= threshold
    return float(np.where(tied, verdicts == 0, verdicts * differences > 0).mean())


def _bootstrap(
    figures: Callable[[NDArray[np.int64]], tuple[float, ...]],
    count: int,
    groups: Sequence[Hashable] | None,
    resamples: int,
    level: float,
    seed: int,
) -> list[Interval]:
    """Each figure with its percentile interval, from one set of resamples for all of them."""
    values = figures(np.arange(count))
    rows, sizes = _by_group(groups, count)
    if resamples == 0 or count < 2:  # a single one cannot be resampled
        return [Interval(value, math.nan, math.nan) for value in values]
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    known: dict[bytes, tuple[float, ...]] = {}
    found = np.empty((len(values), resamples))
    for k in range(resamples):  # one after the other: together they would be `count` indices each
        drawn = np.sort(rng.integers(len(sizes), size=len(sizes)))
        own = sizes[drawn]
        resample = rows[np.repeat(starts[drawn] - (np.cumsum(own) - own), own) + np.arange(own.sum())]
        if len(sizes) > FEW_GROUPS:
            found[:, k] = figures(resample)
        else:
            if (key := drawn.tobytes()) not in known:
                known[key] = figures(resample)
            found[:, k] = known[key]
    tail = 100 * (1 - level) / 2
    intervals = []
    for value, resampled in zip(values, found, strict=True):
        good = resampled[np.isfinite(resampled)]
        low, high = np.percentile(good, [tail, 100 - tail]) if len(good) else (math.nan, math.nan)
        intervals.append(Interval(value, float(low), float(high)))
    return intervals


def _by_group(groups: Sequence[Hashable] | None, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows (count,), group after group, in the order in which groups appear, and how many each has; of one group alone,
    each row by itself."""
    if groups is not None and len(groups) != count:
        raise ValueError(f"expected {count} groups, one a row, got {len(groups)}")
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups if groups is not None else ()):
        members.setdefault(group, []).append(i)
    if len(members) < 2:
        return np.arange(count), np.ones(count, np.int64)
    return np.concatenate(list(members.values())), np.array([len(own) for own in members.values()])


def _paired(first: ArrayLike, second: ArrayLike, name: str, other: str, *, fewest: int) -> tuple[Vector, Vector]:
    x, y = np.asarray(first, float), np.asarray(second, float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"expected as many {name} as {other}, got shapes {x.shape} and {y.shape}")
    if len(x) < fewest:
        raise ValueError(f"expected at least {fewest} {other}, got {len(x)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"expected finite {name} and {other}, got NaN or infinity")
    return x, y
