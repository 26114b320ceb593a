"""Tables as people keep them: CSV, JSON, JSON lines and Parquet, with errors that say where."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

LONGEST_CELL = 1 << 26  # letters of a CSV
SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")


class TableError(ValueError):
    """A table that cannot be used; the message names the file, the line, what was found and what was expected."""


def read_rows(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[tuple[str, dict[str, str]]]:
    """(place, row) of a .csv, .jsonl, .json or .parquet table that has these columns, names and cells stripped texts. A
    place is the file and the line, as errors name it.

    optional: columns that may be missing, but not be there in other capitals, which would leave them out in silence.

    Raises TableError, also for a row whose columns are not the first one's.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise TableError(f"{path}: expected a .csv, .jsonl, .json or .parquet table")
    if path.is_dir():
        raise TableError(f"{path}: a folder, expected a table")
    try:
        with path.open("rb") as raw:
            stream = stream_rows(str(path), raw)
            found: list[str] = [name.strip() for name in next(stream, [])]
            records = list(stream)
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read ({error})") from error
    if not records:
        raise TableError(f"{path}: a table without rows")
    _check_columns(str(path), found)
    in_capitals = {name.casefold(): name for name in found}
    for column in (*columns, *optional):
        if column not in found and (other := in_capitals.get(column.casefold())):
            raise TableError(f"{path}: expected the column {column}, found {other}")
    if lacking := [column for column in columns if column not in found]:
        raise TableError(
            f"{path}: expected the columns {', '.join(columns)}; {', '.join(lacking)} not in {', '.join(found)}"
        )
    rows = []
    for line, named in records:
        place = f"{path}, line {line}"
        record = {name.strip(): value for name, value in named.items()}
        if set(record) != set(found):
            raise TableError(f"{place}: expected {len(found)} cells, as in the header")
        texts = {name: text_cell(place, name, record[name]) for name in columns}
        rows.append((place, {name: cell(value) for name, value in record.items()} | texts))
    return rows


def stream_rows(name: str, raw: IO[bytes], only: Set[str] | None = None) -> Iterator[Any]:
    """First the names of a table's columns, then (line, row), in bounded memory but for .json; a table without rows
    may have no columns either. The row of a CSV that is cut short lacks the columns that it has no cell for.

    name: its ending tells what `raw` holds; whatever is none of `SUFFIXES` is a CSV. only: columns of a Parquet table
    that are wanted. Raises TableError, besides what reading `raw` raises.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(name, raw, only)
    file = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
    if suffix == ".jsonl":
        return _json_rows(name, _json_lines(name, file))
    if suffix == ".json":
        return _json_rows(name, enumerate(_json_list(name, file), start=1))
    return _csv_rows(name, file)


def _csv_rows(name: str, file: io.TextIOWrapper) -> Iterator[Any]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))  # of the process, and less than results may hold
    reader = csv.DictReader(file, strict=True)
    try:
        columns = list(reader.fieldnames or [])
        named = [column for column in columns if column.strip()]  # spreadsheets leave columns without a name behind
        _check_columns(name, named)
        yield named
        for row in reader:
            if None in row:  # the rest of a text that holds a comma
                raise TableError(
                    f"{name}, line {reader.line_num}: {len(columns) + len(row[None])} cells for {len(columns)} "
                    'columns; a text with a comma needs quotes, "a dog, running"'
                )
            yield reader.line_num, {column: row[column] for column in named if row[column] is not None}
    except csv.Error as error:
        raise TableError(f"{name}, line {reader.reader.line_num}: no CSV ({error})") from error


def _check_columns(name: str, columns: list[str]) -> None:
    if doubled := {column for column in columns if columns.count(column) > 1}:
        raise TableError(f"{name}: the columns {', '.join(sorted(doubled))} are there twice")


def _json_lines(name: str, file: io.TextIOWrapper) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(file, start=1):
        if text.strip():
            try:
                yield line, json.loads(text)
            except json.JSONDecodeError as error:
                cut = " (cut off?)" if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg else ""
                raise TableError(f"{name}, line {line}: no JSON{cut}: {error}") from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists within lists
                raise TableError(f"{name}, line {line}: cannot be read ({error})") from error


def _json_list(name: str, file: io.TextIOWrapper) -> list[Any]:
    try:
        found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{name}: cannot be read ({error})") from error
    if not isinstance(found, list):
        raise TableError(f"{name}: expected a list of objects with a value for each column")
    return found


def _json_rows(name: str, records: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    columns: list[str] | None = None
    for line, row in records:
        if not isinstance(row, dict):
            raise TableError(f"{name}, line {line}: expected an object with a value for each column")
        if columns is None:
            columns = list(row)
            yield columns
        yield line, row


def _parquet_rows(name: str, raw: IO[bytes], only: Set[str] | None) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TableError(f"{name}: Parquet needs pyarrow: pip install 'dover-eval[parquet]'") from error
    try:
        table = pyarrow.parquet.ParquetFile(raw)
        columns = table.schema_arrow.names
        _check_columns(name, columns)
        yield columns
        line = 0
        for batch in table.iter_batches(columns=[column for column in columns if only is None or column in only]):
            for row in batch.to_pylist():
                line += 1
                yield line, row
    except pyarrow.ArrowException as error:
        raise TableError(f"{name}: no whole Parquet file ({error})") from error


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read ({error})") from error


def cell(value: Any) -> str:
    """A cell's text, stripped; empty for what is missing."""
    return "" if value is None or value != value else str(value).strip()


def text_cell(place: str, column: str, value: Any) -> str:
    """A cell that is to hold a text: stripped, of UTF-8 where it is bytes; empty for what is missing.

    Raises TableError for what would only be written like one: a list, an object, true and false, other bytes.
    """
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            value = value.decode()
    if isinstance(value, list | dict | bool | bytes):
        raise TableError(f"{place}: expected a text in {column}, found {value!r:.60}")
    return cell(value)


def text(place: str, column: str, value: str) -> str:
    if not value:
        raise TableError(f"{place}: an empty {column}")
    return value


def number(place: str, column: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise TableError(f"{place}: expected a number in {column}, found {value!r}")
    return found


def choice(place: str, column: str, value: str, choices: Mapping[str, Any]) -> Any:
    if value not in choices:
        raise TableError(f"{place}: expected {', '.join(choices)} in {column}, found {value!r}")
    return choices[value]
