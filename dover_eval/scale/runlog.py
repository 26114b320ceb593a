"""The log of a run: what has been scored, safe from a kill at any moment; results files are made from it.

Beside `results.parquet` lies `results.parquet.run/`: `run.json`, how the run was begun; `made_with.json`, the
fingerprint's parts; and one `rows-<rank>.jsonl` a writer. A line holds the rows of one batch, always the same clips of
the input, and goes to the file in one append: a kill leaves whole lines and at most one without its end, which the next
run cuts off. So no finished row is lost, none comes twice, and a batch that is scored again is made of the same clips
and gives the same bits. One log serves all formats: Parquet cannot grow, and CSV cannot tell a half-written line.

A power cut is another matter than a kill: it can take the last seconds' rows, which are then scored again.
"""

from __future__ import annotations

import itertools
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from dover_eval.files import Clip, FileError, batch_span, identity
from dover_eval.results import TEXTS, Row, write_results

RUN, MADE_WITH, FINISHED, DRAFT = "run.json", "made_with.json", "finished.json", "draft"
NOT_YET = -1
CHECKED_TOGETHER = 1000
LONGEST_LINE = 1 << 26  # bytes


class RunError(RuntimeError):
    """A run that cannot go on; the message says why, what is safe, and what to do."""


class Scored(NamedTuple):
    """A batch's rows. first: the index of its first clip. files: `identity` of each clip's file. attempt: how often
    the batch had been scored before, which its log knows."""

    first: int
    rows: list[Row]
    files: list[str | None]
    attempt: int = 0


