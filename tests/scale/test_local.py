"""The local engine: rows of the scorer's own bits, decoders that die, ranks without Ray."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import torch

from dover_eval.files import Clip, FileError, identity
from dover_eval.inputs import list_clips
from dover_eval.scale.decoding import MISFITS, decode_ahead
from dover_eval.scale.local import score_batches
from dover_eval.scale.run import Share, score_set
from dover_eval.scale.runlog import RunError, RunLog, Scored
from dover_eval.scorer import VideoScorer
from tests.scale.conftest import exit_status, logged_lines, read_lines, wait_for, write_shard


def test_rows_are_the_scorer_s_own_to_the_last_bit(small_scorer, clips):
    files = [Clip(str(clips / name), f"a square {name}") for name in ("a.mp4", "b.mp4", "gone.mp4", "c.mp4", "a.mp4")]
    expected = [small_scorer.score(clip.video, clip.prompt).to_dicts()[0] for clip in files]
    for workers in (1, 2):
        scored = list(score_batches(small_scorer, files, range(5), 1, workers))
        assert [row for batch in scored for row in batch.rows] == expected
    # Batches of several are always of the same clips, whichever of them are still to do.
    whole = list(score_batches(small_scorer, files, [0, 1, 2], 2, 1))
    assert list(score_batches(small_scorer, files, [1], 2, 1)) == whole[1:2]
    assert [batch.first for batch in whole] == [0, 2, 4]


def deadly(path: Path) -> torch.Tensor:
    """Decodes, but for one file, over which its process is killed as the system kills one that takes all memory."""
    if path.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.full((1, 3, 2, 2), int(path.name), dtype=torch.uint8)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_kills_its_decoder_is_a_row_and_the_others_go_on(tmp_path, workers):
    names = ["0", "1", "deadly", "3", "4", "5", "6"]
    for name in names:
        (tmp_path / name).write_text(name)
    clips = [Clip(str(tmp_path / name), "x") for name in names]
    found = list(decode_ahead(clips, range(7), deadly, workers))
    assert [None if one.frames is None else int(one.frames[0, 0, 0, 0]) for one in found] == [0, 1, None, 3, 4, 5, 6]
    assert "deadly: it ended the process that decoded it" in found[2].error


def white(path: Path) -> torch.Tensor:
    """As many pixels as the file's name says."""
    return torch.full((1, 3, 1, int(path.name)), 255, dtype=torch.uint8)


@pytest.fixture
def little_shared_memory():
    """Which counts against the size of files."""
    limit, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.usefixtures("little_shared_memory")
def test_a_clip_too_large_for_shared_memory_is_a_row_and_many_on_end_end_the_run(tmp_path):
    for name in ("1", "30000"):
        (tmp_path / name).write_text(name)
    small, large = (Clip(str(tmp_path / name), "x") for name in ("1", "30000"))
    clips = [small, *[large] * (MISFITS - 1), small, *[large] * MISFITS]
    found = []
    with pytest.raises(RunError, match="nor did the clips before it: go on with --resume --retry-failed"):
        found.extend(one.error for one in decode_ahead(clips, range(len(clips)), white, 1))
    assert [error is None for error in found] == [clip is small for clip in clips[:-1]]
    assert "30000: 0 MB of frames do not fit into shared memory" in found[1]


def test_names_that_no_file_can_have_are_rows(dover, clips, tmp_path):
    rows = ["a\0.mp4", "memory://a.mp\x004", "a.mp4"]
    (clips / "set.jsonl").write_text("".join(json.dumps({"video": name, "Prompt": "x"}) + "\n" for name in rows))
    assert dover(clips / "set.jsonl", "-o", tmp_path / "r.jsonl").exit_code == 1
    nul, remote, good = (row["error"] for row in read_lines(tmp_path / "r.jsonl"))
    assert "cannot be read (embedded null byte)" in nul
    assert "no such file" in remote
    assert good is None


