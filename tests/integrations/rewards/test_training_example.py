"""The training example, small: both ways of training raise the reward on noise that they have not seen."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from dover_integrations.rewards import DoverReward

EXAMPLE = Path(__file__).parents[3] / "examples" / "rl_flow_grpo_tiny.py"


@pytest.fixture(scope="module")
def example():
    import sys

    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def video_reward(small_model):
    return DoverReward(small_model, layout="BCTHW", value_range=(-1, 1), device="cpu")


QUICK = {"sampling_steps": 4, "held_out": 18}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("backprop", {"backprop_steps": 25}),
        ("grpo", {"grpo_steps": 25}),
    ],
    ids=["backprop", "grpo"],
)
def test_training_raises_the_held_out_reward(example, video_reward, method, settings):
    # Of three seeds, all of which rise, the one that rises most surely in so few steps.
    found = example.run(method, video_reward, example.Settings(**QUICK, **settings), seed=1)
    gain = found["after"] - found["before"]
    assert gain > 2 * found["standard_error_of_clips"]
    assert len(found["history"]) == settings[f"{method}_steps"]
    assert found["monitor_last"]["motion"] > 0
    assert found["monitor_last"]["prompt_sensitivity"] > 0


def test_without_training_nothing_changes(example, video_reward):
    settings = example.Settings(**QUICK, grpo_steps=1, grpo_lr=0.0)
    found = example.run("grpo", video_reward, settings, seed=0)
    assert found["after"] == found["before"]


def test_stochastic_sampling_is_sampling_of_the_flow_where_there_is_no_noise(example, video_reward):
    wan = example.TinyWan(0, video_reward.scorer.model.text_encoder)
    settings = example.Settings(sampling_steps=3, noise=1e-6)
    noise = torch.randn(2, example.CHANNELS, 2, 4, 4)
    prompts = list(example.PROMPTS[:2])
    latents = noise
    with torch.no_grad():
        for i in range(3):
            latents, _ = example.step_distribution(wan, latents, prompts, i, settings)
        torch.testing.assert_close(latents, example.sample(wan, noise, prompts, 3))


def test_the_summary_has_the_standard_error_over_seeds(example):
    found = example.summary([{"before": 1.0, "after": 2.0}, {"before": 1.0, "after": 4.0}])
    assert (found["before"], found["after"], found["gain"]) == (1, 3, 2)
    assert found["gain_standard_error"] == pytest.approx(1)