class RunLog:
    """What has been scored of `count` clips, in batches of `batch_size` in their order. One writer a rank.

    Args:
        output: the results file to be.
        settings: what a run keeps to from its first row to its last; it goes on only with the same.
        resume: go on with what is there; else an unfinished run is refused and a finished one replaced.
        retry_failed: take batches with errors for unfinished; one rank is to score them.

    Raises RunError.
    """

    def __init__(
        self,
        output: Path,
        count: int,
        batch_size: int,
        settings: Mapping[str, Any],
        *,
        rank: int = 0,
        resume: bool = False,
        retry_failed: bool = False,
    ) -> None:
        self.output, self.count, self.batch_size = output, count, batch_size
        self.folder = run_folder(output)
        if resume and output.exists() and not self.folder.exists():
            raise RunError(
                f"{output} is there, but not {self.folder}, which --resume goes by: choose another --output, or "
                "replace the file by leaving --resume out"
            )
        self.folder.mkdir(exist_ok=True)
        self._own = self.folder / f"rows-{rank}.jsonl"
        self._lock = self._take()
        try:
            self._begin(resume, {"batch_size": batch_size, **settings}, retry_failed)
        except BaseException:
            self.close()
            raise

    def _begin(self, resume: bool, settings: Mapping[str, Any], retry_failed: bool) -> None:
        self._settings = settings
        self._descriptor = NOT_YET
        self.digest: str | None = None
        self._files: list[Path] = []
        self._read_to: dict[Path, int] = {}
        # Where each batch's line is: in which file, and from which byte on. How many errors it has, and its attempt.
        batches = -(-self.count // self.batch_size)
        self._file = array("h", [NOT_YET]) * batches
        self._place = array("q", [NOT_YET]) * batches
        self._errors = array("q", [0]) * batches
        self._attempt = array("q", [NOT_YET]) * batches
        self._retry_failed = retry_failed
        if resume:
            self._open()
            self.refresh()
        else:
            self._check_finished()
        # The batches that are there, and to be scored once more.
        self.again = {i for i, errors in enumerate(self._errors) if errors and retry_failed}

    @property
    def missing(self) -> list[int]:
        """The batches that are not there, in order."""
        return [i for i, file in enumerate(self._file) if file == NOT_YET]

    @property
    def done(self) -> int:
        """Rows that are there, and not to be scored once more."""
        return sum(self._size(i) for i, file in enumerate(self._file) if file != NOT_YET and i not in self.again)

    @property
    def failed(self) -> int:
        """Rows that are there with an error."""
        return sum(self._errors)

    def claim(self, made_with: Mapping[str, Any], digest: str) -> None:
        """Say what the rows to come are made with. Raises RunError where those that are there differ.

        Without `resume` what was there goes only now, when it is known that there is something to replace it.
        """
        if self._descriptor == NOT_YET:
            self._clear()
            self._open()
        differing = _differences(self._agree(MADE_WITH, made_with), made_with)
        if differing or self.digest not in (None, digest):
            raise RunError(
                f"{self.output}: these scores would have another fingerprint than those of {self.folder} "
                f"({differing or f'{self.digest} then, {digest} now'}); one file does not mix them: choose another "
                "--output"
            )

    def append(self, scored: Scored) -> None:
        """Add a batch; of one that is there the rows without an error stay where the new ones have one.

        Raises RunError, with all that was there safe, where the disk is full.
        """
        batch = scored.first // self.batch_size
        if self._file[batch] != NOT_YET:
            with self._files[self._file[batch]].open("rb") as file:
                scored = _with_good_rows_of(self._line(batch, file), scored)
        scored = scored._replace(attempt=self._attempt[batch] + 1)
        data = (json.dumps(scored._asdict(), ensure_ascii=False) + "\n").encode()
        (self.folder / FINISHED).unlink(missing_ok=True)  # a results file from before is no longer all
        start = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):  # a full disk takes a part, and says why at the next
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            raise self._unwritable(error) from error
        self._note(self._own, start, scored)
        self.again.discard(batch)
        self._read_to[self._own] = start + len(data)

    def refresh(self) -> None:
        """Read what all writers have added."""
        for path in sorted(self.folder.glob("rows-*.jsonl")):
            with path.open("rb") as file:
                place = self._read_to.get(path, 0)
                file.seek(place)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written, or cut off by a kill
                    self._note(path, place, self._parse(path, place, line))
                    place += len(line)
                self._read_to[path] = place

    def check(self, clips: Sequence[Clip]) -> None:
        """Raises RunError where a row that is there is of another clip or prompt, or its file has changed since.

        A row that is to be scored once more may be of a file that has changed, if it has an error.
        """
        entries = (entry for entry in self._entries(clips) if not (self._retry_failed and entry[1]["error"]))
        with ThreadPoolExecutor(32) as pool:  # a store far away is asked many things at a time
            while group := list(itertools.islice(entries, CHECKED_TOGETHER)):
                far = iter(list(pool.map(_identity_now, [clip for clip, _, _ in group if not clip.is_local])))
                for clip, row, then in group:
                    now = _identity_now(clip) if clip.is_local else next(far)
                    if now != then:
                        kind = "is gone" if now is None else "has changed" if then else "was not there, and is now"
                        hint = ", or add --retry-failed" if row["error"] else ""
                        raise RunError(
                            f"{self.output}: {clip.video} {kind} since it was scored (size and date or revision: "
                            f"{then} then, {now} now); put it back, score into another --output{hint}"
                        )

    def rows(self, clips: Sequence[Clip]) -> Iterator[Row]:
        """All rows, in the input's order. Raises RunError where one is of another clip or prompt."""
        return (row for _, row, _ in self._entries(clips))

    def is_finished(self, asked: Mapping[str, Any] | None) -> bool:
        """Whether all rows are there, and by what `asked` stands for. None stands for nothing."""
        done = not self.missing and not self.again
        return done and asked is not None and self._finished().get("asked") == _as_json(asked)

    def finish(self, clips: Sequence[Clip], asked: Mapping[str, Any] | None) -> None:
        """Write the results file from the log, unless it is there as it was written.

        Raises RunError, also where ranks were given other clips or prompts than these.
        """
        told = {"rows": self.count, "asked": asked, "file": identity(Clip(str(self.output), ""))}
        if self._finished() == _as_json(told):
            return
        try:
            os.fsync(self._descriptor)
            # What a link names may be on another disk.
            write_results(self.rows(clips), self.output, None if self.output.is_symlink() else self.folder / DRAFT)
            told["file"] = identity(Clip(str(self.output), ""))
            (self.folder / FINISHED).write_text(json.dumps(told, indent=1) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        if self._descriptor != NOT_YET:
            os.close(self._descriptor)
        os.close(self._lock)

    def _check_finished(self) -> None:
        begun = any(path.stat().st_size for path in self.folder.glob("rows-*.jsonl"))
        if begun and not (self.folder / FINISHED).exists():
            raise RunError(
                f"{self.folder} holds rows of a run that did not finish: go on with --resume, or delete that folder"
            )

    def _clear(self) -> None:
        """Empty the folder, but for the lock that is held."""
        for path in self.folder.iterdir():
            if path != self._own.with_suffix(".lock"):
                path.unlink()

    def _agree(self, name: str, value: Mapping[str, Any]) -> Any:
        """What the file says; `value` where there was none. Ranks may ask at the same time: the first one's stays."""
        path, draft = self.folder / name, self.folder / f".{name}.{os.getpid()}"
        if not path.exists():
            try:
                draft.write_text(json.dumps(value, indent=1) + "\n")
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink(missing_ok=True)
        return _read_object(path)

    def _finished(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / FINISHED).read_text())
        except (FileNotFoundError, ValueError):  # not finished, or killed as it was said: then it is written again
            return {}

    def _take(self) -> int:
        """The lock that keeps this rank's rows for this process alone, before any of them is touched.

        A record lock, which a process does not pass on: workers that outlive a killed one by seconds do not hold it.
        Closing the file would end it, so it is on one of its own.
        """
        try:
            import fcntl
        except ModuleNotFoundError as error:  # here, so that all but results files works without it
            raise RunError(
                f"{self.output}: results files need a system with POSIX record locks, such as Linux or macOS; "
                "expected Python's fcntl, found none"
            ) from error
        lock = os.open(self._own.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise RunError(f"{self.folder}: another process is writing this run") from error
        return lock

    def _open(self) -> None:
        """Begin, or go on as it was begun, with this rank's file without a half-written end."""
        if differing := _differences(self._agree(RUN, self._settings), self._settings):
            raise RunError(f"{self.output}: this run was begun with other settings ({differing}); resume it with those")
        self._descriptor = os.open(self._own, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        size = os.fstat(self._descriptor).st_size
        end = os.pread(self._descriptor, LONGEST_LINE, max(size - LONGEST_LINE, 0))
        os.ftruncate(self._descriptor, size - len(end) + end.rfind(b"\n") + 1)

    def _parse(self, path: Path, place: int, line: bytes) -> Scored:
        try:
            found = Scored(**json.loads(line))
            if len(found.rows) != len(found.files):
                raise ValueError(f"{len(found.rows)} rows of {len(found.files)} files")
            if lacking := [column for row in found.rows for column in TEXTS if column not in row]:
                raise ValueError(f"a row without {lacking[0]}")
            if not all(isinstance(number, int) and number >= 0 for number in (found.first, found.attempt)):
                raise ValueError(f"first {found.first!r} and attempt {found.attempt!r}, expected numbers from 0 on")
            return found
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{path}: damaged in the line at byte {place} ({error}); delete this line, and its clips are scored "
                "again with --resume"
            ) from error

    def _note(self, path: Path, place: int, scored: Scored) -> None:
        first, rows = scored.first, scored.rows
        batch, rest = divmod(first, self.batch_size)
        if rest or first + len(rows) > self.count:
            raise RunError(
                f"{self.output}: the inputs are not those that this run was begun with: it has rows for clip "
                f"{first + len(rows)}, of {self.count} now"
            )
        if len(rows) < self._size(batch):
            return  # the last batch of a shorter list, which has grown since
        digests = {row["fingerprint"] for row in rows} | ({self.digest} if self.digest else set())
        if len(digests) > 1:
            raise RunError(f"{path}: rows of several fingerprints ({', '.join(sorted(digests))}), expected one")
        self.digest = digests.pop()
        errors = sum(row["error"] is not None for row in rows)
        # The last attempt counts; and of two that were made at a time, whichever file they are in, the better one.
        if (scored.attempt, -errors) < (self._attempt[batch], -self._errors[batch]):
            return
        if path not in self._files:
            self._files.append(path)
        self._file[batch], self._place[batch] = self._files.index(path), place
        self._errors[batch], self._attempt[batch] = errors, scored.attempt

    def _entries(self, clips: Sequence[Clip]) -> Iterator[tuple[Clip, Row, str | None]]:
        """Each row that is there, with its clip and what its file was then. Raises RunError for another clip's row."""
        for found in self._lines():
            for i, (row, then) in enumerate(zip(found.rows, found.files, strict=True), start=found.first):
                clip = clips[i]
                if (clip.video, clip.prompt) != (row["video_name"], row["Prompt"]):
                    raise RunError(
                        f"{self.output}: the inputs are not those that this run was begun with, here or on another "
                        f"rank: {row['video_name']} ({row['Prompt']!r}) then, {clip.video} ({clip.prompt!r}) now"
                    )
                yield clip, row, then

    def _lines(self) -> Iterator[Scored]:
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self._files]
            for batch, file in enumerate(self._file):
                if file != NOT_YET:
                    yield self._line(batch, files[file])

    def _line(self, batch: int, file: IO[bytes]) -> Scored:
        file.seek(self._place[batch])
        return self._parse(self._files[self._file[batch]], self._place[batch], file.readline())

    def _size(self, batch: int) -> int:
        return len(batch_span(batch, self.batch_size, self.count))

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.output}: cannot be written ({error.strerror}); {self.done} of {self.count} rows are safe in "
            f"{self.folder}: make room, and go on with --resume"
        )


def run_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.run")


def recorded(output: Path) -> dict[str, Any]:
    """How a run was begun, as far as it is known."""
    try:
        return _read_object(run_folder(output) / RUN)
    except FileNotFoundError:
        return {}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, found {found!r:.60}")
        return found
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); delete {path.parent} to score anew") from error


def _identity_now(clip: Clip) -> str | None:
    try:
        return identity(clip)
    except FileError as error:
        raise RunError(f"{error}; whether it has changed since it was scored cannot be told") from error


def _with_good_rows_of(before: Scored, scored: Scored) -> Scored:
    rows, files = list(scored.rows), list(scored.files)
    for i, (row, file) in enumerate(zip(before.rows, before.files, strict=True)):
        if row["error"] is None and rows[i]["error"] is not None:
            rows[i], files[i] = row, file
    return scored._replace(rows=rows, files=files)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    now = _as_json(now)
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return "; ".join(f"{key} {then.get(key)} then, {now.get(key)} now" for key in keys)


def _as_json(value: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(value))