def test_an_error_of_the_program_is_no_row(tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(ZeroDivisionError):
        list(decode_ahead([Clip(str(tmp_path / "x"), "x")], [0], lambda path: 1 / 0, 1))


def test_a_file_that_changes_while_it_is_read_is_no_score(tmp_path):
    (tmp_path / "x").write_text("x")

    def decode(path: Path) -> torch.Tensor:
        path.write_text("longer than before")
        return torch.zeros(1, 3, 2, 2, dtype=torch.uint8)

    (found,) = decode_ahead([Clip(str(tmp_path / "x"), "x")], [0], decode, 1)
    assert found.frames is None
    assert "changed while it was read" in found.error


def test_a_file_that_kills_its_decoder_is_a_row_though_its_store_is_away(tmp_path, monkeypatch):
    (tmp_path / "deadly").write_text("x")
    here = os.getpid()

    def identity_there(clip: Clip) -> str | None:
        if os.getpid() == here:
            raise FileError("cannot be reached")
        return identity(clip)

    monkeypatch.setattr("dover_eval.scale.decoding.identity", identity_there)
    (found,) = decode_ahead([Clip(str(tmp_path / "deadly"), "x")], [0], deadly, 1)
    assert "it ended the process that decoded it" in found.error
    assert found.file is None


def test_a_full_disk_for_copies_ends_the_run_and_is_no_row(tmp_path, monkeypatch):
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shard = write_shard(tmp_path / "s.tar", {"a.mp4": b"x"})
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(RunError, match=r"a.mp4::.* \(No space left on device\): make room, or set TMPDIR"):
        list(decode_ahead(list_clips([str(shard)], "x"), [0], deadly, 1))


def test_a_model_that_fails_names_its_clips(dover, clips, tmp_path, monkeypatch):
    score = VideoScorer.score

    def full(self, frames, prompts, **kwargs):
        if prompts == ["a circle"]:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return score(self, frames, prompts, **kwargs)

    monkeypatch.setattr(VideoScorer, "score", full)
    output = tmp_path / "r.jsonl"
    table = tmp_path / "m.csv"
    table.write_text(f"video,Prompt\n{clips / 'a.mp4'},a square\n{clips / 'b.mp4'},a circle\n")
    result = dover(table, "-o", output)
    assert result.exit_code == 1
    assert "b.mp4: the model failed (OutOfMemoryError: CUDA out of memory. Tried to allocate)" in result.stderr
    assert "go on with --resume" in result.stderr
    assert logged_lines(output) == 1
    monkeypatch.undo()
    assert dover(table, "-o", output, "--resume").exit_code == 0


def test_rank_0_says_whom_it_waits_for(tmp_path, monkeypatch, caplog):
    output, clips = tmp_path / "r.jsonl", [Clip(f"{i}.mp4", "x") for i in range(6)]

    def scored(i: int) -> Scored:
        return Scored(i, [{"video_name": f"{i}.mp4", "Prompt": "x", "error": None, "fingerprint": "f"}], [None])

    def engine(batches, claim):
        claim({}, "f")
        yield from map(scored, batches)

    def sleep(_: float) -> None:
        """Rank 1 is slow, and rank 2 comes when it is missed."""
        assert next(polls) < 100
        if not other.done:
            other.append(scored(1))
            other.append(scored(4))
        if caplog.messages:
            score_set(clips, output, engine, share=Share(2, 3), **settings)

    polls = itertools.count()
    settings = {"batch_size": 1, "settings": {}, "resume": True}
    monkeypatch.setattr("dover_eval.scale.run.time.sleep", sleep)
    other = RunLog(output, 6, 1, {}, rank=1, resume=True)
    outcome = score_set(clips, output, engine, share=Share(0, 3), **settings)
    other.close()
    assert len(outcome.rows) == 6
    (message,) = caplog.messages
    assert "waiting for 2 batches of rank 2 of 3, from which nothing came for 30 s" in message


def test_decoders_end_with_a_killed_parent(arguments, start, manifest, tmp_path):
    child = start(arguments(manifest, "-o", tmp_path / "r.jsonl"))
    wait_for(lambda: logged_lines(tmp_path / "r.jsonl") >= 1)
    workers = psutil.Process(child).children()
    os.kill(child, signal.SIGKILL)
    assert exit_status(child) == -signal.SIGKILL
    assert workers
    wait_for(lambda: not any(worker.is_running() for worker in workers))


def test_ranks_share_the_work_and_rank_0_joins(dover, arguments, start, manifest, tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "r.jsonl"
    dover(manifest, "-o", whole)
    children = [start(arguments(manifest, "-o", output), RANK=str(rank), WORLD_SIZE="2") for rank in (1, 0)]
    # A rank that fails would make torchrun end the others: only rank 0 tells of rows with errors.
    assert [exit_status(child) for child in children] == [0, 1]
    assert output.read_bytes() == whole.read_bytes()
    logs = [read_lines(tmp_path / "r.jsonl.run" / f"rows-{rank}.jsonl") for rank in (0, 1)]
    assert [len(log) for log in logs] == [20, 20]


def test_a_killed_rank_s_share_is_finished_by_another_number_of_ranks(dover, arguments, start, manifest, tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "r.jsonl"
    dover(manifest, "-o", whole)
    child = start(arguments(manifest, "-o", output), RANK="2", WORLD_SIZE="3")
    assert exit_status(child) == 0
    log = tmp_path / "r.jsonl.run" / "rows-2.jsonl"
    log.write_bytes(log.read_bytes()[:-30])  # killed in its last line
    assert dover(manifest, "-o", output, "--resume").exit_code == 1
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_torchrun(dover, arguments, clips, tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "r.jsonl"
    dover(clips, "--prompt", "a square", "-o", whole)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*torchrun, "dover_eval", *arguments(clips, "--prompt", "a square", "-o", output)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("a.mp4") == 1
    for here, there in zip(read_lines(whole), read_lines(output), strict=True):
        assert json.loads(json.dumps(here)) == pytest.approx(there, abs=1e-5)


def test_what_does_not_go_together_is_refused(dover, clips, tmp_path):
    for given, words in (
        (["--resume"], "need an --output"),
        (["--retry-failed", "-o", tmp_path / "r.csv"], "goes with --resume"),
        (["--engine", "slurm"], "'slurm' is not one of"),
        (["--num-gpus", "1"], "go with --engine ray"),
    ):
        result = dover(clips, "--prompt", "x", *given)
        assert result.exit_code == 2
        assert words in result.stderr


def test_an_environment_that_makes_no_sense_is_named(dover, clips, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    result = dover(clips, "--prompt", "x")
    assert result.exit_code == 2
    assert "WORLD_SIZE in the environment: expected a number, got 'two'" in result.stderr
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("RANK", "3")
    result = dover(clips, "--prompt", "x")
    assert result.exit_code == 2
    assert "RANK 3 in the environment: expected less than WORLD_SIZE, which is 1" in result.stderr
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")
    assert "LOCAL_WORLD_SIZE in the environment: expected at least 1" in dover(clips, "--prompt", "x").stderr
