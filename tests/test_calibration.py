"""Calibrations: order kept, coverage held, bound to their weights, and told by the fingerprint."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dover_eval import VideoScorer
from dover_eval.calibration import BOUND_TO, AspectCalibration, Calibration, CalibrationError
from dover_eval.cli import app
from dover_eval.evaluation import JudgedPair, RatedClip
from dover_eval.evaluation.calibrate import calibrate, fit_pairs, fit_ratings
from dover_eval.opinion import SCORE_NAMES


def opinions(count, seed=0, spread=0.3):
    """Scores in a narrow band, and what raters make of them."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(3.1, 0.25, count).clip(1, 5)
    truth = 1 + 4 / (1 + np.exp(-(scores - 3) / 0.2))
    return scores, (truth + rng.normal(0, spread, count)).clip(1, 5)


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_a_map_comes_closer_to_the_raters_and_keeps_the_order(method):
    scores, ratings = opinions(200)
    fitted = fit_ratings(scores, ratings, method=method)
    new, truth = opinions(300, seed=1)
    assert np.abs(fitted(new) - truth).mean() < 0.5 * np.abs(new - truth).mean()
    mapped = fitted(np.sort(new))
    assert (np.diff(mapped) >= 0).all()
    assert method == "isotonic" or (np.diff(mapped) > 0).all()
    assert mapped.min() >= 1
    assert mapped.max() <= 5


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
@pytest.mark.parametrize("level", [0.8, 0.9])
def test_intervals_cover_new_opinions_as_often_as_they_say(method, level):
    covered = []
    for seed in range(30):
        fitted = fit_ratings(*opinions(80, seed=seed), method=method, level=level, seed=seed)
        new, truth = opinions(200, seed=1000 + seed)
        covered.append(np.mean(np.abs(fitted(new) - truth) <= fitted.margin))
    assert level - 0.02 <= np.mean(covered) <= level + 0.05


def test_intervals_hold_even_where_the_map_is_wrong():
    """A map that knows nothing of a jump in the ratings: wide intervals, not broken ones."""
    rng = np.random.default_rng(0)
    draw = lambda n: (x := rng.uniform(1, 5, n), (np.where(x > 3, 4.5, 1.5) + rng.normal(0, 0.2, n)).clip(1, 5))
    fitted = fit_ratings(*draw(400))
    new, truth = draw(2000)
    assert np.mean(np.abs(fitted(new) - truth) <= fitted.margin) > 0.87


def test_rows_of_one_clip_stay_on_one_side():
    scores, ratings = opinions(40)
    with pytest.raises(CalibrationError, match="40 ratings of 1 clips"):
        fit_ratings(scores, ratings, ["same.mp4"] * 40)


def test_one_clip_under_many_prompts_is_one_clip(scored):
    _, _, scores, ratings, _ = scored
    keys = [("0", f"prompt {i}") for i in range(60)]
    rated = [RatedClip(*key, rating.ratings) for key, rating in zip(keys, ratings, strict=True)]
    assert calibrate(rated, keys, scores)[1]["Temporal"].startswith("60 ratings of 1 clips")


def test_of_equal_scores_each_rating_counts_in_isotonic_regression():
    """A few low ratings of a better score pull a hundred others down a little, not half the way."""
    scores, ratings = np.repeat([[2.0, 2.5, 4.0], [3.0, 1.0, 5.0]], [100, 8, 100], axis=1)
    assert fit_ratings(scores, ratings, method="isotonic")(2.0) == pytest.approx(2.85, abs=0.1)


