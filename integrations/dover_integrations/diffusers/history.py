"""What a callback has seen: a record of each scored step, as dictionaries and as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StepScores:
    """The scores of one step.

    step: counted from 0. timestep, sigma: the noise level that the scheduler had before and after the step; sigma is
    None where the scheduler has none. prompts: one a sample.
    values: (B, len(names)); where there is a reason in `error`, NaN for the samples without scores.
    obtained: what was decoded: "final latents", "noisy latents", or the clean estimate's method: "scheduler", "model
    output" or "finite difference". rounding_error: see `CleanEstimate.error`, in the scale of the latents.
    seconds: of "estimate", "decode" and "score".
    """

    step: int
    timestep: float
    sigma: float | None
    prompts: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor
    obtained: str
    rounding_error: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def column(self, name: str) -> Tensor:
        """(B,) of the score called `name`."""
        if name not in self.names:
            raise ValueError(f"expected one of {', '.join(self.names)}, got {name!r}")
        return self.values[:, self.names.index(name)]

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary a sample, fit for JSON; None for a score that the sample does not have."""
        rows = []
        for sample, prompt in enumerate(self.prompts):
            row: dict[str, Any] = {"step": self.step, "timestep": self.timestep, "sigma": self.sigma}
            row |= {"sample": sample, "Prompt": prompt}
            for name, value in zip(self.names, self.values[sample].tolist(), strict=True):
                row[name] = round(value, 6) if math.isfinite(value) else None
            row |= {"obtained": self.obtained, "rounding_error": self.rounding_error}
            row |= {f"{name}_seconds": round(seconds, 6) for name, seconds in self.seconds.items()}
            rows.append(row | {"error": self.error})
        return rows


def plot_history(history: Sequence[StepScores], ax: Any = None, names: Sequence[str] | None = None) -> Any:
    """See `DoverCallback.plot`."""
    scored = [step for step in history if step.error is None]
    if not scored:
        raise ValueError("nothing to plot: no step has been scored")
    if ax is None:
        from matplotlib.figure import Figure  # no global state, no window

        ax = Figure(figsize=(7, 4), layout="constrained").subplots()
    steps = [step.step + 1 for step in scored]
    for colour, name in enumerate(names or scored[0].names):
        columns = torch.stack([step.column(name) for step in scored])  # (steps, B)
        for sample in range(columns.shape[1]):
            label = name if sample == 0 else None
            fade = 1 / (1 + sample / 2)
            ax.plot(steps, columns[:, sample], marker="o", color=f"C{colour}", alpha=fade, label=label)
    ax.set_xlabel("denoising steps done")
    ax.set_ylabel("score")
    ax.legend()
    return ax
