"""A few real clips, a small checkpoint on the disk, and `dover-eval score` in processes that can be killed."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dover_eval.cli import app

Rows = list[dict[str, object]]


@pytest.fixture
def clips(write_video, moving_frames, tmp_path) -> Path:
    """A folder with three clips, of which one is of another size."""
    folder = tmp_path / "clips"
    folder.mkdir()
    write_video(moving_frames, "clips/a.mp4")
    write_video(moving_frames[::-1], "clips/b.mp4")
    write_video(moving_frames[:, :32, :48], "clips/c.mp4")
    return folder


@pytest.fixture
def manifest(clips) -> Path:
    """Forty rows of the three clips, and a broken file among them."""
    (clips / "broken.mp4").write_text("no video")
    names = ["a.mp4", "b.mp4", "c.mp4"]
    rows = [{"video": names[i % 3], "Prompt": f"a square, take {i % 7}"} for i in range(40)]
    rows[11]["video"] = "broken.mp4"
    path = clips / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def arguments(checkpoint) -> Callable[..., list[str]]:
    """`dover-eval score ...` with the small checkpoint, on the CPU, with one worker."""

    def build(*given: object, model: str = checkpoint, device: bool = True) -> list[str]:
        options = ["--model", model, *(["--device", "cpu", "--workers", "1"] if device else [])]
        return ["score", *map(str, given), *options]

    return build


@pytest.fixture
def dover(arguments):
    return lambda *given, **kwargs: CliRunner().invoke(app, arguments(*given, **kwargs))


@pytest.fixture
def start():
    """Runs a command in a forked process; returns its id. Those that are left are killed."""
    started: list[int] = []

    def run(command: list[str], **environment: str) -> int:
        child = os.fork()
        if child == 0:  # never back into pytest
            try:
                os.environ.update(environment)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                app(command, standalone_mode=True)
            except SystemExit as error:
                os._exit(int(error.code or 0))
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            os._exit(70)
        started.append(child)
        return child

    yield run
    for child in started:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def exit_status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def logged_lines(output: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in output.with_name(f"{output.name}.run").glob("rows-*.jsonl"))


def read_lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")
    return path
