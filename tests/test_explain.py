"""Explanations: windows that are clips of their own, real times, maps whose means are the scores, whole words."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from dover_eval import Calibration, VideoError, VideoScorer
from dover_eval.calibration import BOUND_TO, AspectCalibration
from dover_eval.video.decode import all_frames, frame_times, frames_at


@pytest.fixture
def clip(write_video, moving_frames):
    """Two seconds, 12 frames a second."""
    return write_video(np.concatenate([moving_frames, moving_frames[::-1]]), rate=12)


def test_a_window_over_the_whole_clip_has_its_scores(small_scorer, clip):
    found = small_scorer.explain(clip, "a square", seconds=60)
    assert torch.equal(found.values[0], found.scores)
    assert torch.equal(found.scores, small_scorer.score(clip, "a square").values[0])
    assert found.times == pytest.approx((1.0,))
    assert found.window == found.duration == pytest.approx(2.0)


def test_each_window_has_the_scores_of_that_part_alone(small_scorer, clip, write_video):
    """Windows of half a second, end to end: as if the clip had been cut there."""
    found = small_scorer.explain(clip, "a square", windows=4, seconds=0.5)
    assert found.times == pytest.approx((0.25, 0.75, 1.25, 1.75))
    frames = torch.stack([pixels for pixels, _ in all_frames(clip)])
    for i in range(4):
        part = frames[6 * i : 6 * i + 6]
        alone = small_scorer.score(part, "a square", layout="TCHW").values[0]
        torch.testing.assert_close(found.values[i], alone, atol=1e-5, rtol=0)


def test_the_worst_window_is_where_the_clip_is_unlike_the_rest(small_scorer, write_video, moving_frames):
    """Random weights have no taste, but they notice: the scores stay as they are until the picture changes."""
    calm = np.repeat(moving_frames[:1], 36, axis=0)
    calm[24:] = 255 - calm[24:]
    found = small_scorer.explain(write_video(calm, rate=12), "a square", windows=9, seconds=1.0)
    before, after = found.values[:4], found.values[-1]
    torch.testing.assert_close(before, before[:1].expand_as(before), atol=0.02, rtol=0)
    assert (after - before[0]).abs().max() > 0.05
    for name, window in found.worst.items():
        assert found.values[window, found.names.index(name)] == found.values[:, found.names.index(name)].min()


def test_times_are_the_files_own(small_scorer, write_video, moving_frames):
    """A frame rate that varies: pictures carry the times at which they appear."""
    times = [0, 40, 80, 120, 160, 200, 700, 740, 780, 1400, 1440, 1480]
    path = write_video(moving_frames, "vfr.mkv", times=times)
    found = small_scorer.explain(path, "a square", windows=5, seconds=0.4)
    assert {round(1000 * time) for time in found.frame_times} <= set(times)
    assert all(a <= b for a, b in zip(found.frame_times, found.frame_times[1:], strict=False))
    assert found.times[-1] + 0.2 == pytest.approx(found.duration)


def test_a_clip_that_starts_late_is_timed_from_its_first_frame(small_scorer, write_video, moving_frames):
    path = write_video(moving_frames, "late.mkv", times=[5000 + 40 * i for i in range(12)])
    found = small_scorer.explain(path, "a square")
    assert found.times[0] < 0.5
    assert found.map_times[0] < 0.1


def test_maps_average_to_the_heads_scores(small_scorer, clip):
    found = small_scorer.explain(clip, "a square", seconds=60)
    scores = small_scorer.score(clip, "a square")
    torch.testing.assert_close(found.aesthetic_map.mean(), scores.aesthetic_score[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.technical_map.mean(), scores.technical_score[0], atol=1e-4, rtol=0)


def test_maps_cover_the_clip_in_order(small_scorer, clip):
    found = small_scorer.explain(clip, "a square", windows=7)
    assert found.map_times[0] < 0.2
    assert found.map_times[-1] > 1.8
    assert len(found.map_times) >= 7


def test_maps_leave_no_part_of_the_clip_out(write_video, moving_frames):
    """Also where a window is looked at in two runs, which are far from its middle."""
    clip = write_video(np.repeat(moving_frames, 10, axis=0), rate=10)
    found = VideoScorer.from_pretrained(device="cpu").explain(clip, "a square", windows=6)
    assert found.duration > 10
    ends = [0.0, *found.map_times, found.duration]
    assert max(b - a for a, b in itertools.pairwise(ends)) < found.window


def test_words_are_whole_and_in_order(small_scorer, clip):
    prompt = "An unbelievably  photorealistic, ultra-wide café!"
    found = small_scorer.explain(clip, prompt, windows=2)
    assert [word.text for word in found.words] == prompt.split()
    assert all(0 <= word.focus <= 1 for word in found.words)


def test_words_without_spaces_between_them_are_told_apart(small_scorer, clip):
    words = small_scorer.explain(clip, "4K视频、一只猫 in rain", windows=1).words
    assert words[0].text == "4K"
    assert "".join(word.text for word in words) == "4K视频、一只猫inrain"
    assert len(words) > 5
    assert all(0 <= word.focus <= 1 for word in words)


def test_a_word_with_nothing_to_read_is_not_called_cut_off(small_scorer, clip):
    """A space of no width has no token, which is no fault of the prompt's length."""
    words = small_scorer.explain(clip, "a cat \u200b dog \u200b", windows=1).words
    assert [word.focus is None for word in words] == [False, False, True, False, True]
    assert not any(word.cut_off for word in words)