@pytest.mark.parametrize(
    ("scores", "ratings", "words"),
    [
        (np.linspace(1, 5, 12), np.linspace(1, 5, 12), "at least 20 are needed"),
        (np.linspace(1, 5, 40), np.linspace(5, 1, 40), "do not rise with the ratings"),
        (np.full(40, 3.0), np.linspace(1, 5, 40), "do not rise"),
        (np.linspace(1, 5, 40), np.linspace(0, 100, 40), "expected ratings in 1-5, got 0 to 100"),
        (np.linspace(1, 5, 40), np.full(40, np.nan), "finite"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(scores, ratings, words):
    with pytest.raises(CalibrationError, match=words):
        fit_ratings(scores, ratings)


def judged(count, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(3, 0.02, (2, count))
    felt = (a - b) / 0.02 + rng.logistic(0, 0.5, count)
    return a, b, np.where(np.abs(felt) < 0.5, 0, np.sign(felt))


def test_preferences_spread_scores_over_the_scale_and_keep_their_order():
    a, b, verdicts = judged(400)
    fitted = fit_pairs(a, b, verdicts)
    assert fitted([2.9, 3.0, 3.1]) == pytest.approx([1.0, 3.0, 5.0], abs=0.25)
    assert (np.diff(fitted(np.linspace(1, 5, 50))) >= 0).all()


def test_the_middle_of_a_map_of_preferences_is_that_of_all_clips_winners_and_losers():
    rng = np.random.default_rng(0)
    winners, losers = rng.normal(3.2, 0.05, 200), rng.normal(2.8, 0.05, 200)
    fitted = fit_pairs(winners, losers, np.where(rng.random(200) < 0.9, 1, -1))
    assert fitted(np.concatenate([winners, losers])).mean() == pytest.approx(3, abs=0.05)


def test_a_map_is_as_fine_as_the_band_that_the_scores_lie_in():
    scores, ratings = opinions(100)
    narrow = fit_ratings(3 + (scores - 3) / 500, ratings)
    assert len(np.unique(narrow(np.linspace(2.9995, 3.001, 50)))) == 50


def test_preferences_against_the_scores_are_refused():
    a, b, verdicts = judged(200)
    with pytest.raises(CalibrationError, match="not the one that scores higher"):
        fit_pairs(a, b, -verdicts)
    with pytest.raises(CalibrationError, match="9 pairs: at least 10"):
        fit_pairs(a[:9], b[:9], verdicts[:9])


@pytest.fixture(scope="module")
def scored(small_scorer):
    """Sixty tiny clips with their scores, as ratings that agree with them and as pairs."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 30 + 3 * i, (2, 3, 16, 16), dtype=np.uint8) for i in range(60)]
    scores = small_scorer.score(clips, "a square", layout="TCHW")
    keys = [(source, "a square") for source in scores.sources]
    column = {name: scores.values[:, i].double().numpy() for i, name in enumerate(SCORE_NAMES)}
    rated = {name: 1 + 4 * column[name].argsort().argsort() / 59 for name in ("Traditional", "Temporal")}
    ratings = [RatedClip(*key, {name: float(rated[name][i]) for name in rated}) for i, key in enumerate(keys)]
    size = 2 * np.median(np.abs(np.diff(column["Overall"])))
    pairs = [
        JudgedPair(keys[i][0], keys[i + 1][0], "a square", {"Overall": int(np.sign(d)) if abs(d) > size / 2 else 0})
        for i in range(59)
        if (d := column["Overall"][i] - column["Overall"][i + 1]) is not None
    ]
    return clips, keys, scores, ratings, pairs


def test_a_scorer_with_a_calibration_says_so_and_is_another_by_its_fingerprint(small_scorer, scored, tmp_path):
    clips, keys, scores, ratings, pairs = scored
    calibration, left_out = calibrate(ratings + pairs, keys, scores)
    assert left_out == {}
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration
    assert Calibration.load(tmp_path / "calibration.json").digest == calibration.digest

    with_it = VideoScorer(small_scorer.model, device="cpu", calibration=calibration)
    again = with_it.score(clips, "a square", layout="TCHW")
    assert again.fingerprint.calibration == calibration.digest
    assert again.fingerprint.digest != scores.fingerprint.digest
    traditional = SCORE_NAMES.index("Traditional")
    order = scores.values[:, traditional].argsort()
    assert (again.values[order, traditional].diff() >= 0).all()
    opinion = torch.tensor([rating.ratings["Traditional"] for rating in ratings])
    error = lambda found: (found.values[:, traditional] - opinion).abs().mean()
    assert error(again) < 0.5 * error(scores)
    assert torch.equal(again.values[:, 1], scores.values[:, 1])  # Alignment was not rated
    assert (again.values >= 1).all()
    assert (again.values <= 5).all()


def test_without_a_calibration_the_fingerprint_is_as_before(scored):
    fingerprint = scored[2].fingerprint
    assert fingerprint.calibration is None
    assert replace(fingerprint, calibration="x").digest != fingerprint.digest


def test_an_overall_that_was_not_rated_stays_a_mean_of_the_four(scored):
    _, keys, scores, ratings, _ = scored
    calibration, _ = calibrate(ratings, keys, scores)
    values = calibration.apply(scores.values, scores.quality_weights)
    expected = (values[:, :4] * scores.quality_weights).sum(1)
    assert values[:, 4].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert not torch.allclose(values[:, 4], scores.values[:, 4], atol=0.05)


def test_intervals_percentiles_and_ties_of_calibrated_scores(scored):
    _, keys, scores, ratings, pairs = scored
    calibration, _ = calibrate(ratings + pairs, keys, scores)
    values = calibration.apply(scores.values, scores.quality_weights)
    intervals, percentiles = calibration.intervals(values), calibration.percentiles(values)
    assert intervals.shape == (60, 5, 2)
    assert (intervals[:, 0, 0] <= values[:, 0]).all()
    assert (values[:, 0] <= intervals[:, 0, 1]).all()
    assert intervals[:, 1].isnan().all()  # Alignment has no ratings
    assert percentiles.shape == (60, 5)
    assert percentiles[values[:, 0].argmax(), 0] == 100
    assert percentiles[values[:, 0].argmin(), 0] == pytest.approx(100 / 60, abs=1e-3)
    assert calibration.ties(values, values)[:, 4].all()
    assert not calibration.ties(values, values)[:, 0].any()  # no pairs on Traditional, so no tie is known


def test_a_tie_is_as_far_apart_as_tells_most_verdicts_rightly(scored):
    """One tie that is further apart than all the preferences makes none of these a tie."""
    _, keys, scores, _, _ = scored
    values = scores.values.clone()
    values[:, 4] = 3 + torch.arange(60) / 60
    verdicts = dict.fromkeys(range(2, 59), 1) | {1: 0, 59: 0}  # on each of them and the worst one
    pairs = [JudgedPair(keys[i][0], keys[0][0], "a square", {"Overall": verdict}) for i, verdict in verdicts.items()]
    calibration, _ = calibrate(pairs, keys, replace(scores, values=values))
    final = calibration.apply(values, scores.quality_weights)
    assert calibration.ties(final[[0, 0, 0]], final[[1, 2, 30]])[:, 4].tolist() == [True, False, False]


def test_a_difference_of_exactly_the_threshold_is_a_tie(small_scorer):
    bound = {name: getattr(small_scorer.fingerprint, name) for name in BOUND_TO}
    calibration = Calibration({"Overall": AspectCalibration(tie_threshold=0.5)}, **bound)
    for score, tie in ((3.5, True), (3.75, False)):
        assert calibration.ties(torch.full((1, 5), 3.0), torch.full((1, 5), score))[0, 4] == tie


def test_several_raters_of_a_clip_count_as_their_mean(scored):
    """Raters who stray by a whole point either way agree in the mean: the margin is about that."""
    _, keys, scores, ratings, _ = scored
    once, _ = calibrate(ratings, keys, scores, rating_range=(-1, 7))
    strayed = [
        RatedClip(item.video, item.prompt, {name: value + away for name, value in item.ratings.items()})
        for away in (1.0, -1.0)
        for item in ratings
    ]
    several, _ = calibrate(strayed, keys, scores, rating_range=(-1, 7))
    assert several.aspects["Temporal"].count == once.aspects["Temporal"].count == 60
    assert several.aspects["Temporal"].margin == pytest.approx(once.aspects["Temporal"].margin)
    four = [item for item in strayed if item.video in {"0", "1", "2", "3"}]
    _, left_out = calibrate(four * 10, keys, scores, rating_range=(-1, 7))
    assert left_out["Temporal"].startswith("4 ratings of 4 clips")


def test_percentiles_can_be_among_other_clips(small_scorer, scored):
    clips, keys, scores, ratings, _ = scored
    worst = small_scorer.score(clips[:3], "a square", layout="TCHW")
    calibration, _ = calibrate(ratings, keys, scores, reference=worst)
    assert len(calibration.aspects["Temporal"].reference) == 3


def test_a_clip_that_failed_stays_nan_and_takes_no_part(small_scorer, scored, tmp_path):
    _, keys, scores, ratings, _ = scored
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    calibration, _ = calibrate(ratings, keys, scores)
    found = VideoScorer(small_scorer.model, device="cpu", calibration=calibration).score(broken, "a square")
    assert found.values.isnan().all()
    assert calibration.percentiles(found.values).isnan().all()

    values, errors = scores.values.clone(), list(scores.errors)
    values[7], errors[7] = torch.nan, "broken"
    without_it, left_out = calibrate(ratings, keys, replace(scores, values=values, errors=tuple(errors)))
    assert left_out == {}
    assert without_it.aspects["Temporal"].count == 59


def test_it_belongs_to_its_weights_and_its_sampling(small_scorer, scored):
    calibration, _ = calibrate(scored[3], scored[1], scored[2])
    for change in ({"weights": "other"}, {"num_frames": 9}, {"text_encoder": "other"}):
        with pytest.raises(CalibrationError, match=f"was fitted with {next(iter(change))}"):
            VideoScorer(small_scorer.model, device="cpu", calibration=replace(calibration, **change))


def test_calibrated_scores_are_not_calibrated_again(small_scorer, scored):
    clips, keys, scores, ratings, _ = scored
    calibration, _ = calibrate(ratings, keys, scores)
    again = VideoScorer(small_scorer.model, device="cpu", calibration=calibration).score(
        clips, "a square", layout="TCHW"
    )
    with pytest.raises(CalibrationError, match="calibrated already"):
        calibrate(ratings, keys, again)


def test_another_rating_scale_is_said_and_one_bad_aspect_leaves_the_others(scored):
    _, keys, scores, ratings, _ = scored
    hundred = [
        RatedClip(r.video, r.prompt, {"Traditional": 25 * (r.ratings["Traditional"] - 1), "Temporal": 50.0})
        for r in ratings
    ]
    calibration, left_out = calibrate(hundred, keys, scores, rating_range=(0, 100))
    assert list(left_out) == ["Temporal"]
    assert calibration.aspects["Traditional"].source == "logistic"
    assert calibration.aspects["Temporal"].source == "none"
    # 0-100 is not 1-5, and what is told are the numbers of the table.
    told = r"\d+: [\d.]+ is beyond the scale, worst 1 to best 5; rating_range sets the ends"
    assert re.fullmatch(told, calibrate(hundred, keys, scores)[1]["Traditional"])
    stray = RatedClip(hundred[7].video, "a square", {"Traditional": 101.0})
    left_out = calibrate([*hundred, stray], keys, scores, rating_range=(0, 100))[1]
    assert left_out["Traditional"] == "7: 101 is beyond the scale, worst 0 to best 100; rating_range sets the ends"


DEEP = "[" * 100_000
HUGE = f'{{"aspects": {{"Overall": {{"knots": [], "reference": [{10**400}]}}}}}}'
RAGGED = '{"aspects": {"Overall": {"knots": [[1, 2], [3]], "reference": []}}}'


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"aspects": {}}', '{"aspects": {"Traditional": 3}}', RAGGED, DEEP, HUGE, "\xff\xfe"]
)
def test_a_file_that_is_no_calibration(tmp_path, content):
    (tmp_path / "c.json").write_text(content, encoding="latin-1")
    with pytest.raises(CalibrationError, match=r"c\.json: expected a calibration"):
        Calibration.load(tmp_path / "c.json")


@pytest.mark.parametrize("knots", [((1.0, 2.0), (1.0, 3.0)), ((1.0, 3.0), (2.0, 2.0)), ((1.0, 0.0), (2.0, 2.0))])
def test_a_map_that_falls_or_leaves_the_scale_is_refused(knots):
    with pytest.raises(CalibrationError, match="expected"):
        AspectCalibration(knots)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("margin", -1.0), ("margin", float("nan")), ("margin", "0.1"), ("margin", True), ("tie_threshold", -0.1)),
        *(("level", "x"), ("count", None), ("source", {}), ("reference", (2.0, 1.0))),
    ],
)
def test_figures_that_mean_nothing_are_refused(name, value):
    with pytest.raises(CalibrationError, match=f"expected .*{name}"):
        AspectCalibration(**{name: value})


def test_the_command_writes_beside_the_checkpoint_and_score_uses_it(small_scorer, write_video, moving_frames, tmp_path):
    small_scorer.model.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "clips").mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for i in range(24):
        noisy = np.clip(moving_frames[:4] + rng.normal(0, 4 * i, moving_frames[:4].shape), 0, 255).astype(np.uint8)
        paths.append(write_video(noisy, f"clips/{i}.mp4"))
    values = small_scorer.score(paths, "a square").overall.numpy()
    table = tmp_path / "ratings.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerow(("video_name", "Prompt", "Overall_MOS"))
        ratings = 1 + 4 * values.argsort().argsort() / 23
        csv.writer(file).writerows((path.name, "a square", rating) for path, rating in zip(paths, ratings, strict=True))
    options = ["--model", str(tmp_path / "checkpoint"), "--device", "cpu"]
    run = lambda *arguments: CliRunner().invoke(app, [*map(str, arguments), *options])

    result = run("calibrate", "--ratings", table, "--videos", tmp_path / "clips")
    assert result.exit_code == 0, result.output
    place = tmp_path / "checkpoint" / "calibration.json"
    assert place.is_file()
    assert "logistic" in result.stdout

    scored = tmp_path / "scores.csv"
    result = run("score", tmp_path / "clips", "--prompt", "a square", "--calibration", place, "-q", "-o", scored)
    assert result.exit_code == 0, result.output
    with scored.open(newline="") as file:
        mapped = {row["video_name"]: float(row["Overall"]) for row in csv.DictReader(file)}
    found = [mapped[str(path)] for path in paths]
    assert np.abs(found - ratings).mean() < 0.5 * np.abs(values - ratings).mean()

    result = run("evaluate", table, "--videos", tmp_path / "clips", "--calibration", place, "--resamples", 0)
    assert result.exit_code == 0, result.output
    assert "24 of 24 rows" in result.stdout

    paths[0].write_text("<html>")
    broken = run("calibrate", "--ratings", table, "--videos", tmp_path / "clips", "-o", tmp_path / "c.json")
    assert broken.exit_code == 1
    assert f"1 clip failed:\n  {paths[0]}: cannot be decoded as a video" in broken.stderr

    assert "give --ratings TABLE" in run("calibrate", "--videos", tmp_path / "clips").stderr
    other = run("score", tmp_path / "clips", "--prompt", "a", "--calibration", tmp_path / "none.json")
    assert other.exit_code == 1
    assert "expected a calibration" in other.stderr
    assert "embedded model" not in other.stderr


def test_a_scorer_that_looks_elsewhere_is_refused(small_scorer):
    calibration = Calibration({}, **{name: getattr(small_scorer.fingerprint, name) for name in BOUND_TO})
    calibration.check(small_scorer.fingerprint)
    elsewhere = {"frame_size": (64, 64), "windows": 2, "views": ("squash", "fragments")}
    for name, value in (elsewhere | {"configuration": "d", "semantic_encoder": "b2"}).items():
        with pytest.raises(CalibrationError, match=f"fitted with {name}"):
            calibration.check(replace(small_scorer.fingerprint, **{name: value}))


def test_a_map_that_makes_all_scores_alike_is_none():
    rng = np.random.default_rng(71)  # ratings drawn by lot, which by chance rise a little with the scores
    scores, ratings = rng.normal(3, 0.3, 40), rng.uniform(1, 5, 40)
    with pytest.raises(CalibrationError, match=r"the best map makes every score 2\.61"):
        fit_ratings(scores, ratings)
