"""Worker processes, each with a teacher of its own; the death of one costs the clip that it was at.

Of our own because concurrent.futures gives all jobs up when a process dies, without saying which clip caused it, and
codecs and models do crash.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from dover_eval.distillation.teacher import (
    Description,
    Scale,
    TeacherError,
    declared_scales,
    describe,
    judge,
    load_teacher,
)
from dover_eval.hashing import file_sha256
from dover_eval.wording import one_line

logger = logging.getLogger(__name__)
GRACE = 5.0  # seconds for workers to end by themselves
LOOK = 1.0  # seconds after which a worker is looked at that says nothing


@dataclass(frozen=True)
class Job:
    """A clip to judge. digest: that of what it was judged from before (see `Answer`), if it was."""

    name: str
    path: str
    prompt: str
    digest: str | None


@dataclass(frozen=True)
class Answer:
    """digest: the clip's sha256, or that of it and of the teacher's other `inputs`; None where one cannot be read.
    unchanged: judged before, and not again."""

    digest: str | None
    values: Mapping[str, float]
    error: str | None
    unchanged: bool = False


@dataclass(frozen=True)
class Setup:
    """How a worker makes its teacher. device: the option `device`, no part of who the teacher is; empty for none."""

    teacher: str
    options: Mapping[str, Any]
    scales: Mapping[str, Scale]
    threads: int
    device: str


class _Worker:
    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share CUDA and thread pools
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, setup))
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.setup = setup
        self.job: Job | None = None
        self.since = math.inf  # when it was given its job

    def send(self, job: Job) -> None:
        self.job, self.since = job, time.monotonic()
        with contextlib.suppress(OSError):  # it died between two jobs: the end of its pipe is about to say so
            self.pipe.send(job)

    @property
    def death(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def kill(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


class Workers:
    """Processes that judge clips. Use as a context manager; `description` is known once it is entered.

    timeout: seconds that a clip may take; a worker that takes longer is killed, and another takes its place.

    Raises TeacherError where the teacher cannot be loaded, or is another one in another process.
    """

    def __init__(self, setups: Sequence[Setup], timeout: float) -> None:
        self._setups = setups
        self._timeout = timeout
        self._workers: list[_Worker] = []
        self.description: Description

    def __enter__(self) -> Workers:
        try:
            self._workers = [_Worker(setup) for setup in self._setups]
            found = [self._ready(worker) for worker in self._workers]
            if other := [one for one in found if one != found[0]]:
                raise TeacherError(f"two workers have different teachers: {found[0]} and {other[0]}")
            self.description = found[0]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        until = time.monotonic() + GRACE
        try:
            for worker in self._workers:
                worker.pipe.close()
            for worker in self._workers:
                worker.process.join(max(until - time.monotonic(), 0))
        finally:  # also where somebody does not wait so long, and presses Ctrl-C again
            for worker in self._workers:
                worker.kill()

    @staticmethod
    def _ready(worker: _Worker) -> Description:
        try:
            while not worker.pipe.poll(LOOK):
                if not worker.process.is_alive() and not worker.pipe.poll():
                    raise EOFError
            message = worker.pipe.recv()
        except (EOFError, OSError):
            raise TeacherError(f"a worker died while it loaded {worker.setup.teacher} ({worker.death})") from None
        if isinstance(message, str):
            raise TeacherError(message)
        return message

    def judge(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
        """Each job with its answer, in the order in which they are done.

        Raises TeacherError where all workers died and none can be started anew.
        """
        waiting = deque(jobs)
        for worker in self._workers:
            if waiting:
                worker.send(waiting.popleft())
        while busy := [worker for worker in self._workers if worker.job]:
            said = wait([worker.pipe for worker in busy], LOOK)
            for worker in busy:
                # The end of its pipe says that a worker died, but where a child of its own lives on and holds it.
                gone = not worker.process.is_alive()
                late = time.monotonic() - worker.since > self._timeout
                if worker.pipe not in said and not (gone or late):
                    continue
                job, worker.job = worker.job, None
                assert job is not None
                answer = self._hear(worker, job)
                yield job, answer
                if not worker.process.is_alive():
                    self._workers.remove(worker)
                    worker.kill()
                    if not waiting or (fresh := self._another(worker.setup)) is None:
                        continue
                    worker = fresh
                if waiting:
                    worker.send(waiting.popleft())

    def _hear(self, worker: _Worker, job: Job) -> Answer:
        """What a worker says, or why it never will; then it is dead."""
        try:
            if worker.pipe.poll():
                return worker.pipe.recv()
        except (EOFError, OSError):
            return Answer(job.digest, {}, f"the worker died on this clip ({worker.death})")
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
            return Answer(job.digest, {}, f"took longer than {self._timeout:g} s")
        return Answer(job.digest, {}, f"the worker died on this clip ({worker.death})")

    def _another(self, setup: Setup) -> _Worker | None:
        """A worker in place of a dead one; None where it cannot be loaded, and the others go on without it."""
        fresh = _Worker(setup)
        self._workers.append(fresh)
        try:
            found = self._ready(fresh)
        except TeacherError as error:
            self._workers.remove(fresh)
            fresh.kill()
            if not self._workers:
                raise
            logger.warning("%s; %d workers go on", error, len(self._workers))
            return None
        if found != self.description:
            raise TeacherError(f"the teacher changed during the run: {self.description}, then {found}")
        return fresh


def _work(pipe: Connection, setup: Setup) -> None:
    """A worker's life: the teacher's description, or why there is none, then an answer a job until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # what a teacher prints is no output of ours
    os.environ.setdefault("OMP_NUM_THREADS", str(setup.threads))
    try:
        options = dict(setup.options)
        teacher = load_teacher(setup.teacher, options | ({"device": setup.device} if setup.device else {}))
        scales = declared_scales(teacher, setup.teacher, setup.scales)
        pipe.send(describe(teacher, setup.teacher, options, scales))
    except TeacherError as error:
        pipe.send(str(error))
        return
    except Exception as error:
        pipe.send(f"{setup.teacher} cannot be loaded ({_reason(error)})")
        return
    while True:
        try:
            job: Job = pipe.recv()
            pipe.send(_answer(job, teacher, scales))
        except (EOFError, OSError):
            return


def _end_with_parent() -> None:
    """A teacher may be at a clip for ever, and would keep its GPU from the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(job: Job, teacher: Any, scales: Mapping[str, Scale]) -> Answer:
    digest = None
    try:
        digest = file_sha256(job.path, *getattr(teacher, "inputs", lambda path: ())(job.path))
        if digest == job.digest:
            return Answer(digest, {}, None, unchanged=True)
        return Answer(digest, judge(teacher, scales, job.path, job.prompt), None)
    except Exception as error:
        return Answer(digest, {}, _reason(error))


def _reason(error: Exception) -> str:
    """On one line, with the kind of error where the message alone may not tell."""
    return one_line(error, kind=not isinstance(error, ValueError | FileNotFoundError))