def test_words_that_the_text_encoder_cut_off_have_no_focus(small_scorer, clip):
    found = small_scorer.explain(clip, "square " * 600, windows=1)
    read = [word.focus is not None for word in found.words]
    assert read[0]
    assert not read[-1]
    assert read == sorted(read, reverse=True)
    assert [word.cut_off for word in found.words] == [not here for here in read]


def test_attention_that_looks_everywhere_alike_has_no_focus():
    from dover_eval.explain import _focus

    even, one = torch.full((8, 1, 6), 1 / 6), torch.zeros(8, 1, 6)
    one[..., 2] = 1
    assert _focus(even).item() == pytest.approx(0, abs=1e-6)
    assert _focus(one).item() == pytest.approx(1)
    assert _focus(torch.ones(8, 3, 1)).tolist() == [0, 0, 0]


def test_one_frame_is_explained(small_scorer, write_video, moving_frames):
    found = small_scorer.explain(write_video(moving_frames[:1]), "a square")
    assert len(found.times) == 1
    assert len(found.frames) == 1


def test_a_calibrated_scorer_explains_calibrated_scores(small_model, small_scorer, clip):
    harsher = AspectCalibration(knots=((1, 1), (5, 3)), source="logistic", count=9)
    own = {name: getattr(small_scorer.fingerprint, name) for name in BOUND_TO}
    calibrated = VideoScorer(small_model, device="cpu", calibration=Calibration({"Alignment": harsher}, **own))
    found = calibrated.explain(clip, "a square", seconds=60)
    assert torch.equal(found.values[0], found.scores)
    assert found.scores[1] < small_scorer.score(clip, "a square").values[0, 1]


def test_what_cannot_be_explained_is_refused(small_scorer, clip, tmp_path, write_video):
    with pytest.raises(VideoError, match=r"gone.mp4: no such file"):
        small_scorer.explain(tmp_path / "gone.mp4", "a")
    with pytest.raises(VideoError, match="one side at most 64 times the other"):
        small_scorer.explain(write_video(np.zeros((4, 2, 400, 3), np.uint8), "thin.mp4"), "a")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="cannot be decoded"):
        small_scorer.explain(tmp_path / "text.mp4", "a")
    for prompt in ("", "  ", None):
        with pytest.raises(ValueError, match="expected a text for prompt 0"):
            small_scorer.explain(clip, prompt)
    with pytest.raises(ValueError, match="at least one window, got 0"):
        small_scorer.explain(clip, "a", windows=0)
    with pytest.raises(ValueError, match="longer than 0 s, got -1"):
        small_scorer.explain(clip, "a", seconds=-1)
    with pytest.raises(TypeError, match="expected a file, whose frames have times, got a Tensor"):
        small_scorer.explain(torch.zeros(4, 3, 8, 8), "a")


def test_an_explanation_checks_itself(small_scorer, clip):
    found = small_scorer.explain(clip, "a square", windows=3)
    for change, words in (
        ({"values": found.values[:, :4]}, r"expected values \(3, 5\), got \(3, 4\)"),
        ({"values": found.values * torch.nan}, "expected values from 1 to 5, got nan"),
        ({"times": found.times[::-1]}, "expected rising times"),
        ({"frame_times": found.frame_times[:2]}, "expected a frame for each of 3 windows"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(found, **change)
    assert "3 windows of" in repr(found)


def test_frames_at_given_times_are_those_on_screen(write_video, moving_frames):
    path = write_video(moving_frames, rate=8)
    everything = list(all_frames(path))
    assert [time for _, time in everything] == pytest.approx(frame_times(path)[0])
    (first, a), (same, b), (next_one, c), (later, d) = frames_at(path, [0.01, 0.11, 0.125, 1.3])
    assert first is same
    assert (a, b, c, d) == pytest.approx((0, 0, 0.125, 1.25))
    assert torch.equal(next_one, everything[1][0])
    assert torch.equal(later, everything[10][0])
