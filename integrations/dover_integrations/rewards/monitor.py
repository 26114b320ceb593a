"""`RewardMonitor`: notices, while a policy trains, that the reward rises for the wrong reasons."""

from __future__ import annotations

import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dover_eval.opinion import SCORE_NAMES
from dover_integrations.rewards.frame_figures import frame_figures
from dover_integrations.rewards.reading import ClipReader
from dover_integrations.rewards.shaping import within_group_std

logger = logging.getLogger(__name__)

SIGNIFICANCE = 3.0
MOST_CLIPS = 16  # of a step that are looked at


@dataclass(frozen=True)
class Limits:
    """When a figure alarms, against its mean over the first steps.

    motion: least share that must be left. drift: most relative change of saturation and contrast, either way. grid:
    most growth, as a factor. score: change in MOS that counts as up or down. spread: least share of the standard
    deviation within groups. prompt: least prompt sensitivity; see `RewardMonitor.probe`.
    """

    motion: float = 0.5
    drift: float = 0.5
    grid: float = 2.0
    score: float = 0.05
    spread: float = 0.2
    prompt: float = 0.05


@dataclass
class _Series:
    """One figure over the run: the mean and variance of its first steps, and its last ones."""

    baseline: int
    first: list[float] = field(default_factory=list)
    last: deque[float] = field(default_factory=deque)

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            return
        if len(self.first) < self.baseline:
            self.first.append(value)
        else:
            self.last.append(value)

    def change(self) -> tuple[float, float] | None:
        """Mean of the first steps and of the last, where their difference is more than chance; else None."""
        if len(self.first) < self.baseline or len(self.last) < (self.last.maxlen or 1):
            return None
        before, now = float(np.mean(self.first)), float(np.mean(self.last))
        error = float(np.std(self.first, ddof=1)) * math.sqrt(1 / len(self.first) + 1 / len(self.last))
        return (before, now) if abs(now - before) > SIGNIFICANCE * error else None


def _new_series(baseline: int, window: int) -> _Series:
    return _Series(baseline, last=deque(maxlen=window))


