"""Fills a rating table with a teacher's verdicts: in parallel, to be resumed after any end, and never of two teachers.

Every answer goes at once into a journal beside the table, a line each after one that tells the teacher; the table is
made from it when all clips are done. So a run that was killed loses only the clips in progress.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from dover_eval.distillation.teacher import Description, Linear, Logistic, Scale
from dover_eval.distillation.workers import Answer, Job, Setup, Workers
from dover_eval.files import InputError
from dover_eval.inputs import check_name, check_named_prompt
from dover_eval.opinion import SCORE_NAMES
from dover_eval.replacing import replacing

SUFFIXES = (".csv", ".parquet")
DECIMALS = 6
Key = tuple[str, str]


class LabelsError(ValueError):
    """A run that cannot start: another teacher's table, a damaged journal, another run at work."""


@dataclass(frozen=True)
class Labels:
    """What a run did. judged, kept: rows that it asked for, and that were there already. errors: by (clip, prompt).
    untold: rows without an error and without a score, that the teacher could not judge. earlier: rows of earlier
    runs that this one did not ask for, and that the table has as well."""

    teacher: Description
    judged: int
    kept: int
    errors: Mapping[Key, str]
    untold: int
    earlier: int


def journal_of(output: Path) -> Path:
    """The journal beside a table."""
    return output.with_name(output.name + ".journal")


