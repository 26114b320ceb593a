"""Figures against plain loops and known answers; intervals against what a bootstrap should cover."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from dover_eval.evaluation import fit_logistic, metrics, pair_metrics, rating_metrics


@pytest.fixture
def rated():
    rng = np.random.default_rng(0)
    scores = rng.normal(3, 0.5, 80)
    return scores, 1 + 4 / (1 + np.exp(-(scores - 3) / 0.15)) + rng.normal(0, 0.2, 80)


def test_correlations_are_scipys(rated):
    found = rating_metrics(*rated, resamples=0)
    assert found.srocc.value == pytest.approx(stats.spearmanr(*rated).statistic)
    assert found.plcc.value == pytest.approx(stats.pearsonr(*rated).statistic)
    assert found.krcc.value == pytest.approx(stats.kendalltau(*rated).statistic)
    assert found.challenge.value == pytest.approx((found.srocc.value + found.plcc.value) / 2)


def test_ties_count_as_scipy_counts_them():
    scores, ratings = [1, 1, 2, 3, 3, 4], [1, 2, 2, 2, 5, 4]
    found = rating_metrics(scores, ratings, resamples=0)
    assert found.srocc.value == pytest.approx(stats.spearmanr(scores, ratings).statistic)
    assert found.krcc.value == pytest.approx(stats.kendalltau(scores, ratings).statistic)


def test_the_logistic_takes_out_a_bend_and_not_a_rank(rated):
    found = rating_metrics(*rated, resamples=0)
    assert found.plcc_fit.value > found.plcc.value + 0.02
    assert found.rmse_fit.value == pytest.approx(0.2, abs=0.05)
    bent = rating_metrics(np.exp(rated[0]), rated[1], resamples=0)
    assert bent.srocc.value == pytest.approx(found.srocc.value)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_logistic_finds_the_curve_that_made_the_ratings(sign):
    x = np.linspace(1, 5, 50)
    found = fit_logistic(x, sign * (2 + 3 / (1 + np.exp(-(x - 3.2) / 0.4))))
    assert found(x) == pytest.approx(sign * (2 + 3 / (1 + np.exp(-(x - 3.2) / 0.4))), abs=1e-4)
    assert found.middle == pytest.approx(3.2, abs=1e-3)


def test_the_slopes_of_the_logistic_are_its_derivatives():
    x = np.linspace(-1, 1, 7)
    curve = fit_logistic(x, np.tanh(x) + 0.1 * x)
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-6
        up, down = (type(curve)(*(np.array(curve.parameters) + s))(x) for s in (step, -step))
        assert curve.slopes(x)[:, i] == pytest.approx((up - down) / 2e-6, abs=1e-6)


def test_constant_scores_have_no_correlation_rather_than_a_number():
    found = rating_metrics([2.0] * 6, [1, 2, 3, 4, 5, 1], resamples=10)
    assert math.isnan(found.srocc.value)
    assert math.isnan(found.plcc_fit.value)
    assert math.isnan(found.challenge.low)
    assert found.rmse_fit.value == pytest.approx(np.std([1, 2, 3, 4, 5, 1]))


def test_intervals_hold_the_figure_narrow_with_data_and_repeat(rated):
    first, again, other = (rating_metrics(*rated, resamples=60, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    few = rating_metrics(rated[0][:12], rated[1][:12], resamples=60)
    for name in ("srocc", "plcc", "plcc_fit", "krcc", "rmse_fit", "challenge"):
        figure = getattr(first, name)
        assert figure.low < figure.value < figure.high
    assert few.plcc.high - few.plcc.low > first.plcc.high - first.plcc.low


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        differences = np.where(rng.random(80) < 0.7, 1.0, -1.0)
        figure = pair_metrics(differences, np.ones(80), tie_threshold=0, resamples=100, level=0.9).without_ties
        covered += figure.low <= 0.7 <= figure.high
    assert 0.8 <= covered / 60 <= 0.98


@pytest.mark.parametrize(
    ("scores", "ratings", "words"),
    [
        ([1, 2, 3], [1, 2], "got shapes"),
        ([1, 2, 3], [1, 2, 3], "at least 5 ratings, got 3"),
        ([1, 2, 3, 4, math.nan], [1, 2, 3, 4, 5], "NaN"),
        ([1, 2, 3, 4, 5], [1, 2, math.nan, 4, 5], "NaN"),
    ],
)
def test_what_is_no_table_is_refused(scores, ratings, words):
    with pytest.raises(ValueError, match=words):
        rating_metrics(scores, ratings)


def accuracy_with_ties_by_loop(differences, verdicts):
    """None and every difference as the threshold, every pair counted."""
    best, at = -1.0, math.nan
    for threshold in sorted({0.0, *(abs(d) for d in differences)}):
        told = [0 if abs(d) <= threshold else math.copysign(1, d) for d in differences]
        share = float(np.mean([a == b for a, b in zip(told, verdicts, strict=True)]))
        if share > best:
            best, at = share, threshold
    return best, at


@pytest.mark.parametrize("seed", range(5))
def test_tie_calibration_against_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    differences = rng.normal(0, 1, 60).round(1)  # with equal ones among them
    verdicts = np.where(
        np.abs(differences + rng.normal(0, 0.4, 60)) < 0.5, 0, np.sign(differences) + (differences == 0)
    )
    found = pair_metrics(differences, verdicts, resamples=0)
    assert (found.with_ties.value, found.tie_threshold) == accuracy_with_ties_by_loop(differences, verdicts)
    assert found.calibrated


def test_no_ties_at_all_is_a_threshold_too():
    found = pair_metrics([1.0] * 9 + [-1.0], [1] * 10, resamples=0)
    assert (found.with_ties.value, found.tie_threshold) == (0.9, 0.0)
    assert pair_metrics([0.0, 1.0], [1, 1], resamples=0).tie_threshold == 0.0  # equal scores are a tie all the same
    assert pair_metrics([0.1, 0.2, 1, 2], [1, 0, 1, 1], resamples=0).tie_threshold == 0  # 0.2 wins a tie, loses a pair


def test_what_shares_a_group_is_resampled_together(rated):
    """Five copies of twenty clips tell as much as the twenty."""
    scores, ratings = (values[:20] for values in rated)
    copied = [np.repeat(values, 5) for values in (scores, ratings)]
    groups = np.repeat(np.arange(20), 5).tolist()
    alone, grouped, apart = (
        rating_metrics(scores, ratings).plcc,
        rating_metrics(*copied, groups=groups).plcc,
        rating_metrics(*copied).plcc,
    )
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    assert apart.high - apart.low < 0.7 * (alone.high - alone.low)
    assert rating_metrics(*copied, groups=["one prompt"] * 100).plcc == apart
    differences, verdicts = np.repeat([0.5, 0.2, 0.1, -0.3], 25), [1] * 100
    pairs = pair_metrics(differences, verdicts, groups=np.repeat(range(4), 25).tolist()).without_ties
    assert pairs.high - pairs.low > 2 * (lambda i: i.high - i.low)(pair_metrics(differences, verdicts).without_ties)
    with pytest.raises(ValueError, match="expected 100 groups, one a row, got 20"):
        rating_metrics(*copied, groups=groups[:20])


def test_resamples_of_small_groups_that_are_too_few_to_fit_count_for_nothing(rated):
    found = rating_metrics(*(values[:8] for values in rated), groups=[0, 0, 0, 0, 0, 0, 1, 2])
    assert math.isfinite(found.plcc_fit.low)


@pytest.mark.parametrize(
    ("factor", "offset"), [(1e-12, 0), (1e-9, 0), (1e9, 0), (1, 1e6), (1e-5, 4), (-1, 0), (-1e-12, 0)]
)
def test_the_scale_of_scores_and_of_ratings_does_not_matter(rated, factor, offset):
    scores, ratings = rated
    want = rating_metrics(scores, ratings, resamples=20)
    other_scores = rating_metrics(factor * scores + offset, ratings, resamples=20)
    other_ratings = rating_metrics(scores, factor * ratings + offset, resamples=20)
    for found, unit in ((other_scores, 1), (other_ratings, abs(factor))):
        for name, side in (("srocc", factor), ("plcc", factor), ("krcc", factor), ("plcc_fit", 1)):
            assert getattr(found, name).value == pytest.approx(
                math.copysign(getattr(want, name).value, side), rel=1e-5
            ), name
        assert found.rmse_fit.value / unit == pytest.approx(want.rmse_fit.value, rel=1e-5)
        assert found.rmse_fit.low / unit == pytest.approx(want.rmse_fit.low, rel=1e-4)


def test_scores_whose_squares_are_zero_are_as_good_as_others(rated):
    scores, ratings = rated
    want, found = (rating_metrics(factor * scores, ratings, resamples=0) for factor in (1, 1e-200))
    for name in ("srocc", "plcc", "krcc", "plcc_fit", "rmse_fit"):
        assert getattr(found, name).value == pytest.approx(getattr(want, name).value), name


def test_the_curve_is_in_the_units_of_the_scores(rated):
    scores, ratings = rated
    tiny = fit_logistic(1e-12 * scores, ratings)
    assert tiny.middle == pytest.approx(3e-12, rel=0.05)
    assert tiny(1e-12 * scores) == pytest.approx(fit_logistic(scores, ratings)(scores), abs=1e-4)


def test_without_ties_only_preferences_count_and_equal_scores_are_wrong():
    found = pair_metrics([0.5, -0.2, 0.0, 0.9, -0.1], [1, -1, 1, -1, 0], resamples=0)
    assert found.without_ties.value == 0.5
    assert (found.count, found.ties) == (5, 1)


def test_a_threshold_from_elsewhere_is_used_as_it_is():
    found = pair_metrics([0.5, -0.2, 0.05, 0.9], [1, -1, 0, 0], tie_threshold=0.1, resamples=20)
    assert found.with_ties.value == 0.75
    assert (found.tie_threshold, found.calibrated) == (0.1, False)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        pair_metrics([0.5], [1], tie_threshold=-1)


def test_each_resample_has_the_best_threshold_of_its_own():
    rng = np.random.default_rng(0)
    differences, verdicts = rng.normal(size=12), rng.integers(-1, 2, 12)
    found = pair_metrics(differences, verdicts, resamples=300)
    fixed = pair_metrics(differences, verdicts, tie_threshold=found.tie_threshold, resamples=300)
    assert found.with_ties.value == fixed.with_ties.value
    assert found.with_ties.low > fixed.with_ties.low


def test_identical_scores_are_no_better_than_calling_all_pairs_ties():
    found = pair_metrics([0.0] * 10, [1] * 4 + [-1] * 3 + [0] * 3, resamples=0)
    assert found.without_ties.value == 0
    assert found.with_ties.value == 0.3


def test_pairs_without_a_preference_have_no_accuracy_without_ties():
    assert math.isnan(pair_metrics([0.1, 0.2], [0, 0], resamples=0).without_ties.value)


def test_verdicts_are_of_three_kinds():
    with pytest.raises(ValueError, match="-1, 0 and 1"):
        pair_metrics([0.1], [2])


def test_a_single_pair_has_its_accuracy_and_no_interval():
    found = pair_metrics([0.5], [1])
    assert found.without_ties.value == 1
    assert math.isnan(found.without_ties.low)


def test_too_few_for_four_parameters_are_refused():
    with pytest.raises(ValueError, match="at least 5"):
        fit_logistic([1, 2, 3, 4], [1, 2, 4, 5])


def test_resamples_of_many_pairs_are_not_held_all_at_once():
    rng = np.random.default_rng(0)
    differences = rng.normal(size=20_000)
    tracemalloc.start()
    pair_metrics(differences, np.sign(differences), resamples=100)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 30 * differences.nbytes


def test_resamples_of_a_few_prompts_are_computed_once_each(monkeypatch):
    computed = []
    figures = metrics._rating_figures
    monkeypatch.setattr(metrics, "_rating_figures", lambda *a: computed.append(1) or figures(*a))
    rng = np.random.default_rng(0)
    found = rating_metrics(rng.normal(size=30), rng.normal(size=30), groups=[i % 3 for i in range(30)])
    assert len(computed) == 1 + 10  # of three prompts there are ten choices of three, whatever their order
    assert found.srocc.low < found.srocc.value < found.srocc.high


def test_ratings_that_bend_without_an_end_are_fitted_as_well():
    """The best logistic is nearly exponential: its ends run away, and the fit is as good as it gets long before."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        ratings = rng.uniform(1, 5, 60)
        scores = 3 + 0.3 * (ratings - 3) + rng.normal(0, 0.6, 60)
        fitted = fit_logistic(scores, ratings)
        line = np.polyval(np.polyfit(scores, ratings, 1), scores)
        assert np.square(fitted(scores) - ratings).sum() <= 1.01 * np.square(line - ratings).sum()
