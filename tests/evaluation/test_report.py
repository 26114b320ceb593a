"""Scores meet a benchmark's items: by the right clip and prompt, and with what is missing told."""

import csv
import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from typer.testing import CliRunner

from dover_eval.cli import app
from dover_eval.cli.output import lost_clips, print_report
from dover_eval.evaluation import (
    ClipIndex,
    JudgedPair,
    RatedClip,
    TableError,
    evaluate,
    match_clips,
    pair_metrics,
    rating_metrics,
)
from dover_eval.opinion import SCORE_NAMES


def all_at(value):
    return dict.fromkeys(SCORE_NAMES, value)


@pytest.mark.parametrize(
    ("called", "found"),
    [
        ("data/x/1.mp4", "data/x/1.mp4"),
        ("x/1.mp4", "data/x/1.mp4"),
        ("./y/1.mp4", "data/y/1.mp4"),
        ("elsewhere/y/1.mp4", "data/y/1.mp4"),
        ("x/3.mp4", None),  # y/3.mp4 is another clip
        ("3.mp4", "data/y/3.mp4"),
        ("https://host.org/set/two%20words.mp4?download=true", "data/two words.mp4"),
        ("two words", "data/two words.mp4"),
        ("3015", "data/3015_original_centercrop_960x540_8s.mp4"),
        ("3015_original_centercrop_960x540_8s", "data/3015_original_centercrop_960x540_8s.mp4"),
        ("4.mp4", None),
        ("r\u00e9sum\u00e9.mp4", "data/re\u0301sume\u0301.mp4"),
        ("re\u0301sume\u0301", "data/re\u0301sume\u0301.mp4"),
        ("https://host.org/r%C3%A9sum%C3%A9.mp4", "data/re\u0301sume\u0301.mp4"),
        ("dog", None),  # dog_running is another clip, whoever lost dog.mp4
        ("dog_running", "data/dog_running.mp4"),
    ],
)
@pytest.mark.parametrize("root", [None, "data"])
def test_clips_are_found_by_what_benchmarks_call_them_and_never_in_another_folder(called, found, root):
    names = ["x/1.mp4", "y/1.mp4", "y/3.mp4", "two words.mp4", "3015_original_centercrop_960x540_8s.mp4"]
    names += ["dog_running.mp4", "re\u0301sume\u0301.mp4"]  # as a file system that decomposes has it
    assert ClipIndex([f"data/{name}" for name in names], root).find(called) == found


def test_a_member_of_an_archive_is_found_by_its_own_name():
    names = ["tar://x/1.mp4::shards/0.tar", "tar://x/2.mp4::shards/0.tar", "tar://x/2.mp4::shards/1.tar"]
    index = ClipIndex(names)
    assert index.find("1.mp4") == index.find("x/1.mp4") == index.find("1") == names[0]
    assert index.find(names[1]) == names[1]
    with pytest.raises(TableError, match=r"x/2.mp4 is any of tar://x/2.mp4::shards/0.tar, tar://x/2.mp4::shards/1.tar"):
        index.find("x/2.mp4")


@pytest.mark.parametrize("name", ["1.mp4", "./1.mp4", "/abs/clips/1.mp4", "clips/1.mp4"])
def test_a_single_clip_is_found_by_its_name(name):
    assert ClipIndex([name]).find("1.mp4") == name


def test_two_videos_of_a_table_are_not_one_clip():
    items = [RatedClip("a/1.mp4", "p", {}), RatedClip("b/1.mp4", "p", {})]
    with pytest.raises(TableError, match=r"a/1\.mp4 and b/1\.mp4 are both flat/1\.mp4"):
        match_clips(items, ClipIndex(["flat/1.mp4", "flat/2.mp4"]))


def test_a_name_that_fits_two_clips_is_an_error():
    with pytest.raises(TableError, match=r"any of data/x/1\.mp4, data/y/1\.mp4"):
        ClipIndex(["data/x/1.mp4", "data/y/1.mp4"]).find("1.mp4")


def test_only_judged_aspects_have_figures():
    items = [RatedClip(f"{i}", "a", {"Temporal": float(i)}) for i in range(6)]
    report = evaluate(items, {(f"{i}", "a"): all_at(i**2) for i in range(6)}, resamples=0)
    assert list(report.aspects) == ["Temporal"]
    assert report.aspects["Temporal"].srocc.value == pytest.approx(1)
    assert report.complete