def label(
    teacher: str,
    clips: Sequence[tuple[str, str | Path, str]],
    output: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    scales: Mapping[str, Scale] | None = None,
    workers: int = 1,
    devices: Sequence[str] = (),
    timeout: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Labels:
    """Ask a teacher about clips and write `output`, a .csv or .parquet table.

    Columns: `video_name, Prompt`, the five `..._MOS` on 1-5 (empty where the teacher does not tell), for each of its
    scores `..._raw` on its own scale, `error`, and `teacher`, the fingerprint; the journal's first line says what it
    stands for. Rows are in the order of `clips`; rows of earlier runs that are not asked for follow, but for those of a
    clip that is another file by now.

    Run again, it asks about new clips, about those whose file has changed and about those that failed.

    Args:
        teacher: `module:callable`, see `Teacher`.
        clips: (name in the table, file, prompt); an empty prompt where the teacher reads none.
        options: what a teacher's class is called with.
        scales: by score name, for a teacher that declares none; they come before its own.
        workers: processes, each with a teacher.
        devices: given to the workers in turn as the option `device`.
        timeout: seconds that a clip may take, after which it has failed and its worker is replaced; by default
            unlimited.
        progress: called with 1 for each clip that is done.

    Raises:
        LabelsError: the table is another teacher's or has no journal, another run is writing it, its name has no known
            ending, a clip with its prompt comes twice, or workers or timeout is not positive.
        TeacherError: the teacher cannot be loaded.
        OSError: the table or its journal cannot be written.
        ValueError: a name is not UTF-8 or has a space at an end, or a prompt has nothing to read in it.
    """
    output = Path(output)
    if output.suffix not in SUFFIXES:
        raise LabelsError(f"{output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if workers < 1 or (timeout is not None and not timeout > 0):
        raise LabelsError(f"expected at least one worker and a timeout above 0 s, got {workers} and {timeout}")
    asked = dict.fromkeys((name, prompt) for name, _, prompt in clips)
    if len(asked) < len(clips):
        raise LabelsError(f"{len(clips) - len(asked)} clips are listed twice with the same prompt")
    _check_texts(asked)
    devices = devices or [""]
    setups = [
        Setup(teacher, options or {}, scales or {}, max(1, (os.cpu_count() or 1) // workers), devices[i % len(devices)])
        for i in range(max(1, min(workers, len(clips))))
    ]
    with _locked(output), Workers(setups, math.inf if timeout is None else timeout) as pool:
        journal = _Journal(output, pool.description)
        before = dict(journal.rows)
        digests = {key: row["sha256"] for key, row in before.items() if row["error"] is None}
        judged = 0
        with journal:
            jobs = [Job(n, os.path.abspath(path), prompt, digests.get((n, prompt))) for n, path, prompt in clips]
            for job, answer in pool.judge(jobs):
                if not answer.unchanged:
                    journal.add(job, answer)
                    judged += 1
                if progress:
                    progress(1)
        rows = {key: journal.rows[key] for key in asked}
        files = {name: row["sha256"] for (name, _), row in rows.items() if row["error"] is None}
        earlier = {
            key: row
            for key, row in journal.rows.items()
            if key not in asked and row["sha256"] == files.get(key[0], row["sha256"])
        }
        rows |= earlier
        _write(output, list(rows.values()), pool.description)
    errors = {key: rows[key]["error"] for key in asked if rows[key]["error"] is not None}
    untold = sum(rows[key]["error"] is None and not rows[key]["values"] for key in asked)
    return Labels(pool.description, judged, len(clips) - judged, errors, untold, len(earlier))


def _check_texts(asked: Iterable[Key]) -> None:
    """Raises InputError for a name or a prompt that the table cannot hold."""
    for name, prompt in asked:
        if name != name.strip():  # who reads a table strips its cells
            raise InputError(f"{name!r}: a name that begins or ends with a space, expected one without")
        if prompt:
            check_named_prompt(name, prompt)
        else:  # for a teacher that reads none
            check_name(name)


class _Journal:
    """JSON lines: the teacher's description, then a row an answer; the last one of a clip counts."""

    def __init__(self, output: Path, teacher: Description) -> None:
        self.path = journal_of(output)
        self.teacher = teacher
        self.rows: dict[Key, dict[str, Any]] = {}
        self._file: IO[str]
        if self.path.exists():
            self._read(output)
        elif output.exists():
            raise LabelsError(f"{output} exists without its journal {self.path.name}: it cannot be continued")

    def _read(self, output: Path) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1  # what follows is the line at which an earlier run was killed
        try:
            lines = [json.loads(line) for line in data[:whole].decode().split("\n")[:-1]]
            found = Description(**lines[0]) if lines else self.teacher
            for row in lines[1:]:
                self.rows[row["video_name"], row["Prompt"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise LabelsError(f"{self.path}: damaged ({error}); delete it to begin again") from error
        if found != self.teacher:
            raise LabelsError(
                f"{output} is another teacher's: {_difference(asdict(found), asdict(self.teacher))}. "
                "A table is one teacher's; name another output, or use the same teacher"
            )
        if whole < len(data):
            os.truncate(self.path, whole)

    def __enter__(self) -> _Journal:
        self._file = self.path.open("a", encoding="utf-8", newline="\n")
        if self._file.tell() == 0:
            self._line(asdict(self.teacher))
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, job: Job, answer: Answer) -> None:
        row = {
            "video_name": job.name,
            "Prompt": job.prompt,
            "values": dict(answer.values),
            "error": answer.error,
            "sha256": answer.digest,
        }
        self._line(row)
        self.rows[job.name, job.prompt] = row

    def _line(self, content: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(content, ensure_ascii=False) + "\n")
        self._file.flush()  # a kill from here on does not take it back


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    parts = [f"{key} {found[key]} there, {wanted[key]} here" for key in wanted if found[key] != wanted[key]]
    return "; ".join(parts)


def _locked(output: Path) -> Any:
    """One run at a time writes a table; the lock goes with the process that holds it, however that ends."""
    from filelock import FileLock, Timeout  # comes with torch

    lock = FileLock(output.with_name(f".{output.name}.lock"), blocking=False)
    try:
        return lock.acquire()
    except Timeout:
        raise LabelsError(f"another run is writing {output}") from None


def _write(output: Path, rows: list[dict[str, Any]], teacher: Description) -> None:
    """The table appears whole or not at all."""
    scales = {aspect: _scale(**given) for aspect, given in teacher.scales.items()}
    table = [_cells(row, scales, teacher.fingerprint) for row in rows]
    with replacing(output) as whole:
        if output.suffix == ".csv":
            with whole.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(_columns(scales)))
                writer.writeheader()
                writer.writerows(table)
        else:
            _write_parquet(whole, table, _columns(scales))


def _scale(kind: str, **numbers: float) -> Scale:
    return Linear(**numbers) if kind == "Linear" else Logistic(**numbers)


def _columns(scales: Mapping[str, Scale]) -> dict[str, Any]:
    numbers = [*(f"{aspect}_MOS" for aspect in SCORE_NAMES), *(f"{aspect}_raw" for aspect in scales)]
    texts = ("video_name", "Prompt")
    return dict.fromkeys(texts, str) | dict.fromkeys(numbers, float) | dict.fromkeys(("error", "teacher"), str)


def _cells(row: Mapping[str, Any], scales: Mapping[str, Scale], fingerprint: str) -> dict[str, Any]:
    cells: dict[str, Any] = dict.fromkeys(_columns(scales))
    for aspect, value in row["values"].items():
        cells[f"{aspect}_MOS"] = round(scales[aspect].mos(value), DECIMALS)
        cells[f"{aspect}_raw"] = value
    told = {name: row[name] for name in ("video_name", "Prompt", "error")}
    return cells | told | {"teacher": fingerprint}


def _write_parquet(path: Path, table: list[dict[str, Any]], columns: Mapping[str, type]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), float: pa.float64()}
    pq.write_table(pa.Table.from_pylist(table, schema=pa.schema([(n, kinds[k]) for n, k in columns.items()])), path)
