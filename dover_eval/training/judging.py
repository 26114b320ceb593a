"""What the validation makes of scores: its figures, and the one that the best checkpoint is chosen by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dover_eval.evaluation import EvaluationReport, Item, RatingMetrics, evaluate, wanted_clips
from dover_eval.opinion import SCORE_NAMES
from dover_eval.training.splits import SplitError


def judge(
    validation: Sequence[Item],
    keys: Sequence[tuple[str, str]],
    scores: Tensor,
    *,
    resamples: int,
    fingerprint: str | None = None,
) -> EvaluationReport:
    """The validation's figures for scores (N,5) of its (path, prompt)."""
    values = {key: dict(zip(SCORE_NAMES, row, strict=True)) for key, row in zip(keys, scores.tolist(), strict=True)}
    return evaluate(validation, values, benchmark="validation", fingerprint=fingerprint, resamples=resamples)


def quality(report: EvaluationReport) -> float:
    """What the best checkpoint is chosen by, 1 at best: (SROCC + PLCC) / 2, averaged over the score names with ratings.

    Where the validation has preferences alone, the accuracy without ties, averaged likewise. A figure without a value,
    as of scores that are all the same, counts 0.
    """
    values = [0.0 if math.isnan(value) else value for value in _qualities(report)]
    return sum(values) / len(values) if values else 0.0


def figures(report: EvaluationReport) -> dict[str, float]:
    """Each figure by name, for the log."""
    told: dict[str, float] = {}
    for name, found in report.aspects.items():
        if isinstance(found, RatingMetrics):
            told |= {f"{name}_srocc": found.srocc.value, f"{name}_plcc": found.plcc.value}
        else:
            told |= {f"{name}_accuracy": found.without_ties.value}
    return told


def check_judgeable(validation: Sequence[Item]) -> None:
    """Raise SplitError where `quality` would be 0 of whatever scores, and so would choose the first checkpoint."""
    keys = wanted_clips(validation)
    # No two clips alike: a figure that has no value here never has one.
    scores = torch.arange(len(keys), dtype=torch.float64)[:, None].expand(-1, len(SCORE_NAMES))
    report = judge(validation, keys, scores, resamples=0)
    if all(math.isnan(value) for value in _qualities(report)):
        reasons = [f"{name}: {reason}" for name, reason in report.left_out.items()]
        raise SplitError(
            f"the validation has {len(validation)} rows, and nothing could be judged on it "
            f"({'; '.join(reasons) or 'no ratings and no verdicts'}). Raise validation_share, name validation tables, "
            "or set validation_share to 0"
        )


def _qualities(report: EvaluationReport) -> list[float]:
    """What `quality` is the mean of, NaN where a figure has no value."""
    ratings = [found.challenge.value for found in report.aspects.values() if isinstance(found, RatingMetrics)]
    pairs = [found.without_ties.value for found in report.aspects.values() if not isinstance(found, RatingMetrics)]
    return ratings or pairs
