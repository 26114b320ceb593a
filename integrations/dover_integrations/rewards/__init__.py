"""Rewards for fine-tuning video generators.

`DoverReward` is the whole interface; beside it stand one small module for each framework, functions that shape
rewards into advantages, and a monitor that watches for reward hacking. Names are imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dover_integrations.rewards.core import DoverReward as DoverReward
    from dover_integrations.rewards.engine import RewardError as RewardError
    from dover_integrations.rewards.monitor import Limits as Limits
    from dover_integrations.rewards.monitor import RewardMonitor as RewardMonitor
    from dover_integrations.rewards.shaping import RunningNorm as RunningNorm
    from dover_integrations.rewards.shaping import aspect_advantages as aspect_advantages
    from dover_integrations.rewards.shaping import clip_advantages as clip_advantages
    from dover_integrations.rewards.shaping import group_advantages as group_advantages

_HOME = {
    "DoverReward": "core",
    "Limits": "monitor",
    "RewardError": "engine",
    "RewardMonitor": "monitor",
    "RunningNorm": "shaping",
    "aspect_advantages": "shaping",
    "clip_advantages": "shaping",
    "group_advantages": "shaping",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
