"""What a callback has seen: a record of each scored step, as dictionaries and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StepScores:
    """The scores of one step.

    step: counted from 0. timestep, sigma: the noise level that the scheduler had before and after the step; sigma is
    None where the scheduler has none. prompts: one a sample.
    values: (B, len(names)), NaN where there is a reason in `error`.
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
        """A dictionary a sample, fit for JSON; scores are None where there is an error."""
        rows = []
        for sample, prompt in enumerate(self.prompts):
            row: dict[str, Any] = {"step": self.step, "timestep": self.timestep, "sigma": self.sigma}
            row |= {"sample": sample, "Prompt": prompt}
            for name, value in zip(self.names, self.values[sample].tolist(), strict=True):
                row[name] = None if self.error else round(value, 6)
            row |= {"obtained": self.obtained, "rounding_error": self.rounding_error}
            row |= {f"{name}_seconds": round(seconds, 6) for name, seconds in self.seconds.items()}
            rows.append(row | {"error": self.error})
        return rows


class History(Sequence[StepScores]):
    """The scored steps of one call of a pipeline, in their order."""

    def __init__(self) -> None:
        self._steps: list[StepScores] = []

    def append(self, step: StepScores) -> None:
        self._steps.append(step)

    def __getitem__(self, index: Any) -> Any:
        return self._steps[index]

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[StepScores]:
        return iter(self._steps)

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary a step and sample, fit for JSON."""
        return [row for step in self._steps for row in step.to_dicts()]

    def plot(self, ax: Any = None, names: Sequence[str] | None = None) -> Any:
        """Scores over steps, a line a score and sample; needs matplotlib. Returns its axes.

        Args:
            ax: axes to draw into; by default those of a new figure.
            names: the scores to draw; by default all.

        Raises:
            ValueError: no step has been scored.
        """
        scored = [step for step in self._steps if step.error is None]
        if not scored:
            raise ValueError("nothing to plot: no step has been scored")
        if ax is None:
            from matplotlib.figure import Figure  # no global state, no window

            ax = Figure(figsize=(7, 4), layout="constrained").subplots()
        steps = [step.step + 1 for step in scored]
        for colour, name in enumerate(names or scored[0].names):
            columns = torch.stack([step.column(name) for step in scored])  # (steps, B)
            for sample in range(columns.shape[1]):
                ax.plot(
                    steps,
                    columns[:, sample],
                    marker="o",
                    color=f"C{colour}",
                    alpha=1 / (1 + sample / 2),
                    label=name if sample == 0 else None,
                )
        ax.set_xlabel("denoising steps done")
        ax.set_ylabel("score")
        ax.legend()
        return ax
