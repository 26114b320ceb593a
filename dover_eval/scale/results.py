"""Results files: one schema, the rows of `VideoScores.to_dicts`, in four formats; each appears whole or not at all."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dover_eval.replacing import replacing

Row = dict[str, Any]

# Names and their order; all others are numbers, None where there is an error.
TEXTS = ("video_name", "Prompt", "error", "fingerprint")
SCORES = ("Traditional", "Alignment", "Aesthetic", "Temporal", "Overall")
NUMBERS = (
    *SCORES,
    "aesthetic_score",
    "technical_score",
    "weight_Traditional",
    "weight_Alignment",
    "weight_Aesthetic",
    "weight_Temporal",
)
COLUMNS = (*TEXTS[:2], *NUMBERS, *TEXTS[2:])
SUFFIXES = (".parquet", ".jsonl", ".csv", ".json")
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
