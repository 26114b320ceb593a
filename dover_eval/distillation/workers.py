"""Worker processes, each with a teacher of its own; the death of one costs the clip that it was at.

Of our own because concurrent.futures gives all jobs up when a process dies, without a word on which clip did it, and
codecs and models do crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, BinaryIO

from dover_eval.distillation.teacher import (
    Description,
    Scale,
    TeacherError,
    declared_scales,
    describe,
    judge,
    load_teacher,
)

GRACE = 5.0  # seconds for a worker to end by itself


@dataclass(frozen=True)
class Job:
    """A clip to judge. digest: the sha256 of the file as it was judged before, if it was."""

    name: str
    path: str
    prompt: str
    digest: str | None


@dataclass(frozen=True)
class Answer:
    """`digest` is the file's sha256, None where it cannot be read. `unchanged`: judged before, and not again."""

    digest: str | None
    values: Mapping[str, float]
    error: str | None
    unchanged: bool = False


@dataclass(frozen=True)
class Setup:
    """How a worker makes its teacher. device: the option `device`, apart as it is no part of who the teacher is."""

    teacher: str
    options: Mapping[str, Any]
    scales: Mapping[str, Scale]
    threads: int
    device: str | None = None


class _Worker:
    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share CUDA and thread pools
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, setup))
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.setup = setup
        self.job: Job | None = None

    def send(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # it died between two jobs: the end of its pipe is about to say so
            self.pipe.send(job)

    @property
    def death(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def end(self) -> None:
        self.pipe.close()
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Workers:
    """Processes that judge clips. Use as a context manager; `description` is known once it is entered.

    Raises TeacherError where the teacher cannot be had, or is another one in another process.
    """

    def __init__(self, setups: Sequence[Setup]) -> None:
        self._setups = setups
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
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.end()

    @staticmethod
    def _ready(worker: _Worker) -> Description:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            raise TeacherError(f"a worker died while it loaded {worker.setup.teacher} ({worker.death})") from None
        if isinstance(message, str):
            raise TeacherError(message)
        return message

    def judge(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
        """Each job with its answer, in the order in which they are done."""
        waiting = deque(jobs)
        for worker in self._workers:
            if waiting:
                worker.send(waiting.popleft())
        while busy := {worker.pipe: worker for worker in self._workers if worker.job}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                job, worker.job = worker.job, None
                assert job is not None
                try:
                    answer: Answer = worker.pipe.recv()
                except (EOFError, OSError):
                    answer = Answer(job.digest, {}, f"the worker died on this clip ({worker.death})")
                    worker = self._replace(worker)
                yield job, answer
                if waiting:
                    worker.send(waiting.popleft())

    def _replace(self, dead: _Worker) -> _Worker:
        dead.end()
        self._workers.remove(dead)
        fresh = _Worker(dead.setup)
        self._workers.append(fresh)
        if (found := self._ready(fresh)) != self.description:
            raise TeacherError(f"the teacher changed during the run: {self.description}, then {found}")
        return fresh


def _work(pipe: Connection, setup: Setup) -> None:
    """A worker's life: the teacher's description, or why there is none, then an answer a job until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
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


def _answer(job: Job, teacher: Any, scales: Mapping[str, Scale]) -> Answer:
    digest = None
    try:
        with open(job.path, "rb") as file:
            digest = _sha256(file)
        if digest == job.digest:
            return Answer(digest, {}, None, unchanged=True)
        return Answer(digest, judge(teacher, scales, job.path, job.prompt), None)
    except Exception as error:
        return Answer(digest, {}, _reason(error))


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest is newer than Python 3.10
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """On one line, with the kind of error where the message alone may not tell."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | FileNotFoundError) and text else f"{type(error).__name__}: {text}"
