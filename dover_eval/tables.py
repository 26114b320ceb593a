"""Tables as people keep them: CSV, JSON, JSON lines and Parquet, with errors that say where."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, str]


class TableError(ValueError):
    """A table that cannot be used; the message names the file, the line, what was found and what was expected."""


def read_rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, Row]]:
    """(line, row) of a .csv, .jsonl, .json or .parquet table that has these columns; cells are stripped texts."""
    records = _records(path)
    found = [name for name in records[0] if name is not None] if records else []
    if not records:
        raise TableError(f"{path}: a table without rows")
    if lacking := [column for column in columns if column not in found]:
        raise TableError(
            f"{path}: expected the columns {', '.join(columns)}; {', '.join(lacking)} not in {', '.join(found)}"
        )
    cell = lambda value: "" if value is None or value != value else str(value).strip()
    first = 2 if path.suffix == ".csv" else 1
    rows = []
    for line, record in enumerate(records, start=first):
        if None in record or set(record) != set(found) or (path.suffix == ".csv" and None in record.values()):
            raise TableError(f"{path}, line {line}: expected {len(found)} cells, as in the header")
        rows.append((line, {name: cell(value) for name, value in record.items()}))
    return rows


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            try:
                return pyarrow.parquet.read_table(path).to_pylist()
            except pyarrow.ArrowException as error:
                raise TableError(f"{path}: no whole Parquet file ({error})") from error
        if path.suffix == ".json":
            return _objects(path, json.loads(read_text(path)))
        if path.suffix == ".jsonl":
            return _objects(path, _json_lines(path))
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except ImportError as error:
        raise TableError(f"{path}: Parquet needs pyarrow: pip install 'dover-eval[evaluation]'") from error
    except (OSError, csv.Error, json.JSONDecodeError) as error:
        raise TableError(f"{path}: cannot be read ({error})") from error
    raise TableError(f"{path}: expected a .csv, .jsonl, .json or .parquet table")


def _json_lines(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                cut = " (cut off?)" if error.pos >= len(line.rstrip()) or "Unterminated" in error.msg else ""
                raise TableError(f"{path}, line {number}: no JSON{cut}: {error}") from error
    return rows


def _objects(path: Path, found: Any) -> list[dict[str, Any]]:
    if not (isinstance(found, list) and all(isinstance(record, dict) for record in found)):
        raise TableError(f"{path}: expected objects with a value for each column")
    return found


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read ({error})") from error


def text(path: Path, line: int, row: Row, column: str) -> str:
    if not row[column]:
        raise TableError(f"{path}, line {line}: an empty {column}")
    return row[column]


def number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TableError(f"{path}, line {line}: expected a number in {column}, found {cell!r}")
    return value


def choice(path: Path, line: int, column: str, cell: str, choices: Mapping[str, Any]) -> Any:
    if cell not in choices:
        raise TableError(f"{path}, line {line}: expected {', '.join(choices)} in {column}, found {cell!r}")
    return choices[cell]
