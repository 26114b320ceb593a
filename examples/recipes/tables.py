"""What the converters share: rows of Parquet and JSON files, and tables in this project's layouts."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dover_eval.opinion import SCORE_NAMES

PAIR_COLUMNS = ("prompt", "video_a", "video_b", "aspect", "label", "share", "content")


class SchemaError(ValueError):
    """A data set that is not laid out as its recipe knows it; the message says what was found."""


@dataclass(frozen=True)
class Preference:
    """One verdict on two clips. share: of the votes for A, in 0-1, where they were counted; label: A, B or tie."""

    prompt: str
    video_a: str
    video_b: str
    aspect: str
    label: str
    share: float | None = None


def from_votes(prompt: str, video_a: str, video_b: str, aspect: str, for_a: float, for_b: float) -> Preference | None:
    """The verdict of weighted votes; None where nobody voted."""
    if for_a + for_b == 0:
        return None
    share = for_a / (for_a + for_b)
    label = "tie" if for_a == for_b else "A" if share > 0.5 else "B"
    return Preference(prompt, video_a, video_b, aspect, label, round(share, 6))


def parquet_rows(folder: Path, pattern: str, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Rows of the Parquet files in `folder`, one batch in memory at a time, with all of `columns`."""
    import pyarrow.parquet as pq

    files = sorted(folder.glob(pattern))
    if not files:
        raise SchemaError(f"{folder}: no {pattern}; found {', '.join(sorted(p.name for p in folder.iterdir())[:8])}")
    for file in files:
        with pq.ParquetFile(file) as opened:
            check_columns(file, opened.schema_arrow.names, columns)
            for batch in opened.iter_batches(batch_size=16):
                yield from batch.to_pylist()


def json_rows(file: Path, columns: Iterable[str]) -> list[dict[str, Any]]:
    """The objects of a JSON array, each with all of `columns`."""
    if not file.is_file():
        raise SchemaError(f"{file}: no such file")
    rows = json.loads(file.read_text(encoding="utf-8"))
    for row in rows:
        check_columns(file, row, columns)
    return rows


def check_columns(file: Path, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise SchemaError where one is missing."""
    found = list(found)
    if lacking := [name for name in wanted if name not in found]:
        raise SchemaError(f"{file}: expected {', '.join(wanted)}; {', '.join(lacking)} not in {', '.join(found)}")


def write_pairs(path: Path, preferences: Iterable[Preference | None]) -> int:
    """A table of `kind: pairs`; pairs of one prompt are one content. The number of rows."""
    rows = [
        (p.prompt, p.video_a, p.video_b, p.aspect, p.label, "" if p.share is None else p.share, p.prompt)
        for p in preferences
        if p is not None
    ]
    return _write(path, PAIR_COLUMNS, rows)


def write_ratings(path: Path, rows: Iterable[tuple[str, str, Mapping[str, float]]]) -> int:
    """A table of `kind: ratings` from (clip, prompt, ratings by score name). The number of rows."""
    columns = ("video_name", "Prompt", *(f"{name}_MOS" for name in SCORE_NAMES), "content")
    told = [
        (video, prompt, *(ratings.get(name, "") for name in SCORE_NAMES), prompt) for video, prompt, ratings in rows
    ]
    return _write(path, columns, told)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    if not rows:
        raise SchemaError(f"{path}: nothing to write, the data set has no usable rows")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return len(rows)
