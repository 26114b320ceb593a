"""What a training loop does with `DoverReward`."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from dover_integrations.rewards import DoverReward, RewardError
from dover_integrations.rewards.queue import MicroBatcher

from dover_eval import VideoScorer
from dover_eval.calibration import BOUND_TO, AspectCalibration, Calibration
from tests.integrations.rewards.conftest import make


def test_the_reward_is_the_scorers_overall(reward, model, videos, prompts):
    expected = VideoScorer(model, device="cpu").score(videos, prompts, layout="BTCHW")
    torch.testing.assert_close(reward(videos, prompts), expected.overall)
    torch.testing.assert_close(reward.scores(videos, prompts), expected.values)


def test_rewards_tell_clips_and_prompts_apart(reward, videos, prompts):
    assert reward(videos, prompts[0]).std() > 1e-3
    assert (reward(videos, prompts) - reward(videos, prompts[::-1])).abs().max() > 1e-3


def test_weights_mean_and_std_make_the_reward(model, reward, videos, prompts):
    mixed = make(model, weights={"Alignment": 2, "Temporal": -0.5}, mean=1.5, std=0.25)
    scores = reward.scores(videos, prompts)
    torch.testing.assert_close(mixed(videos, prompts), (2 * scores[:, 1] - 0.5 * scores[:, 3] - 1.5) / 0.25)


def test_it_warns_when_the_prompt_weighs_nothing(model, caplog):
    make(model, weights={"Aesthetic": 1})
    assert "Alignment weighs nothing" in caplog.text
    caplog.clear()
    make(model, weights={"Aesthetic": 1, "Alignment": 0.2})
    make(model)
    assert not caplog.records


@pytest.mark.parametrize(
    ("layout", "move"), [("BCTHW", (0, 2, 1, 3, 4)), ("BTHWC", (0, 1, 3, 4, 2)), ("BTCHW", (0, 1, 2, 3, 4))]
)
def test_the_layout_does_not_change_the_reward(model, reward, videos, prompts, layout, move):
    torch.testing.assert_close(make(model, layout=layout)(videos.permute(*move), prompts), reward(videos, prompts))


def test_a_clip_of_three_frames_is_read_by_its_layout(model, videos, prompts):
    clip = videos[:1, :3, :, :32, :32]
    one, other = make(model)(clip, prompts[:1]), make(model, layout="BCTHW")(clip, prompts[:1])
    assert (one - other).abs() > 1e-5


@pytest.mark.parametrize(
    ("value_range", "convert", "tolerance"),
    [
        ((-1, 1), lambda x: x * 2 - 1, 1e-4),
        ((0, 255), lambda x: x * 255, 1e-4),
        ((0, 255), lambda x: (x * 255).round().byte(), 1e-4),
        ((0, 255), lambda x: (x * 255).round().byte().numpy(), 1e-4),
        ((0, 1), lambda x: list(x.numpy()), 1e-4),
        ((0, 1), lambda x: x.bfloat16(), 2e-2),
    ],
    ids=["-1-1", "0-255", "uint8", "uint8 array", "list of arrays", "bfloat16"],
)
def test_ranges_and_kinds_of_clips_agree(model, reward, videos, prompts, value_range, convert, tolerance):
    videos = (videos * 255).round() / 255
    found = make(model, value_range=value_range)(convert(videos), prompts)
    torch.testing.assert_close(found, reward(videos, prompts), atol=tolerance, rtol=0)


def test_iterables_of_clips_and_of_files_are_read_as_the_scorer_reads_them(
    model, reward, videos, prompts, write_video, moving_frames, monkeypatch
):
    torch.testing.assert_close(reward((clip for clip in videos), prompts), reward(videos, prompts))
    path = write_video(moving_frames)
    expected = VideoScorer(model, device="cpu").score(path, "a square").overall
    monkeypatch.setenv("HOME", str(path.parent))
    for files in (np.array([str(path)]), (path,), (p for p in [path]), f"~/{path.name}"):
        torch.testing.assert_close(reward(files, "a square"), expected)


@pytest.mark.parametrize("frames", [1, 2, 8, 9])
def test_clips_shorter_and_longer_than_the_models_are_scored(reward, videos, frames):
    clip = videos[:1].repeat(1, 2, 1, 1, 1)[:, :frames]
    assert reward(clip, ["a boat"]).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, lambda x: x * 255, r"expected float in 0-1, got videos\[0\].* with values from .* to 2"),
        ({}, lambda x: x * 2 - 1, r"expected float in 0-1, got videos\[0\]"),
        ({}, lambda x: (x * 255).byte(), "dtype uint8, whose range is 0-255"),
        ({"value_range": (-1, 1)}, lambda x: x * 3, "expected float from -1 to 1"),
        ({"value_range": (0, 255)}, lambda x: x * 300, "expected float in 0-255"),
        ({}, lambda x: x.int(), "expected uint8 in 0-255 or float in 0-1"),
        ({}, lambda x: x[0], 'expected 5 dimensions for layout "BTCHW"'),
        ({"layout": "BCTHW"}, lambda x: x, "expected three channels"),
        ({}, lambda x: x[:, :0], "at least one frame"),
        ({}, lambda x: x[:3], "expected 3 prompts, one a clip, got 4"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(model, videos, prompts, settings, change, message):
    with pytest.raises(ValueError, match=message):
        make(model, **settings)(change(videos), prompts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "BTCH"}, "expected a layout"),
        ({"value_range": (1, 0)}, "expected a value_range"),
        ({"nan_policy": "zero"}, "nan_policy"),
        ({"mean": float("nan")}, "expected a finite mean, got nan"),
        ({"std": 0}, "expected a finite std above 0, got 0"),
        ({"std": float("inf")}, "expected a finite std above 0, got inf"),
        ({"std": float("nan")}, "expected a finite std above 0, got nan"),
        ({"batch_size": 0}, "expected a batch_size of at least 1, got 0"),
        ({"weights": {"Beauty": 1}}, "expected finite weights of some of"),
        ({"weights": {"Overall": 0}}, "weight other than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        make(model, **settings)


def test_floats_in_0_1_that_were_announced_as_0_255_raise_a_suspicion_once(model, videos, prompts, caplog):
    reward = make(model, value_range=(0, 255))
    clip = videos[3:] / videos[3:].max()  # with white in it
    reward(clip, prompts[3:])
    reward(clip, prompts[3:])
    assert caplog.text.count("is its range 0-1?") == 1


def test_an_empty_prompt_is_refused(reward, videos):
    with pytest.raises(ValueError, match="expected a text for prompt 1"):
        reward(videos[:2], ["a boat", " "])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_frames_with_no_numbers_raise_or_become_nan_and_the_others_are_scored(
    model, reward, videos, prompts, caplog, value
):
    broken = videos.clone()
    broken[1, 2, 0, 3, 3] = value
    with pytest.raises(RewardError, match=r"videos\[1\]: frames .* hold NaN"):
        reward(broken, prompts)
    found = make(model, nan_policy="nan")(broken, prompts)
    assert found.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(found[[0, 2, 3]], reward(videos, prompts)[[0, 2, 3]])
    assert "no reward for videos[1]" in caplog.text


def test_a_file_that_cannot_be_decoded_follows_the_policy(model, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    assert make(model, nan_policy="nan")([broken], ["a boat"]).isnan().all()
    with pytest.raises(RewardError, match=r"broken\.mp4"):
        make(model)([broken], ["a boat"])


def test_no_clips_give_no_rewards(reward):
    assert reward([], []).shape == (0,)
    assert reward.scores([], []).shape == (0, 5)


@pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_the_callers_modes_do_not_reach_the_scorer(reward, videos, prompts, mode):
    expected = reward(videos, prompts)
    with mode():
        found = reward(videos, prompts)
    assert not found.requires_grad
    assert torch.equal(found, expected)


def test_loaded_in_inference_mode_it_still_gives_gradients(checkpoint, videos):
    reward = DoverReward(checkpoint, layout="BTCHW", value_range=(0, 1), device="cpu", batch_size=3)
    with torch.inference_mode():
        reward(videos[:1], "a boat nobody has seen before")
        reward.scorer.score(videos[:1], "another", layout="BTCHW")
    frames = videos[:1].clone().requires_grad_()
    reward.differentiable(frames, "another").sum().backward()
    assert frames.grad.abs().max() > 0


@pytest.fixture
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_trainers_default_dtype_changes_no_reward(checkpoint, reward, videos, prompts, bfloat16_by_default):
    of_bfloat16 = make(checkpoint, batch_size=7, nan_policy="nan")
    torch.testing.assert_close(of_bfloat16.scores(videos, prompts), reward.scores(videos, prompts))
    assert of_bfloat16(videos * torch.nan, prompts).dtype == torch.float32
    assert of_bfloat16.differentiable([], []).dtype == torch.float32
    assert torch.get_default_dtype() == torch.bfloat16


def test_a_scorers_calibration_is_in_its_rewards(model, videos, prompts):
    scorer = VideoScorer(model, device="cpu")
    marks = {name: getattr(scorer.fingerprint, name) for name in BOUND_TO}
    upside = AspectCalibration(knots=((1.0, 1.0), (2.0, 4.0), (5.0, 5.0)))
    calibrated = VideoScorer(model, device="cpu", calibration=Calibration({"Overall": upside}, **marks))
    expected = calibrated.score(videos, prompts, layout="BTCHW").values
    reward = make(calibrated)
    torch.testing.assert_close(reward.scores(videos, prompts), expected)
    assert (expected - make(model).scores(videos, prompts)).abs().max() > 0.1
    with pytest.raises(RewardError, match="a calibration has no gradients"):
        reward.differentiable(videos, prompts)


def test_a_prompt_that_no_tokenizer_reads_is_refused_before_it_meets_others(reward, videos):
    with pytest.raises(ValueError, match=r"expected a text for prompt 1, got '\\ud800' \(not UTF-8"):
        reward(videos[:2], ["a boat", "\ud800"])


def test_one_item_that_fails_in_a_batch_fails_alone():
    def run(items):
        if "bad" in items:
            raise ArithmeticError(f"bad among {len(items)}")
        return [item.upper() for item in items]

    futures = MicroBatcher(run, 8).submit(["a", "bad", "b"])
    assert [future.result(20) for future in (futures[0], futures[2])] == ["A", "B"]
    with pytest.raises(ArithmeticError, match="bad among 1"):
        futures[1].result(20)


def test_a_batch_of_too_few_results_leaves_nobody_waiting():
    with pytest.raises(RuntimeError, match="expected 1 results, got 0"):
        MicroBatcher(lambda items: [], 4).submit([1, 2, 3])[2].result(20)


def test_uint8_stays_uint8_until_it_is_prepared(model, videos, prompts, monkeypatch):
    reward = make(model, value_range=(0, 255))
    seen = []
    prepare = reward.scorer.prepare
    monkeypatch.setattr(reward.scorer, "prepare", lambda clip: seen.append(clip.dtype) or prepare(clip))
    reward((videos * 255).byte(), prompts)
    assert seen == [torch.uint8] * 4


def test_an_error_in_the_model_reaches_every_caller(model, videos, monkeypatch):
    reward = make(model)
    reward.load()

    def fail(*args):
        raise MemoryError("out of memory")

    monkeypatch.setattr(reward.scorer, "score_prepared", fail)
    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(reward, videos[:1], ["a boat"]) for _ in range(3)]:
            with pytest.raises(MemoryError, match="out of memory"):
                future.result(timeout=20)


def test_a_score_that_is_not_finite_is_a_failure_not_a_number(model, videos, monkeypatch):
    reward = make(model, nan_policy="nan")
    reward.load()
    infinite = lambda frames, prompts: {"mos": torch.full((len(frames), 5), torch.inf)}
    monkeypatch.setattr(reward.scorer, "score_prepared", infinite)
    assert reward(videos, "a boat").isnan().all()


def test_the_repr_names_model_and_settings(reward, checkpoint):
    assert "DOVERModel" in repr(reward)
    assert "BTCHW" in repr(reward)
