"""The log of a run: what has been scored, safe from a kill at any moment; results files are made from it.

Beside `results.parquet` lies `results.parquet.run/`: `run.json`, how the run was begun; `made_with.json`, the
fingerprint's parts; and one `rows-<rank>.jsonl` a writer. A line holds the rows of one batch, always the same clips of
the input, and goes to the file in one append: a kill leaves whole lines and at most one without its end, which the next
run cuts off. So no finished row is lost, none comes twice, and a batch that is scored again is made of the same clips
and gives the same bits. One log serves all formats: Parquet cannot grow, and CSV cannot tell a half-written line.

A power cut is another matter than a kill: it can take the last seconds' rows, which are then scored again.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from dover_eval.results import Row, write_results
from dover_eval.scale.files import Clip, FileError, identity

RUN, MADE_WITH, FINISHED, DRAFT = "run.json", "made_with.json", "finished.json", "draft"
NOT_YET = -1
CHECKED_TOGETHER = 1000
LONGEST_LINE = 1 << 26  # bytes


class RunError(RuntimeError):
    """A run that cannot go on; the message says why, what is safe, and what to do."""


class Scored(NamedTuple):
    """A batch's rows. first: the index of its first clip. files: `identity` of each clip's file."""

    first: int
    rows: list[Row]
    files: list[str | None]


class RunLog:
    """What has been scored of `count` clips, in batches of `batch_size` in their order. One writer a rank.

    Args:
        output: the results file to be.
        settings: what a run keeps to from its first row to its last; it goes on only with the same.
        resume: go on with what is there; else an unfinished run is refused and a finished one replaced.
        retry_failed: take batches with errors for unfinished.

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
            os.close(self._lock)
            raise

    def _begin(self, resume: bool, settings: Mapping[str, Any], retry_failed: bool) -> None:
        if not resume:
            self._clear()
        begun = self._agree(RUN, settings)
        if differing := _differences(begun, settings):
            raise RunError(f"{self.output}: this run was begun otherwise ({differing}); go on as it was begun")
        self.digest: str | None = None
        self._files: list[Path] = []
        self._read_to: dict[Path, int] = {}
        # Where each batch's line is: in which file, and from which byte on. And how many errors it has.
        batches = -(-self.count // self.batch_size)
        self._file = array("h", [NOT_YET]) * batches
        self._place = array("q", [NOT_YET]) * batches
        self._errors = array("q", [0]) * batches
        self._descriptor = self._open()
        try:
            self.refresh(skip_failed=retry_failed)
        except RunError:
            os.close(self._descriptor)
            raise

    @property
    def missing(self) -> list[int]:
        """The batches that are still to be scored, in order."""
        return [i for i, file in enumerate(self._file) if file == NOT_YET]

    @property
    def done(self) -> int:
        """Rows that are there."""
        return sum(self._size(i) for i, file in enumerate(self._file) if file != NOT_YET)

    @property
    def failed(self) -> int:
        """Rows that are there with an error."""
        return sum(self._errors)

    def claim(self, made_with: Mapping[str, Any], digest: str) -> None:
        """Say what the rows to come are made with. Raises RunError where those that are there differ."""
        differing = _differences(self._agree(MADE_WITH, made_with), made_with)
        if differing or self.digest not in (None, digest):
            raise RunError(
                f"{self.output}: these scores would have another fingerprint than those of {self.folder} "
                f"({differing or f'{self.digest} then, {digest} now'}); one file does not mix them: choose another "
                "--output"
            )

    def append(self, scored: Scored) -> None:
        """Add a batch. Raises RunError, with all that was there safe, where the disk is full."""
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
        self._note(self._own, start, scored.first, scored.rows)
        self._read_to[self._own] = start + len(data)

    def refresh(self, *, skip_failed: bool = False) -> None:
        """Read what all writers have added."""
        for path in sorted(self.folder.glob("rows-*.jsonl")):
            with path.open("rb") as file:
                place = self._read_to.get(path, 0)
                file.seek(place)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written, or cut off by a kill
                    first, rows, _ = self._parse(path, place, line)
                    if not (skip_failed and any(row["error"] for row in rows)):
                        self._note(path, place, first, rows)
                    place += len(line)
                self._read_to[path] = place

    def check(self, clips: Sequence[Clip]) -> None:
        """Raises RunError where a row that is there is of another clip or prompt, or its file has changed since."""
        entries = ((clips[first + i], row, file) for first, rows, files in self._lines()
                   for i, (row, file) in enumerate(zip(rows, files, strict=True)))  # fmt: skip
        with ThreadPoolExecutor(32) as pool:  # a store far away is asked many things at a time
            while group := list(itertools.islice(entries, CHECKED_TOGETHER)):
                far = iter(list(pool.map(_identity_now, [clip for clip, _, _ in group if not clip.is_local])))
                for clip, row, then in group:
                    if (clip.video, clip.prompt) != (row["video_name"], row["Prompt"]):
                        raise RunError(
                            f"{self.output}: the inputs are not those that this run was begun with: "
                            f"{row['video_name']} ({row['Prompt']!r}) then, {clip.video} ({clip.prompt!r}) now"
                        )
                    now = _identity_now(clip) if clip.is_local else next(far)
                    if now != then:
                        kind = "is gone" if now is None else "has changed" if then else "was not there, and is now"
                        hint = ", or add --retry-failed" if row["error"] else ""
                        raise RunError(
                            f"{self.output}: {clip.video} {kind} since it was scored (size and date or revision: "
                            f"{then} then, {now} now); put it back, score into another --output{hint}"
                        )

    def rows(self) -> Iterator[Row]:
        """All rows, in the input's order."""
        for _, rows, _ in self._lines():
            yield from rows

    def is_finished(self, asked: Mapping[str, Any] | None) -> bool:
        """Whether all rows are there, and by what `asked` stands for. None stands for nothing."""
        return not self.missing and asked is not None and self._finished().get("asked") == _as_json(asked)

    def finish(self, asked: Mapping[str, Any] | None) -> None:
        """Write the results file from the log, unless it is there as it was written. Raises RunError."""
        told = {"rows": self.count, "asked": asked, "file": identity(Clip(str(self.output), ""))}
        if self._finished() == _as_json(told):
            return
        try:
            os.fsync(self._descriptor)
            write_results(self.rows(), self.output, self.folder / DRAFT)
            told["file"] = identity(Clip(str(self.output), ""))
            (self.folder / FINISHED).write_text(json.dumps(told, indent=1) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        os.close(self._descriptor)
        os.close(self._lock)

    def _clear(self) -> None:
        """Empty the folder, but for the lock that is held."""
        begun = any(path.stat().st_size for path in self.folder.glob("rows-*.jsonl"))
        if begun and not (self.folder / FINISHED).exists():
            raise RunError(
                f"{self.folder} holds rows of a run that did not finish: go on with --resume, or delete that folder"
            )
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
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise RunError(f"{path}: damaged ({error}); delete {self.folder} to score anew") from error

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
        lock = os.open(self._own.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise RunError(f"{self.folder}: another process is writing this run") from error
        return lock

    def _open(self) -> int:
        """This rank's file, without a half-written end."""
        descriptor = os.open(self._own, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        size = os.fstat(descriptor).st_size
        end = os.pread(descriptor, LONGEST_LINE, max(size - LONGEST_LINE, 0))
        os.ftruncate(descriptor, size - len(end) + end.rfind(b"\n") + 1)
        return descriptor

    def _parse(self, path: Path, place: int, line: bytes) -> Scored:
        try:
            found = Scored(**json.loads(line))
            if len(found.rows) != len(found.files):
                raise ValueError(f"{len(found.rows)} rows of {len(found.files)} files")
            if lacking := [column for row in found.rows for column in ("error", "fingerprint") if column not in row]:
                raise ValueError(f"a row without {lacking[0]}")
            return found
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{path}: damaged in the line at byte {place} ({error}); delete this line, and its clips are scored "
                "again with --resume"
            ) from error

    def _note(self, path: Path, place: int, first: int, rows: list[Row]) -> None:
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
        if path not in self._files:
            self._files.append(path)
        self._file[batch], self._place[batch] = self._files.index(path), place
        self._errors[batch] = sum(row["error"] is not None for row in rows)

    def _lines(self) -> Iterator[Scored]:
        files = {path: path.open("rb") for path in self._files}
        try:
            for file, place in zip(self._file, self._place, strict=True):
                if file != NOT_YET:
                    path = self._files[file]
                    files[path].seek(place)
                    yield self._parse(path, place, files[path].readline())
        finally:
            for open_file in files.values():
                open_file.close()

    def _size(self, batch: int) -> int:
        return min(self.batch_size, self.count - batch * self.batch_size)

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.output}: cannot be written ({error.strerror}); {self.done} of {self.count} rows are safe in "
            f"{self.folder}: make room, and go on with --resume"
        )


def run_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.run")


def recorded(output: Path) -> dict[str, Any]:
    """How a run was begun, as far as it is known."""
    path = run_folder(output) / RUN
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); delete {path.parent} to score anew") from error
    return found if isinstance(found, dict) else {}


def _identity_now(clip: Clip) -> str | None:
    try:
        return identity(clip)
    except FileError as error:
        raise RunError(f"{error}; whether it has changed since it was scored cannot be told") from error


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    now = _as_json(now)
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return "; ".join(f"{key} {then.get(key)} then, {now.get(key)} now" for key in keys)


def _as_json(value: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(value))