class RewardMonitor:
    """Watches frames and scores of a run, and warns with its figures.

    >>> monitor = RewardMonitor(layout="BCTHW", value_range=(0, 1))
    >>> figures = monitor.update(videos, reward.scores(videos, prompts), groups=prompts)   # each step
    >>> figures |= monitor.probe(reward, videos, prompts)                                  # now and then
    >>> wandb.log(figures)

    Args:
        layout, value_range: of the videos, as in `DoverReward`.
        baseline: the first steps, from which changes are counted.
        window: the last steps, whose mean is compared with the baseline; a change must also be larger than the
            baseline's own scatter explains.
        limits: when to alarm.
    """

    def __init__(
        self,
        *,
        layout: str,
        value_range: tuple[float, float],
        baseline: int = 10,
        window: int = 5,
        limits: Limits | None = None,
    ) -> None:
        if baseline < 2 or window < 1:
            raise ValueError(f"expected baseline >= 2 and window >= 1, got {baseline} and {window}")
        self._reader = ClipReader(layout, value_range)
        self.limits = limits or Limits()
        self.alarms: dict[str, str] = {}
        self._series: dict[str, _Series] = defaultdict(partial(_new_series, baseline, window))

    def update(
        self, videos: Any, scores: Tensor, groups: Sequence[Hashable] | Tensor | None = None
    ) -> dict[str, float]:
        """Take in one step: B clips or files, their five scores (B,5), and which of them belong to one prompt.

        Returns the step's figures and an `alarm/...` of 0 or 1 for each rule, ready to log. A rule that starts to
        hold is logged as a warning with its figures and stands in `alarms` while it holds.
        """
        if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[1] != len(SCORE_NAMES):
            found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"expected scores (B,{len(SCORE_NAMES)}) as a tensor, got {found}")
        clips, count = self._reader.pixels(videos, MOST_CLIPS)
        if count != len(scores):
            raise ValueError(f"expected scores of the {count} videos, got {len(scores)} rows")
        rows = [frame_figures(clip) for clip in clips]
        figures = {name: _mean([row[name] for row in rows]) for name in (rows[0] if rows else ())}
        means = scores.detach().float().nanmean(dim=0).tolist()
        figures |= {f"score/{name}": mean for name, mean in zip(SCORE_NAMES, means, strict=True)}
        if groups is not None:
            figures["group_std"] = within_group_std(scores[:, SCORE_NAMES.index("Overall")].detach().float(), groups)
        return self._take(figures)

    def probe(
        self, reward: Callable[[Any, Sequence[str]], Tensor], videos: Any, prompts: Sequence[str]
    ) -> dict[str, float]:
        """Score the same clips against each other's prompts: a reward that does not change is blind to the prompt.

        `prompt_sensitivity` is the mean absolute change, divided by the rewards' standard deviation over the clips;
        `prompt_gap` is the mean of matched less shuffled, which should be above 0. Costs two rewards a clip, and
        needs at least two different prompts. `reward` is a `DoverReward`, a client, or any such callable.
        """
        shuffled = _derange(list(prompts))
        matched, other = reward(videos, list(prompts)), reward(videos, shuffled)
        change = (matched - other)[torch.tensor([a != b for a, b in zip(prompts, shuffled, strict=True)])]
        spread = matched[matched.isfinite()].std(correction=0).clamp_min(1e-6)
        sensitivity = change.abs().nanmean() / spread
        return self._take({"prompt_sensitivity": sensitivity.item(), "prompt_gap": change.nanmean().item()})

    def state_dict(self) -> dict[str, Any]:
        """Figures so far, for a checkpoint; plain lists."""
        return {name: {"first": list(s.first), "last": list(s.last)} for name, s in self._series.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; alarms that hold are raised again at the next step."""
        self._series.clear()
        self.alarms.clear()
        for name, values in state.items():
            self._series[name].first.extend(values["first"])
            self._series[name].last.extend(values["last"])

    def _take(self, figures: dict[str, float]) -> dict[str, float]:
        for name, value in figures.items():
            self._series[name].add(value)
        found = {name: rule(self) for name, rule in _RULES.items()}
        for name, message in found.items():
            if message and name not in self.alarms:
                logger.warning("reward hacking? %s: %s", name, message)
        self.alarms = {name: message for name, message in found.items() if message}
        return figures | {f"alarm/{name}": float(bool(message)) for name, message in found.items()}

    def _change(self, name: str) -> tuple[float, float] | None:
        return self._series[name].change() if name in self._series else None


def _ratio_rule(name: str, what: str, holds: Callable[[float, Limits], bool]) -> Callable[[RewardMonitor], str]:
    def rule(monitor: RewardMonitor) -> str:
        change = monitor._change(name)
        if change is None or change[0] == 0 or not holds(change[1] / change[0], monitor.limits):
            return ""
        return f"{what}, {name} {change[1]:.4g} against {change[0]:.4g} in the first steps"

    return rule


def _diverging(monitor: RewardMonitor) -> str:
    def moved(name: str) -> float:
        change = monitor._change(f"score/{name}")
        return 0.0 if change is None else change[1] - change[0]

    rise, limit = moved("Overall"), monitor.limits.score
    falls = {name: moved(name) for name in ("Alignment", "Temporal") if moved(name) < -limit}
    if rise <= limit or not falls:
        return ""
    return f"Overall rose by {rise:.3f} while " + " and ".join(f"{k} fell by {-v:.3f}" for k, v in falls.items())


def _prompt_blind(monitor: RewardMonitor) -> str:
    if "prompt_sensitivity" not in monitor._series:
        return ""
    series = monitor._series["prompt_sensitivity"]
    if not (values := [*series.first, *series.last]):
        return ""
    latest = values[-1]
    if latest >= monitor.limits.prompt:
        return ""
    return f"other prompts change the reward by {latest:.2%} of its scatter over clips"


_RULES: dict[str, Callable[[RewardMonitor], str]] = {
    "motion": _ratio_rule("motion", "the clips are freezing", lambda r, limits: r < limits.motion),
    "saturation": _ratio_rule("saturation", "colours drift", lambda r, limits: abs(r - 1) > limits.drift),
    "contrast": _ratio_rule("contrast", "contrast drifts", lambda r, limits: abs(r - 1) > limits.drift),
    "grid": _ratio_rule("grid", "a grid grows on the frames", lambda r, limits: r > limits.grid),
    "aspects": _diverging,
    "group_std": _ratio_rule("group_std", "samples of a prompt grow alike", lambda r, limits: r < limits.spread),
    "prompt": _prompt_blind,
}


def _mean(values: list[float]) -> float:
    values = [value for value in values if math.isfinite(value)]
    return float(np.mean(values)) if values else math.nan


def _derange(prompts: list[str]) -> list[str]:
    """Another's prompt for each, or for as many as can be: sorted prompts, turned by the largest group's size."""
    if len(set(prompts)) < 2:
        raise ValueError(f"expected at least two different prompts to shuffle, got {set(prompts)}")
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    turn = max(prompts.count(prompt) for prompt in set(prompts))
    shuffled = list(prompts)
    for place, i in enumerate(order):
        shuffled[i] = prompts[order[(place + turn) % len(order)]]
    return shuffled
