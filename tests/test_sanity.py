"""The self-test passes a scorer that measures what it says, and says what is wrong with the others."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dover_eval.cli import app
from dover_eval.opinion import SCORE_NAMES
from dover_eval.sanity import RANK, _judge, check_scorer, contradict, defect_names, drawn_clips, load_clip
from dover_eval.video.decode import decode_clip

CHECKED = ("blur", "flicker", "darken")


class Measuring:
    """Not a model: measures detail, light and flicker, and knows each clip's prompt."""

    config = SimpleNamespace(num_frames=8)
    fingerprint = "measuring"

    def __init__(self, clips=(), prompts=(), refuse_empty=True):
        self.clips, self.prompts, self.refuse_empty = clips, prompts, refuse_empty

    def check_prompts(self, prompts):
        if unknown := [prompt for prompt in prompts if prompt.startswith("\u16a0")]:
            raise ValueError(f"knows no word of {unknown[0]}")

    def own_prompt(self, clip):
        """That of the untouched clip which this one is likest to."""
        away = [np.abs(clip - known).mean() for known in self.clips]
        return self.prompts[int(np.argmin(away))] if away else None

    def score(self, clips, prompts, *, layout):
        assert layout == "THWC"
        if self.refuse_empty and not all(prompt.strip() for prompt in prompts):
            raise ValueError("expected a text")
        rows = [self.row(clip.numpy().astype(float), p) for clip, p in zip(clips, prompts, strict=True)]
        return SimpleNamespace(values=torch.tensor(rows))

    def row(self, clip, prompt):
        light = clip.mean()
        detail = np.abs(np.diff(clip, axis=2)).mean() / max(light, 1)
        flicker = clip.mean(axis=(1, 2, 3)).std() / max(light, 1)
        fits = 4.0 if prompt == self.own_prompt(clip) else 2.0
        four = [1 + 20 * detail, fits + 0.01 * light / 255, 1 + 6 * light / 255, 4 - 10 * flicker]
        return [*four, float(np.mean(four))]


@pytest.fixture(scope="module")
def drawn():
    return drawn_clips(3, 8, seed=2)


def by_name(report):
    return {check.name: check for check in report.checks}


def test_a_scorer_that_measures_what_it_says_passes(drawn):
    clips, prompts = drawn
    report = check_scorer(Measuring(clips, prompts), clips, prompts, defects=CHECKED)
    assert report.alarms == ()
    assert {name: (c.status, c.reason) for name, c in by_name(report).items()} == {
        "blur": ("pass", ""),
        "flicker": ("pass", ""),
        "darken": ("pass", ""),
        "another's prompt": ("pass", ""),
        "contradiction": ("pass", ""),
        "empty prompt": ("pass", "refused"),
    }
    assert report.ok
    blur = by_name(report)["blur"]
    assert blur.score == "Traditional"
    assert blur.levels == ("none", "0.25", "0.5", "0.75", "1")
    assert len(blur.means) == 5
    assert blur.fall == pytest.approx(blur.means[0][0] - blur.means[-1][0])
    assert blur.rank > 0.95


def test_every_defect_changes_drawn_clips_and_names_its_score(drawn):
    clips, prompts = drawn
    report = check_scorer(Measuring(clips, prompts), clips[:1], None)
    checks = by_name(report)
    assert list(checks) == defect_names()
    assert {"h264", "banding", "freeze", "drop", "shuffle", "jitter", "noise", "downscale"} <= set(checks)
    assert all(check.clips == 1 for check in checks.values())
    assert checks["h264"].levels == ("none", "crf 23", "crf 30", "crf 37", "crf 44", "crf 51")
    assert checks["freeze"].score == "Temporal"
    assert checks["banding"].score == "Traditional"


def test_identical_scores_ring_an_alarm(drawn):
    class Constant(Measuring):
        def row(self, clip, prompt):
            return [3.0] * 5

    clips, prompts = drawn
    report = check_scorer(Constant(), clips, prompts, defects=["blur"])
    assert len(report.alarms) == 5
    assert "Traditional is 3.0000 for all" in report.alarms[0]
    assert "identical scores" in by_name(report)["blur"].reason
    assert not report.ok


def test_scores_that_are_no_numbers_pass_nothing(drawn):
    class Broken(Measuring):
        def row(self, clip, prompt):
            return [float("nan")] * 5

    clips, prompts = drawn
    report = check_scorer(Broken(refuse_empty=False), clips, prompts, defects=["blur"])
    assert not report.ok
    assert {check.reason for check in report.checks if check.status != "skipped"} == {"scores that are no numbers"}
    assert report.alarms[0].startswith("Traditional is no number for ")
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["checks"][0]["means"][0] == [None] * 5
    assert found["checks"][0]["fall"] is None


def test_a_prompt_that_the_scorer_cannot_read_is_refused_before_anything_is_scored(drawn):
    scorer = Measuring(*drawn)
    scorer.score = None
    with pytest.raises(ValueError, match="knows no word of \u16a0"):
        check_scorer(scorer, drawn[0], [*drawn[1][:2], "\u16a0\u16a2\u16a6"])


