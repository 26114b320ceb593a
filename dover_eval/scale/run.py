"""A set of clips from the first to the last: what is done already, the rest by an engine, and the results file."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dover_eval import __version__
from dover_eval.files import Clip
from dover_eval.hashing import file_sha256
from dover_eval.hub import EMBEDDED, local_folder
from dover_eval.results import Row
from dover_eval.scale.runlog import RunLog, Scored

Claim = Callable[[Mapping[str, Any], str], None]
# Batches in, their rows out in any order; before the first rows it says what they are made with.
Engine = Callable[[Sequence[int], Claim], Iterator[Scored]]
ROWS_SHOWN = 100
JOIN_POLL_SECONDS = 0.5
SILENT_POLLS = 60  # before rank 0 says whom it waits for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Which part of a set this process scores: one of `world`, as torchrun and its like say in the environment."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of_environment(cls) -> Share:
        """Raises ValueError for words where numbers belong, and for a rank that its world does not have."""

        def read(name: str, default: int) -> int:
            value = os.environ.get(name) or str(default)
            if not value.isdecimal():
                raise ValueError(f"{name} in the environment: expected a number, got {value!r}")
            return int(value)

        world = read("WORLD_SIZE", 1)
        rank = read("RANK", 0)
        if rank >= world:
            raise ValueError(f"RANK {rank} in the environment: expected less than WORLD_SIZE, which is {world}")
        local_world = read("LOCAL_WORLD_SIZE", world)
        if not local_world:
            raise ValueError("LOCAL_WORLD_SIZE in the environment: expected at least 1, got 0")
        return cls(rank, world, read("LOCAL_RANK", rank), local_world)


@dataclass(frozen=True)
class Outcome:
    """clips, failed: how many in all. scored: how many by this call. fingerprint: of all of them. rows: the first
    `ROWS_SHOWN` of a file, all of a set that is written nowhere."""

    clips: int
    failed: int
    scored: int
    fingerprint: str | None
    rows: list[Row]


def score_set(
    clips: Sequence[Clip],
    output: Path,
    engine: Engine,
    *,
    batch_size: int,
    settings: Mapping[str, Any],
    share: Share,
    resume: bool,
    retry_failed: bool = False,
    asked: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Outcome:
    """Score `clips` into `output`; rank 0 returns when all ranks have done their share and the file is there.

    `asked` identifies what makes the scores without loading it: a finished run that was begun with the same is told
    to be finished without asking the engine. None asks it.

    Raises RunError.
    """
    log = RunLog(output, len(clips), batch_size, settings, rank=share.rank, resume=resume, retry_failed=retry_failed)
    try:
        log.check(clips)
        progress(log.done)
        scored = 0
        mine = [batch for batch in log.missing if batch % share.world == share.rank]
        if share.rank == 0:  # alone: another rank cannot tell whether a batch has been tried again already
            mine = sorted({*mine, *log.again})
        if mine or not log.is_finished(asked):
            for batch in engine(mine, log.claim):
                log.append(batch)
                scored += len(batch.rows)
                progress(len(batch.rows))
        if share.rank == 0:
            silent = 0
            while missing := log.missing:  # what other ranks still score
                time.sleep(JOIN_POLL_SECONDS)
                before = log.done
                log.refresh()
                progress(log.done - before)
                silent = 0 if log.done > before else silent + 1
                if silent == SILENT_POLLS:
                    ranks = ", ".join(map(str, sorted({batch % share.world for batch in missing})))
                    logger.warning(
                        "%s: waiting for %d batches of rank %s of %d, from which nothing came for %g s; a rank that "
                        "has ended goes on when it is started again",
                        output, len(missing), ranks, share.world, SILENT_POLLS * JOIN_POLL_SECONDS,
                    )  # fmt: skip
            log.finish(clips, asked)
        return Outcome(len(clips), log.failed, scored, log.digest, list(itertools.islice(log.rows(clips), ROWS_SHOWN)))
    finally:
        log.close()


def score_in_memory(
    count: int, engine: Engine, *, batch_size: int, progress: Callable[[int], None] = lambda rows: None
) -> Outcome:
    """Score `count` clips for a look, without a file."""
    digests: list[str] = []
    found: list[Scored] = []
    for batch in engine(range(-(-count // batch_size)), lambda made_with, digest: digests.append(digest)):
        found.append(batch)
        progress(len(batch.rows))
    rows = [row for batch in sorted(found, key=lambda batch: batch.first) for row in batch.rows]
    return Outcome(count, sum(row["error"] is not None for row in rows), count, digests[0], rows)


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def what_is_asked(model: str | None, device: str | None, calibration: Path | None) -> dict[str, Any] | None:
    """What makes the scores, told from files and versions alone; None for a model of the hub, which is to be loaded."""
    folder = EMBEDDED if model is None else local_folder(model)
    if folder is None:
        return None
    files = [folder / "config.json", folder / "model.safetensors", *([calibration] if calibration else [])]
    if not all(file.is_file() for file in files):
        return None
    return {
        "files": [file_sha256(file) for file in files],
        "device": device,
        "versions": [__version__, *map(version, ("torch", "transformers"))],
    }
