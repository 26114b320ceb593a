"""What a scorer is worth against people: correlations with ratings, accuracy on preferences, on known benchmarks."""

from dover_eval.evaluation.benchmarks import BENCHMARKS, Benchmark, Item, JudgedPair, RatedClip
from dover_eval.evaluation.metrics import (
    Interval,
    PairMetrics,
    RatingMetrics,
    fit_logistic,
    pair_metrics,
    rating_metrics,
)
from dover_eval.evaluation.report import ClipIndex, EvaluationReport, evaluate, match_clips, read_scores, wanted_clips
from dover_eval.tables import TableError

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "ClipIndex",
    "EvaluationReport",
    "Interval",
    "Item",
    "JudgedPair",
    "PairMetrics",
    "RatedClip",
    "RatingMetrics",
    "TableError",
    "evaluate",
    "fit_logistic",
    "match_clips",
    "pair_metrics",
    "rating_metrics",
    "read_scores",
    "wanted_clips",
]
