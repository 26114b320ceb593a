"""A model small enough for every test, with random weights asked for by name."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from dover_integrations.rewards import DoverReward

from dover_eval import DOVERConfig, DOVERModel
from dover_eval.config import MINILM, SIGNALS

SMALL = DOVERConfig(
    dims=(8, 16, 16, 16),
    depths=(2, 2, 2, 2),
    layer_scale_init=0.5,
    signals=SIGNALS,
    statistics=True,
    head_hidden=8,
    feature_dim=32,
    token_grid=(2, 2, 2),
    fusion_dim=32,
    mos_dim=16,
    text_encoder_name=MINILM,
    text_dim=384,
    num_frames=4,
    frame_size=(32, 32),
)
PROMPTS = ["a red bicycle in the rain", "two dogs on a beach", "snow falls on a roof", "a boat at night"]


@pytest.fixture(scope="session")
def model():
    """Random weights, scaled so that clips and prompts make a difference that a test can see."""
    torch.manual_seed(0)
    model = DOVERModel(None, config=SMALL)
    with torch.no_grad():
        for part in (model.fusion, model.mos_predictor):
            for parameter in part.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(3)
    return model.eval()


@pytest.fixture(scope="session")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def reward(model):
    return DoverReward(model, layout="BTCHW", value_range=(0, 1), device="cpu")


@pytest.fixture(scope="session")
def videos():
    """(4,5,3,40,48) float in 0-1, four clips that differ in brightness and noise."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(4, 5, 3, 40, 48, generator=generator)
    return (noise * torch.linspace(0.1, 1, 4).view(4, 1, 1, 1, 1)).clamp(0, 1)


@pytest.fixture(scope="session")
def prompts():
    return list(PROMPTS)
