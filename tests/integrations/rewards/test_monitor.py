"""Each alarm fires on the defect it names, and none on healthy data."""

import weakref

import pytest
import torch
from dover_integrations.rewards import RewardMonitor
from dover_integrations.rewards.frame_figures import frame_figures

STEPS = 30


def healthy_clips(step, count=4):
    """Coloured blobs that drift over a soft background: (count,6,3,48,48) in 0-1, others at every step."""
    generator = torch.Generator().manual_seed(step)
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    clips = torch.full((count, 6, 3, 48, 48), 0.3)
    clips += 0.1 * (columns / 48)
    for i in range(count):
        x, y, dx, dy = (torch.rand(4, generator=generator) * torch.tensor([20.0, 20, 2, 2]) + 6).tolist()
        colour = torch.rand(3, generator=generator) * 0.5
        for t in range(6):
            blob = torch.exp(-((columns - x - dx * t / 2) ** 2 + (rows - y - dy * t / 2) ** 2) / 60)
            clips[i, t] += colour.view(3, 1, 1) * blob
    return (clips + 0.01 * torch.randn(clips.shape, generator=generator)).clamp(0, 1)


def healthy_scores(step, count=4):
    generator = torch.Generator().manual_seed(1000 + step)
    return 3 + 0.3 * torch.randn(count, 5, generator=generator) + 0.01 * step


GROUPS = ["a", "a", "b", "b"]


def run(change_clips=lambda clips, progress: clips, change_scores=lambda scores, progress: scores):
    """A run whose second half goes wrong; what stands in `alarms` at its end."""
    monitor = RewardMonitor(layout="BTCHW", value_range=(0, 1))
    for step in range(STEPS):
        progress = max(0.0, (step - 12) / (STEPS - 13))
        clips = change_clips(healthy_clips(step), progress).clamp(0, 1)
        figures = monitor.update(clips, change_scores(healthy_scores(step), progress), GROUPS)
        assert all(type(value) is float for value in figures.values())
    return monitor


def freeze(clips, progress):
    return torch.lerp(clips, clips[:, :1].expand_as(clips), progress)


def saturate(clips, progress):
    grey = clips.mean(2, keepdim=True)
    return grey + (clips - grey) * (1 + 2 * progress)


def raise_contrast(clips, progress):
    mean = clips.mean((3, 4), keepdim=True)
    return mean + (clips - mean) * (1 + 2 * progress)


def fade_to_grey(clips, progress):
    return torch.lerp(clips, clips.mean(2, keepdim=True).expand_as(clips), progress)


def lower_contrast(clips, progress):
    return torch.lerp(clips, clips.mean((3, 4), keepdim=True).expand_as(clips), progress)


def draw_grid(clips, progress):
    clips = clips.clone()
    clips[..., ::8] += 0.3 * progress
    clips[..., ::8, :] += 0.3 * progress
    return clips


def draw_checkerboard(clips, progress):
    board = (torch.arange(48).view(-1, 1) + torch.arange(48)) % 2
    return clips + 0.1 * progress * (board - 0.5)


def diverge(scores, progress):
    return scores + progress * torch.tensor([2.0, 0.0, 2.0, -2.0, 2.0])


def lose_the_prompt(scores, progress):
    return scores + progress * torch.tensor([2.0, -2.0, 2.0, 0.0, 2.0])


def grow_alike(scores, progress):
    return torch.lerp(scores, scores.mean(0, keepdim=True).expand_as(scores), min(1.0, 2 * progress))