def test_several_raters_of_a_clip_count_as_their_mean():
    items = [RatedClip(f"{i}", "p", {"Overall": rating}) for i in range(6) for rating in (i - 9.0, i + 9.5)]
    report = evaluate(items, {(f"{i}", "p"): all_at(float(i)) for i in range(6)}, resamples=0)
    assert report.aspects["Overall"].count == 6
    assert report.aspects["Overall"].plcc.value == pytest.approx(1)


def test_the_order_of_raters_decides_no_rank():
    """Sums in another order differ in their last bits: equal means would be ranked, and correlate with something."""
    opinions = (1.1, 2.2, 3.3, 4.7)
    items = [
        RatedClip(f"{i}", "p", {"Overall": rating})
        for i, own in enumerate(itertools.islice(itertools.permutations(opinions), 12))
        for rating in own
    ]
    report = evaluate(items, {(f"{i}", "p"): all_at(float(i)) for i in range(12)}, resamples=0)
    assert math.isnan(report.aspects["Overall"].srocc.value)
    assert "every rating is" in report.left_out["Overall"]


def test_ratings_and_pairs_in_one_validation_are_both_told(capsys):
    rated = [RatedClip(f"{i}", "p", {"Overall": float(i)}) for i in range(6)]
    judged = [JudgedPair(f"{i + 1}", f"{i}", "p", {"Overall": 1, "Temporal": 1}) for i in range(5)]
    report = evaluate([*rated, *judged], {(f"{i}", "p"): all_at(float(i)) for i in range(6)}, resamples=0)
    assert report.left_out == {"Overall": "the figures are of its ratings, and not of its 5 pairs"}
    print_report(report)
    told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in ("ratings Overall", "ratings 6", "SROCC 1.000", "ratings Temporal", "pairs 5", "without ties 1.000"):
        assert line in told


