"""Tiny pipelines, each built once a session, and scorers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import diffusers
import pytest
import torch
from packaging.version import Version

from tests.integrations.diffusers import tiny as tiny_pipelines
from tests.integrations.diffusers import tiny_rest as rest

#: Since when diffusers has what the oldest that is supported has not.
SINCE = {"ltx2": "0.38", "anyflow": "0.39", "cosmos25": "0.39", "motif": "0.39"}


def _build(name: str) -> tiny_pipelines.Tiny:
    if Version(diffusers.__version__) < Version(SINCE.get(name, "0")):
        pytest.skip(f"diffusers {diffusers.__version__} has no pipeline for {name}")
    torch.manual_seed(0)
    return getattr(tiny_pipelines if hasattr(tiny_pipelines, name) else rest, name)()


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], tiny_pipelines.Tiny]:
    """`tiny("wan")`: the pipeline that the function of that name builds."""
    return cache(_build)


@pytest.fixture
def tiny_in_half() -> Callable[[str], tiny_pipelines.Tiny]:
    """The same in bfloat16, and each time anew: its weights are rounded, which others must not share."""

    def build(name: str) -> tiny_pipelines.Tiny:
        tiny = _build(name)
        tiny.pipe.to(torch.bfloat16)
        tiny.per_prompt = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tiny.per_prompt.items()}
        return tiny

    return build