def test_healthy_runs_raise_no_alarm(caplog):
    assert run().alarms == {}
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        (freeze, "motion"),
        (saturate, "saturation"),
        (fade_to_grey, "saturation"),
        (raise_contrast, "contrast"),
        (lower_contrast, "contrast"),
        (draw_grid, "grid"),
        (draw_checkerboard, "grid"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_frames_that_go_wrong_raise_their_alarm(change, alarm, caplog):
    monitor = run(change_clips=change)
    assert alarm in monitor.alarms
    assert f"reward hacking? {alarm}: " in caplog.text
    assert caplog.text.count(f"reward hacking? {alarm}: ") == 1  # once, not at every step


@pytest.mark.parametrize("change", [freeze, draw_grid, draw_checkerboard])
def test_one_defect_does_not_raise_the_alarms_of_others(change):
    expected = {freeze: {"motion"}}.get(change, {"grid", "contrast"})
    assert set(run(change_clips=change).alarms) <= expected


@pytest.mark.parametrize(
    ("change", "alarm", "words"),
    [
        (diverge, "aspects", "while Temporal fell"),
        (lose_the_prompt, "aspects", "while Alignment fell"),
        (grow_alike, "group_std", "grow alike"),
    ],
)
def test_scores_that_go_wrong_raise_their_alarm(change, alarm, words):
    monitor = run(change_scores=change)
    assert set(monitor.alarms) == {alarm}
    assert words in monitor.alarms[alarm]


def test_scores_that_rise_together_are_no_alarm():
    assert run(change_scores=lambda scores, progress: scores + 1.5 * progress).alarms == {}


@pytest.mark.parametrize(("rise", "alarms"), [(0.03, set()), (0.06, {"aspects"})])
def test_a_rise_within_the_limit_is_none_whatever_falls(rise, alarms):
    monitor = RewardMonitor(layout="BTCHW", value_range=(0, 1))
    clips, scores = healthy_clips(0), torch.full((4, 5), 3.0)
    for step in range(15):
        monitor.update(clips, scores + (step >= 10) * torch.tensor([0.0, 0.0, 0.0, -0.5, rise]))
    assert set(monitor.alarms) == alarms


def test_an_alarm_waits_for_its_window_and_a_step_without_the_figure_is_no_part_of_it():
    monitor = RewardMonitor(layout="BTCHW", value_range=(0, 1), baseline=10, window=5)
    for step in range(16):
        clips = freeze(healthy_clips(step), float(step > 10))
        monitor.update(clips[:, :1] if step == 5 else clips, healthy_scores(step))  # one frame has no motion
        assert ("motion" in monitor.alarms) == (step == 15)


def test_a_failed_clip_moves_no_mean_score():
    scores = torch.full((4, 5), 3.0)
    scores[1] = torch.nan
    figures = RewardMonitor(layout="BTCHW", value_range=(0, 1)).update(healthy_clips(0), scores)
    assert figures["score/Overall"] == 3


def test_a_reward_that_is_blind_to_the_prompt_is_found(caplog):
    monitor = RewardMonitor(layout="BTCHW", value_range=(0, 1))
    clips = healthy_clips(0)
    brightness = lambda videos, prompts: videos.mean((1, 2, 3, 4))
    figures = monitor.probe(brightness, clips, GROUPS)
    assert figures["prompt_sensitivity"] == 0
    assert "blind" in caplog.text or "prompts change the reward by 0.00%" in caplog.text
    assert set(monitor.alarms) == {"prompt"}


def test_a_reward_that_reads_the_prompt_is_not(reward, videos, prompts):
    monitor = RewardMonitor(layout="BTCHW", value_range=(0, 1))
    figures = monitor.probe(reward, videos, prompts)
    assert figures["prompt_sensitivity"] > 0.05
    assert monitor.alarms == {}
    assert figures["alarm/prompt"] == 0


def test_the_latest_probe_alone_counts():
    monitor = RewardMonitor(layout="BTCHW", value_range=(0, 1))
    reads, blind = (lambda videos, prompts: torch.tensor([float(p == "a") for p in prompts])), lambda *_: torch.ones(4)
    for reward, alarms in ((reads, set()), (blind, {"prompt"}), (reads, set())):
        monitor.probe(reward, healthy_clips(0), GROUPS)
        assert set(monitor.alarms) == alarms


@pytest.mark.parametrize(("prompts", "kept"), [("aabb", 0), ("aaab", 2), ("baca", 0)])
def test_the_gap_is_matched_less_shuffled_of_clips_that_another_prompt_is_left_for(prompts, kept):
    asked = []

    def right(videos, given):
        asked.append(given)
        return torch.tensor([float(p == q) for p, q in zip(given, prompts, strict=True)])

    monitor = RewardMonitor(layout="BTCHW", value_range=(0, 1))
    assert monitor.probe(right, healthy_clips(0), list(prompts))["prompt_gap"] == 1
    assert sum(p == q for p, q in zip(*asked, strict=True)) == kept


def test_sensitivity_is_in_units_of_the_rewards_own_scatter():
    by_prompt = lambda videos, prompts: torch.tensor([{"a": 1.0, "b": 3.0}[prompt] for prompt in prompts])
    figures = RewardMonitor(layout="BTCHW", value_range=(0, 1)).probe(by_prompt, healthy_clips(0, 2), ["a", "b"])
    assert figures["prompt_sensitivity"] == pytest.approx(2)  # of rewards that are 1 from their mean


def test_one_prompt_cannot_be_shuffled(reward, videos):
    with pytest.raises(ValueError, match="at least two different prompts"):
        RewardMonitor(layout="BTCHW", value_range=(0, 1)).probe(reward, videos, ["a boat"] * 4)


def test_the_state_survives_a_checkpoint():
    whole = RewardMonitor(layout="BTCHW", value_range=(0, 1))
    first = RewardMonitor(layout="BTCHW", value_range=(0, 1))
    resumed = RewardMonitor(layout="BTCHW", value_range=(0, 1))
    for step in range(STEPS):
        if step == 17:
            resumed.load_state_dict(first.state_dict())
        clips = freeze(healthy_clips(step), float(step > 12))
        for monitor in (whole, first if step < 17 else resumed):
            monitor.update(clips, healthy_scores(step), GROUPS)
    assert resumed.alarms == whole.alarms
    assert "motion" in resumed.alarms


def test_alarms_that_hold_are_raised_again_after_a_checkpoint(caplog):
    monitor = run(change_clips=freeze)
    caplog.clear()
    monitor.load_state_dict(monitor.state_dict())
    assert monitor.alarms == {}
    monitor.update(freeze(healthy_clips(STEPS), 1.0), healthy_scores(STEPS))
    assert "reward hacking? motion: " in caplog.text


@pytest.mark.parametrize(("layout", "move"), [("BCTHW", (0, 2, 1, 3, 4)), ("BTCHW", (0, 1, 2, 3, 4))])
@pytest.mark.parametrize(
    ("value_range", "convert"), [((0, 1), lambda x: x), ((-1, 1), lambda x: 2 * x - 1), ((0, 255), lambda x: 255 * x)]
)
def test_layout_and_range_do_not_change_the_figures(layout, move, value_range, convert):
    clips = healthy_clips(0)
    plain = RewardMonitor(layout="BTCHW", value_range=(0, 1)).update(clips, healthy_scores(0))
    monitor = RewardMonitor(layout=layout, value_range=value_range)
    assert monitor.update(convert(clips).permute(*move), healthy_scores(0)) == pytest.approx(plain, rel=1e-3)


def test_files_have_figures_and_what_is_no_video_has_none(write_video, tmp_path, monkeypatch):
    frames = (healthy_clips(0)[:1, 0] * 255).byte().permute(0, 2, 3, 1).numpy().repeat(8, 0)
    still = write_video(frames, "still.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    figures = RewardMonitor(layout="BTCHW", value_range=(0, 1)).update([still, broken], healthy_scores(0, 2))
    assert figures["motion"] == pytest.approx(0, abs=0.01)
    assert figures["brightness"] == pytest.approx(frames.mean() / 255, abs=0.05)
    monkeypatch.setenv("HOME", str(tmp_path))
    again = RewardMonitor(layout="BTCHW", value_range=(0, 1)).update(iter(["~/still.mp4"]), healthy_scores(0, 1))
    assert again["brightness"] == figures["brightness"]


def test_scores_of_other_videos_are_refused():
    with pytest.raises(ValueError, match="scores of the 4 videos, got 3 rows"):
        RewardMonitor(layout="BTCHW", value_range=(0, 1)).update(healthy_clips(0), healthy_scores(0, 3))


def test_figures_of_clips_whose_answer_is_known():
    black, white = torch.zeros(3, 3, 16, 16), torch.ones(3, 3, 16, 16)
    flicker = torch.stack([black[0], white[0], black[0]])
    assert frame_figures(flicker)["motion"] == pytest.approx(1)
    assert frame_figures(white)["clipped"] == 1
    assert frame_figures(white)["saturation"] == 0
    red = black.clone()
    red[:, 0] = 1
    assert frame_figures(red)["saturation"] == 1
    stripes = black.clone()
    stripes[..., ::2] = 1
    assert frame_figures(stripes)["contrast"] == pytest.approx(0.5)
    assert frame_figures(stripes)["grid"] == pytest.approx(0.5)  # all of one axis, nothing of the other


def test_a_single_frame_has_no_motion_to_speak_of():
    monitor = RewardMonitor(layout="BTCHW", value_range=(0, 1))
    figures = monitor.update(healthy_clips(0)[:, :1], healthy_scores(0))
    assert figures["motion"] != figures["motion"]
    assert figures["alarm/motion"] == 0


def test_scores_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected scores \(B,5\)"):
        RewardMonitor(layout="BTCHW", value_range=(0, 1)).update(healthy_clips(0), torch.zeros(4))


def test_one_clip_at_a_time_is_held_in_fp32(monkeypatch):
    seen, held = [], []

    def watched(clip):
        seen.append(weakref.ref(clip))
        held.append(sum(clip() is not None for clip in seen))
        return frame_figures(clip)

    monkeypatch.setattr("dover_integrations.rewards.monitor.frame_figures", watched)
    RewardMonitor(layout="BTCHW", value_range=(0, 1)).update(healthy_clips(0), healthy_scores(0))
    assert held == [1, 1, 1, 1]