@pytest.mark.parametrize("kind", ["ratings", "pairs"])
def test_clips_of_one_prompt_are_resampled_together(kind):
    prompts = [f"p{i // 5}" for i in range(40)]
    scores = {
        (name, p): all_at((i * 7) % 11 + c) for i, p in enumerate(prompts) for c, name in enumerate((f"{i}", f"b{i}"))
    }
    if kind == "ratings":
        items = [RatedClip(f"{i}", p, {"Overall": float(i // 5 + i % 3)}) for i, p in enumerate(prompts)]
        values = [scores[item.video, item.prompt]["Overall"] for item in items]
        want = rating_metrics(values, [item.ratings["Overall"] for item in items], groups=prompts, resamples=50)
    else:
        items = [JudgedPair(f"{i}", f"b{i}", p, {"Overall": (-1, 0, 1)[i % 3]}) for i, p in enumerate(prompts)]
        want = pair_metrics([-1.0] * 40, [item.verdicts["Overall"] for item in items], groups=prompts, resamples=50)
    found = asdict(evaluate(items, scores, resamples=50).aspects["Overall"])
    for name, figure in asdict(want).items():
        assert found[name] == pytest.approx(figure), name  # not to the last bit: a sum depends on where an array lies


def test_missing_and_failed_clips_are_left_out_and_told():
    items = [JudgedPair(f"{i}", f"{i + 1}", "p", {"Overall": -1}) for i in range(6)]
    scores = {(f"{i}", "p"): all_at(float(i)) for i in range(6)} | {("0", "p"): all_at(np.nan)}
    report = evaluate(items, scores, errors={("0", "p"): "0.mp4: an empty file"}, resamples=0)
    assert (report.items, report.used, report.missing) == (6, 4, ("6",))
    assert report.failed == {"0": "0.mp4: an empty file"}
    assert evaluate(items, scores, resamples=0).failed == {"0": "scores that are no numbers"}
    assert report.aspects["Overall"].without_ties.value == 1
    assert not report.complete


def test_too_few_ratings_are_said_and_not_computed():
    report = evaluate([RatedClip("a", "p", {"Overall": 3.0})], {("a", "p"): all_at(2.0)}, resamples=0)
    assert report.aspects == {}
    assert "at least 5" in report.left_out["Overall"]


@pytest.mark.parametrize(("score", "rating", "what"), [(0, 1, "score"), (1, 0, "rating")])
def test_why_a_correlation_is_no_number_is_said(score, rating, what):
    items = [RatedClip(f"{i}", "p", {"Overall": 3.0 + rating * i}) for i in range(6)]
    report = evaluate(items, {(f"{i}", "p"): all_at(3.0 + score * i) for i in range(6)}, resamples=0)
    assert np.isnan(report.aspects["Overall"].srocc.value)
    assert report.left_out == {"Overall": f"every {what} is 3, which correlates with nothing"}
    assert not report.complete


def test_a_tie_threshold_of_a_calibration_is_used():
    items = [JudgedPair("a", "b", "p", {"Overall": 0}), JudgedPair("a", "c", "p", {"Overall": 1})]
    scores = {("a", "p"): all_at(3.0), ("b", "p"): all_at(2.9), ("c", "p"): all_at(1.0)}
    report = evaluate(items, scores, tie_thresholds={"Overall": 0.2}, resamples=0)
    assert report.aspects["Overall"].with_ties.value == 1
    assert not report.aspects["Overall"].calibrated


@pytest.fixture
def rated_folder(write_video, moving_frames, tmp_path, small_scorer):
    """Six clips under ratings that their scores agree with, a checkpoint, and the command."""
    small_scorer.model.save_pretrained(tmp_path / "checkpoint")
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    paths = []
    for i in range(6):
        noisy = np.clip(moving_frames + rng.normal(0, 14 * i, moving_frames.shape), 0, 255).astype(np.uint8)
        paths.append(write_video(noisy, f"clips/{i}.mp4"))
    scores = small_scorer.score(paths, "a square").overall.tolist()
    table = tmp_path / "ratings.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("video_name", "Prompt", "Overall_MOS")])
        csv.writer(file).writerows((f"{i}.mp4", "a square", 10 * score) for i, score in enumerate(scores))

    def run(*arguments):
        options = ["--model", tmp_path / "checkpoint", "--device", "cpu", "--resamples", 20]
        return CliRunner().invoke(app, ["evaluate", *map(str, options), *map(str, arguments)])

    return tmp_path, table, run


def test_the_command_scores_a_folder_and_reports(rated_folder):
    folder, table, run = rated_folder
    report, kept = folder / "report.json", folder / "scores.jsonl"
    result = run(table, "--videos", folder / "clips", "-o", report, "--save-scores", kept)
    assert result.exit_code == 0, result.output
    for words in ("SROCC", "Overall", "6 of 6 rows", "fingerprint"):
        assert words in result.stdout
    found = json.loads(report.read_text())
    assert found["aspects"]["Overall"]["srocc"]["value"] == pytest.approx(1)
    assert found["aspects"]["Overall"]["plcc"]["value"] == pytest.approx(1, abs=1e-5)

    again = folder / "again.json"
    assert run(table, "--scores", kept, "-o", again).exit_code == 0
    again = json.loads(again.read_text())
    assert again["fingerprint"] == found["fingerprint"]
    assert again["aspects"]["Overall"]["srocc"] == found["aspects"]["Overall"]["srocc"]


def test_without_resamples_figures_have_no_intervals(rated_folder):
    folder, table, run = rated_folder
    result = run(table, "--videos", folder / "clips", "--resamples", 0)
    assert "1.000" in result.stdout
    assert "nan" not in result.stdout


def test_a_clip_that_was_scored_under_another_prompt_is_told_from_one_that_was_not_scored(rated_folder):
    folder, table, run = rated_folder
    kept = folder / "scores.jsonl"
    assert run(table, "--videos", folder / "clips", "--save-scores", kept).exit_code == 0
    table.write_text(table.read_text().replace("2.mp4,a square", "2.mp4,a circle"))
    result = run(table, "--scores", kept)
    assert result.exit_code == 2
    assert "2.mp4 was scored under 'a square', and not under 'a circle'" in " ".join(result.stderr.split())


def test_a_clip_with_two_rows_counts_where_they_are_the_same(rated_folder):
    folder, table, run = rated_folder
    kept = folder / "scores.jsonl"
    assert run(table, "--videos", folder / "clips", "--save-scores", kept).exit_code == 0
    last = kept.read_text().splitlines()[-1]
    with kept.open("a") as file:
        file.write(last + "\n")
    assert run(table, "--scores", kept).exit_code == 0
    failed = json.loads(last) | dict.fromkeys(SCORE_NAMES) | {"error": "cut off"}
    with kept.open("a") as file:
        file.write(json.dumps(failed) + "\n")
    result = run(table, "--scores", kept)
    assert result.exit_code == 2
    assert "5.mp4 has two rows under 'a square' whose scores differ" in " ".join(result.stderr.split())


def test_missing_clips_end_with_status_one(rated_folder):
    folder, table, run = rated_folder
    table.write_text(table.read_text() + "gone.mp4,a square,3\n")
    result = run(table, "--videos", folder / "clips")
    assert result.exit_code == 1
    assert "1 clip not found: gone.mp4" in " ".join(result.stdout.split())


def test_the_reasons_of_failed_clips_are_told_and_kept(rated_folder):
    folder, table, run = rated_folder
    broken = folder / "clips" / "5.mp4"
    broken.write_text("<html>")
    report, kept, again = (folder / name for name in ("report.json", "scores.jsonl", "again.json"))
    result = run(table, "--videos", folder / "clips", "-o", report, "--save-scores", kept)
    assert result.exit_code == 1
    assert f"1 clip failed:\n  {broken}: cannot be decoded as a video" in result.stdout
    assert run(table, "--scores", kept, "-o", again).exit_code == 1
    told = json.loads(report.read_text())["failed"]
    assert list(told) == ["5.mp4"]
    assert told["5.mp4"].startswith(f"{broken}: cannot be decoded as a video")
    assert json.loads(again.read_text())["failed"] == told


def test_of_many_lost_clips_the_first_five_are_told_by_name():
    missing, failed = [f"m{i}" for i in range(6)], {f"f{i}": f"reason {i}" for i in range(6)}
    assert lost_clips(missing, failed) == [
        "6 clips not found: m0, m1, m2, m3, m4 ...",
        "6 clips failed:",
        *(f"  f{i}: reason {i}" for i in range(5)),
        "  ...",
    ]
    assert lost_clips([], {"a.mp4": "x/a.mp4: an empty file"}) == ["1 clip failed:", "  x/a.mp4: an empty file"]
    assert lost_clips([], {}) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("5.mp4,\u200b,3", "'5.mp4': expected a text for its prompt, got '\\u200b'"),
        ("x/5.mp4,a square,3", "5.mp4 and x/5.mp4 are both"),
    ],
)
def test_a_line_that_cannot_be_scored_names_its_clip(rated_folder, line, words):
    folder, table, run = rated_folder
    table.write_text(f"{table.read_text()}{line}\n")
    result = run(table, "--videos", folder / "clips")
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_a_fault_of_ours_is_not_blamed_on_the_command(rated_folder, monkeypatch):
    def broken(*arguments, **options):
        raise ValueError("shapes do not match")

    monkeypatch.setattr("dover_eval.evaluation.evaluate", broken)
    folder, table, run = rated_folder
    assert isinstance(run(table, "--videos", folder / "clips").exception, ValueError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ratings.csv"], "give either --videos FOLDER or --scores FILE"),
        (["ratings.csv", "--videos", "clips", "--benchmark", "vbench"], "expected one of ratings, pairs"),
        (["ratings.csv", "--scores", "ratings.csv"], "expected the columns video_name, Prompt, Traditional"),
        (["ratings.csv", "--scores", "s.jsonl", "--calibration", "c.json"], "go with --videos"),
        (["ratings.csv", "--videos", "clips", "--save-scores", "s.txt"], "expected a name that ends in .csv"),
        (["none.csv", "--videos", "clips"], "none.csv: cannot be read"),
        (["ratings.csv", "--videos", "clips", "-o", "ratings.csv"], "ratings.csv is one of the inputs"),
        (["ratings.csv", "--videos", "clips", "--save-scores", "ratings.csv"], "ratings.csv is one of the inputs"),
        (["ratings.csv", "--videos", "clips", "-o", "clips"], "--output clips: expected a file, found a folder"),
        (["ratings.csv", "--videos", "clips", "-o", "r.json", "--save-scores", "./r.json"], "are both r.json"),
        ([], "a TABLE is missing"),
    ],
)
def test_what_was_not_understood_ends_with_two(rated_folder, monkeypatch, arguments, words):
    folder, _, run = rated_folder
    monkeypatch.chdir(folder)
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_the_list_of_benchmarks(rated_folder):
    result = rated_folder[2]("--list")
    assert result.exit_code == 0
    assert "huggingface.co/datasets/KlingTeam/VideoGen-RewardBench" in result.stdout
