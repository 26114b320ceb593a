"""Results files as `dover-eval score --output` writes them, read back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dover_eval.models.heads import MOS_MAX, MOS_MIN, SCORE_NAMES
from dover_eval.tables import TableError, number, read_rows

COLUMNS = ("video_name", "Prompt", *SCORE_NAMES, "error", "fingerprint")


@dataclass(frozen=True, eq=False)
class Results:
    """N scored clips of one fingerprint.

    videos, prompts: names (paths as they were scored) and prompts. scores: (N,5) float64 in [1,5], columns
    `SCORE_NAMES`; a row of NaN where `errors` has a reason.
    """

    path: Path
    videos: tuple[str, ...]
    prompts: tuple[str, ...]
    scores: NDArray[np.float64]
    errors: tuple[str | None, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        count = len(self.videos)
        if self.scores.shape != (count, len(SCORE_NAMES)):
            raise ValueError(f"expected scores ({count}, {len(SCORE_NAMES)}), got {self.scores.shape}")
        for name in ("prompts", "errors"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"expected {count} {name}, got {len(getattr(self, name))}")

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def scored(self) -> NDArray[np.bool_]:
        """(N,), true where there are scores."""
        return np.array([error is None for error in self.errors], dtype=bool)


def read_results(path: Path) -> Results:
    """A results file: .parquet, .jsonl, .csv or .json.

    Raises TableError, with the file, the line, what was found and what was expected: for a file that is empty, cut
    off, or lacks a column, for a row with neither scores nor an error, and for scores of several fingerprints.
    """
    rows = read_rows(path, COLUMNS)
    if len(prints := sorted({row["fingerprint"] for _, row in rows})) > 1:
        raise TableError(f"{path}: scores of {len(prints)} fingerprints ({', '.join(prints)}), expected one")
    scores = np.full((len(rows), len(SCORE_NAMES)), math.nan)
    for i, (line, row) in enumerate(rows):
        if row["error"]:
            continue
        for column, name in enumerate(SCORE_NAMES):
            value = number(path, line, name, row[name])
            if not MOS_MIN <= value <= MOS_MAX:
                raise TableError(f"{path}, line {line}: expected {name} from {MOS_MIN:g} to {MOS_MAX:g}, found {value}")
            scores[i, column] = value
    return Results(
        path=path,
        videos=tuple(row["video_name"] for _, row in rows),
        prompts=tuple(row["Prompt"] for _, row in rows),
        scores=scores,
        errors=tuple(row["error"] or None for _, row in rows),
        fingerprint=prints[0],
    )
