"""Tiny pipelines, each built once a session, and scorers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from tests.integrations.diffusers import tiny as eight
from tests.integrations.diffusers import tiny_rest as rest


@cache
def _build(name: str) -> eight.Tiny:
    torch.manual_seed(0)
    return getattr(eight, name, None)() if hasattr(eight, name) else getattr(rest, name)()


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], eight.Tiny]:
    """`tiny("wan")`: the pipeline that the function of that name builds."""
    return _build
