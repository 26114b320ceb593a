"""Results files: one schema, the rows of `VideoScores.to_dicts`, in four formats; written whole or not at all, and read
back with errors that say where."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dover_eval.opinion import ASPECTS, MOS_MAX, MOS_MIN, SCORE_NAMES
from dover_eval.replacing import replacing
from dover_eval.tables import TableError, number, read_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]

# Names and their order; all others are numbers, None where there is an error.
TEXTS = ("video_name", "Prompt", "error", "fingerprint")
NUMBERS = (*SCORE_NAMES, "aesthetic_score", "technical_score", *(f"weight_{aspect}" for aspect in ASPECTS))
COLUMNS = (*TEXTS[:2], *NUMBERS, *TEXTS[2:])
ROW_GROUP = 10_000


def write_results(rows: Iterable[Row], path: Path, draft: Path | None = None) -> None:
    """Write rows in the format that the name's end tells, in bounded memory; until they are whole, as `draft`.

    Raises OSError where the disk is full or the folder is not to be written; what was at `path` is then still there.
    """
    with replacing(path, draft) as whole:
        if path.suffix == ".parquet":
            _write_parquet(rows, whole)
            return
        with whole.open("w", newline="", encoding="utf-8") as file:
            if path.suffix == ".csv":
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            elif path.suffix == ".json":
                separators = itertools.chain(["[\n"], itertools.repeat(",\n"))
                file.writelines(next(separators) + json.dumps(row, indent=1, ensure_ascii=False) for row in rows)
                file.write("\n]\n")
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(rows: Iterable[Row], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [(name, pyarrow.string() if name in TEXTS else pyarrow.float64()) for name in COLUMNS],
        metadata={"rows": "dover-eval scores"},
    )
    left = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(left, ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


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
        import numpy as np

        return np.array([error is None for error in self.errors], dtype=bool)


def read_results(path: Path) -> Results:
    """A results file: .parquet, .jsonl, .csv or .json.

    Raises TableError, with the file, the line, what was found and what was expected: for a file that is empty, cut
    off, or lacks a column, for a row with neither scores nor an error, for half of a surrogate pair, which JSON can
    bring and no page can hold, and for scores of several fingerprints.
    """
    import numpy as np

    rows = read_rows(path, ("video_name", "Prompt", *SCORE_NAMES, "error", "fingerprint"))
    if len(prints := sorted({row["fingerprint"] for _, row in rows})) > 1:
        raise TableError(f"{path}: scores of {len(prints)} fingerprints ({', '.join(prints)}), expected one")
    scores = np.full((len(rows), len(SCORE_NAMES)), math.nan)
    for i, (place, row) in enumerate(rows):
        for name in TEXTS:
            try:
                row[name].encode()
            except UnicodeEncodeError as error:
                raise TableError(f"{place}: {name} {row[name]!r} is not UTF-8 ({error.reason})") from error
        if row["error"]:
            continue
        for column, name in enumerate(SCORE_NAMES):
            value = number(place, name, row[name])
            if not MOS_MIN <= value <= MOS_MAX:
                raise TableError(f"{place}: expected {name} from {MOS_MIN:g} to {MOS_MAX:g}, found {value}")
            scores[i, column] = value
    return Results(
        path=path,
        videos=tuple(row["video_name"] for _, row in rows),
        prompts=tuple(row["Prompt"] for _, row in rows),
        scores=scores,
        errors=tuple(row["error"] or None for _, row in rows),
        fingerprint=prints[0],
    )