def test_one_score_for_all_clips_rings_although_defects_move_it(drawn):
    class OfTheDefectAlone(Measuring):
        def row(self, clip, prompt):
            untouched = any(np.array_equal(clip, c) for c in clips)
            return [*super().row(clip, prompt)[:3], 3.0 if untouched else 2.0, 2.5 if untouched else 2.0]

    clips, prompts = drawn
    report = check_scorer(OfTheDefectAlone(clips, prompts), clips, prompts, defects=["blur"])
    assert [alarm for alarm in report.alarms if alarm.startswith("Temporal")] == [
        "Temporal is 3.0000 for every one of the 3 untouched clips"
    ]


def test_scores_that_move_together_fail(drawn):
    class Muddled(Measuring):
        def row(self, clip, prompt):
            return [super().row(clip, prompt)[0]] * 5

    report = check_scorer(Muddled(), *drawn, defects=["blur"])
    assert "moves further" in by_name(report)["blur"].reason
    assert not report.ok


def test_a_score_that_jumps_about_fails(drawn):
    class Unsteady(Measuring):
        def row(self, clip, prompt):
            row = super().row(clip, prompt)
            return [1 + (37 * row[0]) % 3, *row[1:]]

    blur = by_name(check_scorer(Unsteady(), *drawn, defects=["blur"]))["blur"]
    assert blur.status == "fail"
    assert "not steadily" in blur.reason


def judged(traditional, temporal=(3, 3), rank=1.0):
    """The verdict on Traditional scores (clips, levels) under blur, beside Temporal ones; the others stand still."""
    table = np.full((len(traditional), 2, 5), 3.0)
    table[:, :, SCORE_NAMES.index("Traditional")] = traditional
    table[:, :, SCORE_NAMES.index("Temporal")] = temporal
    return _judge("blur", "Traditional", ("none", "1"), table, rank, RANK, "not steadily ({:.2f})")


def test_a_score_must_fall_by_more_than_a_twentieth_of_a_point():
    assert judged([(3, 2.96)]).reason == "falls by 0.04, not by 0.05"
    assert judged([(3, 2.94)]).status == "pass"


def test_a_score_must_fall_in_step_with_the_defect():
    assert judged([(3, 2)], rank=0.79).reason == "not steadily (0.79)"
    assert judged([(3, 2)], rank=0.8).status == "pass"


@pytest.mark.parametrize("moved", [2, 4], ids=["down", "up"])
def test_another_score_that_moves_further_either_way_fails(moved):
    assert judged([(3, 2.5)], temporal=(3, moved)).reason == "Temporal moves further"


def test_scores_are_identical_where_those_of_no_clip_move():
    assert "identical" not in judged([(3, 2), (3, 3)]).reason
    assert "identical" in judged([(3, 3), (2, 2)]).reason


def test_a_stronger_defect_is_more_of_the_same_draw(drawn, monkeypatch):
    draws = []

    def spoil(clip, name, strength, rng):
        draws.append(rng.integers(1 << 30))
        return clip // 2

    monkeypatch.setattr("dover_eval.sanity.distort", spoil)
    for _ in range(2):
        check_scorer(Measuring(), drawn[0][:2], None, defects=["noise"])
    first, second = draws[:4], draws[4:8]
    assert len(set(first)) == len(set(second)) == 1
    assert first != second
    assert draws[8:] == first + second


@pytest.mark.parametrize(("won", "status"), [(3, "pass"), (2, "fail")])
def test_the_right_prompt_must_win_for_three_clips_of_four(won, status):
    clips = [np.full((8, 8, 8, 3), 60 * i + 40, np.uint8) for i in range(4)]
    prompts = list("abcd")

    class Knowing(Measuring):
        def row(self, clip, prompt):
            fits = prompt == self.own_prompt(clip) and prompt in prompts[:won]
            return [clip.mean() / 100, 4 if fits else 2, 3, 3, 3]

    check = by_name(check_scorer(Knowing(clips, prompts), clips, prompts, defects=[]))["another's prompt"]
    assert (check.rank, check.status) == (won / 4, status)


def test_a_scorer_that_ignores_prompts_fails_all_three_prompt_checks(drawn):
    checks = by_name(check_scorer(Measuring(refuse_empty=False), *drawn, defects=["blur"]))
    three = [checks[name] for name in ("another's prompt", "contradiction", "empty prompt")]
    assert [(check.status, check.rank) for check in three] == [("fail", 0)] * 3  # the right prompt wins for no clip


def test_defects_that_change_nothing_are_skipped_and_not_passed(drawn):
    still = [np.repeat(clip[:1], 8, axis=0) for clip in drawn[0]]
    report = check_scorer(Measuring(), still, None, defects=["shuffle", "freeze", "drop"])
    assert all(check.status == "skipped" and "do they move" in check.reason for check in report.checks)
    assert not report.ok  # nothing was checked
    assert not check_scorer(Measuring(), still[:1], None, defects=["freeze"]).alarms  # one score is not a stuck one


