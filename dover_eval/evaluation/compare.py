"""Two results files over the same prompts: which of them scores higher, by how much, and how surely.

The unit is the prompt. Several clips of one prompt count as their mean: they are not independent, and a prompt with
more of them must not weigh more. Differences are B - A throughout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dover_eval.evaluation.metrics import LEVEL, Interval
from dover_eval.opinion import SCORE_NAMES
from dover_eval.results import Results
from dover_eval.tables import TableError
from dover_eval.wording import plural

Progress = Callable[[int, int], None]
RESAMPLES = 9999
BATCH_VALUES = 4_000_000  # resampled numbers in memory at once


@dataclass(frozen=True)
class ScoreDifference:
    """How B differs from A in one score, over the prompts.

    difference: mean of B - A with its paired bootstrap interval. p: of the permutation test that swaps A and B within
    prompts, two-sided. p_holm: the same, corrected (Holm) for all scores together. wins, losses, ties: prompts where B
    is higher, lower, equal. win_rate: wins and half the ties, of all, with Wilson's interval.
    """

    name: str
    mean_a: float
    mean_b: float
    difference: Interval
    p: float
    p_holm: float
    wins: int
    losses: int
    ties: int
    win_rate: Interval

    @property
    def shown(self) -> bool:
        """Whether the corrected test tells A and B apart at the level of the intervals."""
        return self.p_holm < 1 - LEVEL


@dataclass(frozen=True, eq=False)
class Comparison:
    """A and B over the N prompts that both scored.

    scores_a, scores_b: (N,5) means by prompt. clips_a, clips_b: rows of each prompt's scored clips in its file.
    only_a, only_b: prompts that the other file lacks. failed: prompts in both files that one has no scored clip of.
    left_out: failed clips, in A and in B, of prompts that other clips speak for.
    """

    a: Results
    b: Results
    prompts: tuple[str, ...]
    scores_a: NDArray[np.float64]
    scores_b: NDArray[np.float64]
    clips_a: tuple[tuple[int, ...], ...]
    clips_b: tuple[tuple[int, ...], ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    failed: tuple[str, ...]
    left_out: tuple[int, int]
    differences: tuple[ScoreDifference, ...]

    @property
    def names(self) -> tuple[str, str]:
        """What tells the files apart: their names, with the folder where those are the same."""
        a, b = self.a.path, self.b.path
        return (a.name, b.name) if a.name != b.name else (str(a), str(b))

    @property
    def identical(self) -> bool:
        """Whether no prompt differs in any score."""
        return np.array_equal(self.scores_a, self.scores_b)

    @property
    def repeated(self) -> int:
        """Prompts with more than one clip in A or in B."""
        return sum(max(len(a), len(b)) > 1 for a, b in zip(self.clips_a, self.clips_b, strict=True))

    def shown_clips(self, prompt: int) -> tuple[int, int]:
        """A clip of each file to show for a prompt: where it has several, the one whose scores are nearest to their
        mean."""
        a, b = self.clips_a[prompt], self.clips_b[prompt]
        return _nearest(self.a, a, self.scores_a[prompt]), _nearest(self.b, b, self.scores_b[prompt])

    def largest(self, column: int, count: int) -> list[int]:
        """The prompts that differ most in a score, the largest difference first; none that does not differ."""
        size = np.abs(self.scores_b[:, column] - self.scores_a[:, column])
        return [i for i in np.argsort(-size, kind="stable")[:count].tolist() if size[i] > 0]


def compare_results(
    a: Results, b: Results, *, resamples: int = RESAMPLES, seed: int = 0, progress: Progress | None = None
) -> Comparison:
    """Compare two files of one fingerprint over the prompts that they share.

    progress: called with how many resamples are made, and of how many.

    Raises TableError where a comparison would mean nothing: other fingerprints, a clip that is there twice, fewer
    than two prompts with scores in both.
    """
    if a.fingerprint != b.fingerprint:
        raise TableError(
            f"{a.path} has fingerprint {a.fingerprint} and {b.path} has {b.fingerprint}: scores of different models, "
            "samplings or precisions do not compare; score both alike"
        )
    rows_a, rows_b = _by_prompt(a), _by_prompt(b)
    shared = [prompt for prompt in rows_a if prompt in rows_b]
    if not shared:
        raise TableError(f"{a.path} and {b.path} have no prompt in common, expected the same prompts in both")
    good_a = {prompt: [i for i in rows_a[prompt] if a.errors[i] is None] for prompt in shared}
    good_b = {prompt: [i for i in rows_b[prompt] if b.errors[i] is None] for prompt in shared}
    used = [prompt for prompt in shared if good_a[prompt] and good_b[prompt]]
    if len(used) < 2:
        raise TableError(
            f"{a.path} and {b.path} have {plural(len(used), 'prompt')} with scores in both, expected at least 2 "
            f"({len(shared)} in common)"
        )
    # Exactly rounded, so that no order of a prompt's clips makes a difference.
    mean = lambda results, good: np.array([[fmean(own) for own in results.scores[good[prompt]].T] for prompt in used])
    scores_a, scores_b = mean(a, good_a), mean(b, good_b)
    lost = lambda rows, good: sum(len(rows[prompt]) - len(good[prompt]) for prompt in used)
    return Comparison(
        a=a,
        b=b,
        prompts=tuple(used),
        scores_a=scores_a,
        scores_b=scores_b,
        clips_a=tuple(tuple(good_a[prompt]) for prompt in used),
        clips_b=tuple(tuple(good_b[prompt]) for prompt in used),
        only_a=tuple(prompt for prompt in rows_a if prompt not in rows_b),
        only_b=tuple(prompt for prompt in rows_b if prompt not in rows_a),
        failed=tuple(prompt for prompt in shared if not (good_a[prompt] and good_b[prompt])),
        left_out=(lost(rows_a, good_a), lost(rows_b, good_b)),
        differences=score_differences(scores_a, scores_b, resamples=resamples, seed=seed, progress=progress),
    )


def score_differences(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[ScoreDifference, ...]:
    """One result a column of the paired scores (N,5), N >= 2."""
    gain = b - a
    mean = gain.mean(axis=0)
    tell = progress or (lambda done, total: None)
    drawn = _bootstrap_means(gain, resamples, seed, lambda done: tell(done, 2 * resamples))
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    p = _sign_flip_test(gain, resamples, seed, lambda done: tell(resamples + done, 2 * resamples))
    corrected = holm(p)
    results = []
    for i, name in enumerate(SCORE_NAMES):
        wins, losses = int((gain[:, i] > 0).sum()), int((gain[:, i] < 0).sum())
        results.append(
            ScoreDifference(
                name=name,
                mean_a=float(a[:, i].mean()),
                mean_b=float(b[:, i].mean()),
                difference=Interval(float(mean[i]), float(low[i]), float(high[i])),
                p=float(p[i]),
                p_holm=float(corrected[i]),
                wins=wins,
                losses=losses,
                ties=len(a) - wins - losses,
                win_rate=_win_rate(wins, len(a) - wins - losses, len(a)),
            )
        )
    return tuple(results)


def chance(p: float) -> str:
    """A p-value as it is shown. The smallest that random swaps give, corrected for five scores, is 0.001."""
    return "<= 0.001" if round(p, 6) <= 0.001 else f"{p:.3f}"


def _bootstrap_means(
    gain: NDArray[np.float64], resamples: int, seed: int, tell: Callable[[int], None]
) -> NDArray[np.float64]:
    """(resamples,5), means over prompts drawn with replacement: how often each is drawn, times `gain` (N,5)."""
    rng = np.random.default_rng(seed)
    count = len(gain)
    means = []
    for batch in _batches(resamples, count, tell):
        drawn = [np.bincount(rng.integers(count, size=count), minlength=count) for _ in batch]
        means.append(np.array(drawn, dtype=float) @ gain / count)
    return np.concatenate(means)


def _sign_flip_test(
    gain: NDArray[np.float64], resamples: int, seed: int, tell: Callable[[int], None]
) -> NDArray[np.float64]:
    """(5,), two-sided p of the means of `gain` (N,5) when A and B are swapped within prompts: over all 2^N ways, where
    these are no more than `resamples`, else over so many random ones and the one that was seen."""
    rng = np.random.default_rng(seed)
    count = len(gain)
    exact = 2**count <= resamples
    seen = gain.sum(axis=0)
    slack = 1e-12 * np.abs(gain).sum(axis=0)  # sums in another order differ in their last bits
    above, below = np.zeros((2, len(seen)))
    swapped: NDArray[Any]
    made = 2**count if exact else resamples
    for batch in _batches(made, count, tell):
        if exact:
            swapped = np.array(batch)[:, None] >> np.arange(count) & 1
        else:
            swapped = rng.integers(2, size=(len(batch), count), dtype=bool)
        sums = seen - 2 * (swapped.astype(float) @ gain)
        above += (sums >= seen - slack).sum(axis=0)
        below += (sums <= seen + slack).sum(axis=0)
    p: NDArray[np.float64] = 2 * (np.minimum(above, below) + (not exact)) / (made + (not exact))
    return p.clip(max=1)


def _batches(total: int, count: int, tell: Callable[[int], None]) -> Iterator[range]:
    """Parts of `range(total)` whose rows of `count` numbers stay within `BATCH_VALUES`."""
    size = max(1, BATCH_VALUES // count)
    for start in range(0, total, size):
        batch = range(start, min(start + size, total))
        yield batch
        tell(batch.stop)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's step-down correction (1979) of p-values (M,): the chance of a single false alarm stays in bounds."""
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    corrected = np.empty_like(steps)
    corrected[order] = steps
    return corrected


def _nearest(results: Results, rows: tuple[int, ...], scores: NDArray[np.float64]) -> int:
    return min(rows, key=lambda row: float(np.square(results.scores[row] - scores).sum()))


def _win_rate(wins: int, ties: int, count: int) -> Interval:
    """Wilson's score interval, written out because half ties make the number of wins fractional."""
    rate = (wins + ties / 2) / count
    z = stats.norm.ppf((1 + LEVEL) / 2)
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z * np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return Interval(rate, float(middle - reach), float(middle + reach))


def _by_prompt(results: Results) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    seen: dict[tuple[str, str], int] = {}
    for i, key in enumerate(zip(results.videos, results.prompts, strict=True)):
        if seen.setdefault(key, i) != i:
            raise TableError(
                f"{results.path}: rows {seen[key] + 1} and {i + 1} are both {key[0]}, expected each clip once"
            )
        rows[key[1]].append(i)
    return rows
