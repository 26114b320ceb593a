"""A scorer's numbers made to mean one group of raters' opinions: a monotone map an aspect, and how far to trust it.

A map never changes the order of two clips in its aspect (it may make them equal, where it is flat). It belongs to the
weights that it was fitted on: a scorer of others refuses it, and it is part of the fingerprint of one that uses it. How
one is fitted is in `dover_eval.evaluation.calibrate`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dover_eval.opinion import ASPECTS, MOS_MAX, MOS_MIN, SCORE_NAMES
from dover_eval.replacing import replacing

if TYPE_CHECKING:
    from dover_eval.scores import Fingerprint

Vector = NDArray[np.float64]
Source = Literal["logistic", "isotonic", "pairs", "none"]
#: What of a scorer's fingerprint a calibration belongs to.
BOUND_TO = (
    "weights",
    "configuration",
    "text_encoder",
    "num_frames",
    "frame_size",
    "windows",
    "views",
    "semantic_encoder",
)
FILE_NAME = "calibration.json"


class CalibrationError(ValueError):
    """A calibration that cannot be fitted, read or used; the message says what was found and what was expected."""


@dataclass(frozen=True)
class AspectCalibration:
    """What was learned of one score.

    knots: ((score, calibrated), ...), rising; lines between, constant outside; empty leaves scores as they are.
    source: what the map was fitted on. count: how many ratings or pairs. margin: half the width of the conformal
    interval, at `level`. tie_threshold: the largest difference that is a tie. reference: calibrated scores of the
    reference clips, sorted. The last three on the calibrated scale.
    """

    knots: tuple[tuple[float, float], ...] = ()
    source: Source = "none"
    count: int = 0
    margin: float | None = None
    level: float | None = None
    tie_threshold: float | None = None
    reference: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        knots = np.array(self.knots or [(1.0, 1.0), (5.0, 5.0)])
        if knots.ndim != 2 or knots.shape[1] != 2 or not np.isfinite(knots).all():
            raise CalibrationError(f"expected finite knots (score, calibrated), got {self.knots}")
        if (np.diff(knots[:, 0]) <= 0).any() or (np.diff(knots[:, 1]) < 0).any():
            raise CalibrationError("expected knots of rising scores and of calibrated scores that never fall")
        if knots[:, 1].min() < MOS_MIN or knots[:, 1].max() > MOS_MAX:
            raise CalibrationError(f"expected calibrated scores within {MOS_MIN:g}-{MOS_MAX:g}, got {self.knots}")
        if self.source not in get_args(Source):
            raise CalibrationError(f"expected a source of {', '.join(get_args(Source))}, got {self.source!r}")
        for name in ("count", "margin", "level", "tie_threshold"):
            found = getattr(self, name)
            is_number = isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found < math.inf
            if not is_number and (found is not None or name == "count"):
                raise CalibrationError(f"expected a {name} of at least 0, or none, got {found!r}")
        reference = np.array(self.reference, float)
        if not np.isfinite(reference).all() or (np.diff(reference) < 0).any():
            raise CalibrationError("expected finite reference scores that never fall")

    def __call__(self, scores: ArrayLike) -> Vector:
        """Calibrated scores; NaN stays NaN."""
        scores = np.asarray(scores, float)
        if not self.knots:
            return scores
        x, y = np.array(self.knots).T
        return np.interp(scores, x, y)


@dataclass(frozen=True)
class Calibration:
    """Calibrations by score name, and the weights and sampling that they belong to.

    Overall, where it has no map of its own, stays the mean of the four others, as calibrated, with the prompt's
    weights.
    """

    aspects: Mapping[str, AspectCalibration]
    weights: str
    configuration: str
    text_encoder: str
    num_frames: int
    frame_size: tuple[int, int]
    windows: int
    views: tuple[str, ...]
    semantic_encoder: str | None

    def __post_init__(self) -> None:
        if unknown := set(self.aspects) - set(SCORE_NAMES):
            raise CalibrationError(f"expected aspects of {', '.join(SCORE_NAMES)}, got {', '.join(sorted(unknown))}")

    def apply(self, values: Tensor, quality_weights: Tensor) -> Tensor:
        """Scores (N,5) as scored, with the prompts' weights (N,4), to calibrated ones (N,5), float32 in [1,5]."""
        calibrated = values.double().clone()
        for i, name in enumerate(SCORE_NAMES):
            if name in self.aspects:
                calibrated[:, i] = torch.from_numpy(self.aspects[name](values[:, i].double().numpy()))
        overall = SCORE_NAMES.index("Overall")
        if not self._has_map("Overall") and any(self._has_map(name) for name in ASPECTS):
            four = calibrated[:, : len(ASPECTS)]
            mean = (four * quality_weights.double()).sum(dim=1)
            calibrated[:, overall] = torch.minimum(torch.maximum(mean, four.amin(1)), four.amax(1))
        return calibrated.float().clamp(MOS_MIN, MOS_MAX)

    def intervals(self, values: Tensor) -> Tensor:
        """For calibrated scores (N,5), the conformal intervals (N,5,2) within [1,5]; NaN where none was fitted."""
        margins = torch.tensor([math.nan if m is None else m for m in self._each("margin")], dtype=torch.float32)
        return torch.stack([values - margins, values + margins], dim=-1).clamp(MOS_MIN, MOS_MAX)

    def percentiles(self, values: Tensor) -> Tensor:
        """For calibrated scores (N,5), the share of reference clips (0-100) at or below; NaN without a reference."""
        columns = []
        for i, reference in enumerate(self._each("reference")):
            places = np.searchsorted(np.array(reference), values[:, i].double().numpy() + 1e-6, side="right")
            share = 100 * places / len(reference) if reference else np.full(len(values), np.nan)
            columns.append(torch.from_numpy(np.where(np.isnan(values[:, i].numpy()), np.nan, share)))
        return torch.stack(columns, dim=1).float()

    def ties(self, first: Tensor, second: Tensor) -> Tensor:
        """Whether calibrated scores (N,5) of two sets differ by no more than a tie; never, without a threshold."""
        limits = torch.tensor([-1.0 if t is None else t for t in self._each("tie_threshold")], dtype=torch.float32)
        return (first - second).abs() <= limits

    def check(self, fingerprint: Fingerprint) -> None:
        """Raises CalibrationError where a scorer has other weights, other encoders or another sampling."""
        for name in BOUND_TO:
            mine, found = getattr(self, name), getattr(fingerprint, name)
            if mine != found:
                raise CalibrationError(f"this calibration was fitted with {name} {mine}, the scorer has {found}")

    @property
    def digest(self) -> str:
        """sha256 of all that it says."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    def save(self, path: str | Path) -> Path:
        """Write it: to the file, or as `calibration.json` into the folder, as beside a checkpoint."""
        path = _file(path)
        with replacing(path) as draft:
            draft.write_text(self.to_json() + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Raises CalibrationError for a file that is missing or is no calibration."""
        path = _file(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            aspects = {
                name: AspectCalibration(
                    **aspect | {"knots": tuple(map(tuple, aspect["knots"])), "reference": tuple(aspect["reference"])}
                )
                for name, aspect in found["aspects"].items()
            }
            tuples = {name: tuple(found[name]) for name in ("frame_size", "views")}
            return cls(**found | {"aspects": aspects} | tuples)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CalibrationError(f"{path}: expected a calibration ({error})") from error

    def _has_map(self, name: str) -> bool:
        return name in self.aspects and bool(self.aspects[name].knots)

    def _each(self, what: str) -> list[Any]:
        return [getattr(self.aspects.get(name, AspectCalibration()), what) for name in SCORE_NAMES]


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / FILE_NAME if path.is_dir() else path