def test_prompts_without_an_alternative_are_skipped(drawn):
    report = check_scorer(Measuring(), drawn[0], ["qwerty"] * 3, defects=["blur"])
    checks = by_name(report)
    assert checks["another's prompt"].reason == "needs two different prompts"
    assert checks["contradiction"].reason == "no word here has a known contrary"


def test_contradictions_turn_known_words_and_leave_the_rest():
    assert contradict("A red car moving left at Night") == "A blue boat standing still right at day"
    assert contradict("qwerty") is None


@pytest.mark.parametrize(
    ("prompt", "contrary"),
    [
        ("a man and a woman dancing", None),
        ("A red, and a Blue ball", None),
        ("a moving car beside one standing still", "a moving boat beside many standing still"),
        ("a red and blue ball moving up", "a red and blue ball standing still down"),
        ("a manhole and a woman", "a manhole and a man"),
    ],
)
def test_a_word_whose_contrary_is_there_as_well_stays(prompt, contrary):
    """The two would only change places, and the prompt say the same as before."""
    assert contradict(prompt) == contrary


def test_what_cannot_be_checked_is_refused(drawn):
    with pytest.raises(ValueError, match="a prompt for each, got 3 and 1"):
        check_scorer(Measuring(), drawn[0], ["a"])
    with pytest.raises(ValueError, match="got crooked"):
        check_scorer(Measuring(), drawn[0], None, defects=["crooked"])


def test_large_clips_are_shrunk_to_the_short_side(write_video):
    frames = np.random.default_rng(0).integers(0, 255, (2, 400, 800, 3), dtype=np.uint8)
    assert load_clip(write_video(frames), lambda path: decode_clip(path, 4).frames).shape == (4, 360, 720, 3)


@pytest.fixture
def dover(checkpoint):
    options = ["--model", checkpoint, "--device", "cpu"]
    return lambda *arguments: CliRunner().invoke(app, ["sanity", *map(str, arguments), *options])


def test_the_command_on_ones_own_clips(dover, write_video, moving_frames, tmp_path):
    videos = [write_video(moving_frames, "a.mp4"), write_video(moving_frames[::-1], "b.mp4")]
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("video_name,Prompt\na.mp4,a white square moving right\nb.mp4,a cat\n")
    report, plot = tmp_path / "report.json", tmp_path / "plot.png"
    given = [part for video in videos for part in ("--videos", video)]
    result = dover(*given, "--prompts", prompts, "--defect", "blur", "--defect", "h264", "-o", report, "--plot", plot)
    found = json.loads(report.read_text())
    assert result.exit_code == (0 if found["ok"] else 1), result.output
    assert [check["name"] for check in found["checks"]][:3] == ["blur", "h264", "another's prompt"]
    assert len(found["checks"][0]["means"][0]) == len(SCORE_NAMES)
    assert plot.read_bytes().startswith(b"\x89PNG")
    for words in ("blur", "Traditional", "fingerprint", "2 clips"):
        assert words in result.stdout


def test_the_command_names_the_clip_whose_prompt_the_text_encoder_does_not_know(
    dover, write_video, moving_frames, tmp_path
):
    videos = [write_video(moving_frames, "a.mp4"), write_video(moving_frames[::-1], "b.mp4")]
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("video_name,Prompt\na.mp4,a white square\nb.mp4,\u16a0\u16a2\u16a6\n", encoding="utf-8")
    result = dover(*(part for video in videos for part in ("--videos", video)), "--prompts", prompts)
    assert result.exit_code == 2
    assert f"{videos[1]}: the text encoder" in result.stderr.replace("\n", " ")
    assert "knows no word of the prompt '\u16a0\u16a2\u16a6'" in " ".join(result.stderr.split())


def test_the_command_without_clips_draws_some(dover):
    result = dover("--defect", "flicker", "--count", "2")
    assert "2 drawn clips" in " ".join(result.stdout.split())
    assert "contradiction" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--videos", "broken.mp4"], "cannot be decoded"),
        (["--videos", "*.mkv"], "dover-eval: *.mkv: no file matches"),
        (["--videos", "broken.mp4", "--prompts", "none.csv"], "none.csv: cannot be read"),
        (["--defect", "crooked"], "--defect crooked: expected one of blur, noise"),
        (["--prompts", "p.csv"], "--prompts goes with --videos"),
        (["--plot", "no/such/plot.png"], "there is no folder"),
        (["--plot", "plot.jpg"], "ends in .png, .svg, .pdf"),
    ],
)
def test_what_was_not_understood_ends_with_two(dover, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.mp4").write_text("no video")
    result = dover(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_more_light_in_the_dark_is_no_overexposure(drawn):
    clips, prompts = drawn
    dark = [clip // 12 for clip in clips]
    (check,) = check_scorer(Measuring(clips, prompts), dark, prompts, defects=["overexpose"]).checks[:1]
    assert check.status == "skipped"
    assert "are they bright?" in check.reason
    white = [np.full_like(clip, 252) for clip in clips]
    assert check_scorer(Measuring(), white, None, defects=["overexpose"]).checks[0].status == "skipped"
