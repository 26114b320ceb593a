"""What the tests of rewards share."""

import multiprocessing

import pytest
import torch
from dover_integrations.rewards import DoverReward

PROMPTS = ["a red bicycle in the rain", "two dogs on a beach", "snow falls on a roof", "a boat at night"]


@pytest.fixture(scope="session")
def model(small_model):
    return small_model


def make(model, **settings):
    """Clips as floats in 0-1, unless the settings say otherwise."""
    return DoverReward(model, **({"layout": "BTCHW", "value_range": (0, 1), "device": "cpu"} | settings))


@pytest.fixture
def reward(model):
    return make(model)


@pytest.fixture(scope="session")
def videos():
    """(4,5,3,40,48) float in 0-1, four clips that differ in brightness and noise."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(4, 5, 3, 40, 48, generator=generator)
    return (noise * torch.linspace(0.1, 1, 4).view(4, 1, 1, 1, 1)).clamp(0, 1)


@pytest.fixture(scope="session")
def prompts():
    return list(PROMPTS)


@pytest.fixture
def in_forked_child():
    """Calls a function in a child that inherits every object as it is; what is sent to a pool is made anew there."""

    def call(function):
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        child = context.Process(target=lambda: answers.put(function()))
        child.start()
        child.join(60)
        if child.is_alive():
            child.kill()
            pytest.fail("the child hangs")
        assert child.exitcode == 0
        return answers.get()

    return call
