"""One worker that turns single requests from many threads or coroutines into batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

LINGER = 0.005  # seconds that an item waits for company at most, those spent waiting for an earlier batch included
IDLE = 2.0  # seconds without work after which the worker thread ends; the next item starts a new one
POLL = 0.1

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatcher(Generic[Item, Result]):
    """Gathers items into batches and runs them one batch at a time, in the order in which they came.

    Args:
        run: a batch of items to as many results. Where it raises, the items are run one by one, and what it raises for
            one of them goes to that one alone.
        max_batch: a batch that has as many items starts at once.
    """

    def __init__(self, run: Callable[[list[Item]], Sequence[Result]], max_batch: int) -> None:
        if max_batch < 1:
            raise ValueError(f"expected a max_batch of at least 1, got {max_batch}")
        self._run = run
        self._max_batch = max_batch
        self._condition = threading.Condition()
        self._pending: deque[tuple[Item, Future[Result], float]] = deque()
        self._worker: threading.Thread | None = None

    def submit(self, items: Sequence[Item]) -> list[Future[Result]]:
        """A future for each item; one that is cancelled in time is not run."""
        futures: list[Future[Result]] = [Future() for _ in items]
        now = time.monotonic()
        with self._condition:
            self._pending.extend((item, future, now) for item, future in zip(items, futures, strict=True))
            # Not alive also in a forked child, which inherits the object but not the thread.
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._work, name="dover-reward")
                self._worker.start()
            self._condition.notify_all()
        return futures

    def _work(self) -> None:
        while batch := self._next_batch():
            self._run_batch(batch)
            del batch  # or its clips would be kept while there is nothing to do

    def _run_batch(self, batch: list[tuple[Item, Future[Result]]]) -> None:
        items = [item for item, _ in batch]
        try:
            results = self._run(items)
            if len(results) != len(items):
                raise RuntimeError(f"expected {len(items)} results, got {len(results)}")
        except BaseException as error:
            if len(batch) == 1 or not isinstance(error, Exception):
                for _, future in batch:
                    future.set_exception(error)
            else:
                for one in batch:
                    self._run_batch([one])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)

    def _next_batch(self) -> list[tuple[Item, Future[Result]]]:
        """The next items to run; none when there was nothing to do for a while, and this worker is to end."""
        while True:
            with self._condition:
                if not self._wait_for_work():
                    self._worker = None
                    return []
                deadline = self._pending[0][2] + LINGER
                self._condition.wait_for(
                    lambda: len(self._pending) >= self._max_batch, max(deadline - time.monotonic(), 0)
                )
                if batch := self._take():
                    return batch

    def _take(self) -> list[tuple[Item, Future[Result]]]:
        """The oldest items, as many as a batch has, of those that have not been cancelled."""
        batch: list[tuple[Item, Future[Result]]] = []
        while self._pending and len(batch) < self._max_batch:
            item, future, _ = self._pending.popleft()
            if future.set_running_or_notify_cancel():
                batch.append((item, future))
        return batch

    def _wait_for_work(self) -> bool:
        """Whether there is any, before `IDLE` has passed or the program wants to end.

        The worker is no daemon thread: one of those dies inside the model when the interpreter ends, and takes the
        process with it.
        """
        deadline = time.monotonic() + IDLE
        while not self._condition.wait_for(lambda: bool(self._pending), POLL):
            if time.monotonic() > deadline or not threading.main_thread().is_alive():
                return False
        return True
