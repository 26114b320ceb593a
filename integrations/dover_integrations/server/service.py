"""What stands between the routes and the reward: a bound on what waits, and counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from dover_integrations.rewards.core import DoverReward
from dover_integrations.rewards.reading import Failure
from dover_integrations.server.settings import LONGEST_PROMPT, ServerSettings
from dover_integrations.server.wire import BadRequest

Row = Tensor | Failure


class ScoringService:
    """One reward model, a bound on what waits for it, and counts of what it did."""

    def __init__(self, reward: DoverReward, settings: ServerSettings) -> None:
        self.reward = reward
        self.settings = settings
        self.fingerprint = ""  # once `load` is done
        self.waiting = 0
        self.registry = CollectorRegistry()
        self.clips = Counter("dover_clips", "clips by outcome", ["outcome"], registry=self.registry)
        self.seconds = Histogram("dover_request_seconds", "time to answer", ["path"], registry=self.registry)
        self.answers = Counter("dover_requests", "requests by status", ["path", "status"], registry=self.registry)
        Gauge("dover_waiting_clips", "clips that wait or are being scored", registry=self.registry).set_function(
            lambda: self.waiting
        )

    def load(self) -> None:
        """Load the model, and digest what it is made of, which takes a pass over all its weights."""
        self.fingerprint = self.reward.scorer.fingerprint.digest

    def check(self, count: int, prompts: Sequence[str]) -> None:
        """Raises HTTPException 413, after which a client sends two halves, for more clips than one request or the queue
        may hold, and BadRequest for prompts that are not one a clip, or too long."""
        if count > self.settings.max_clips:
            raise HTTPException(413, f"expected at most {self.settings.max_clips} clips, got {count}")
        if count > self.settings.queue_size:
            raise HTTPException(413, f"expected at most {self.settings.queue_size} clips, the whole queue, got {count}")
        if count != len(prompts):
            raise BadRequest(f"expected {count} prompts, one a clip, got {len(prompts)}")
        for i, prompt in enumerate(prompts):
            if len(prompt) > LONGEST_PROMPT:
                raise BadRequest(f"expected at most {LONGEST_PROMPT} characters of prompt {i}, got {len(prompt)}")

    async def score(self, clips: Sequence[Tensor | Failure], prompts: Sequence[str]) -> list[Row]:
        """The rows of the clips, in order, a Failure staying one; what has not begun when this is cancelled never does.

        Clips and prompts have passed `check`. HTTPException 429 where there is no room.
        """
        good = {i: clip for i, clip in enumerate(clips) if isinstance(clip, Tensor)}
        if self.waiting + len(good) > self.settings.queue_size:
            raise HTTPException(
                429, f"{self.waiting} of {self.settings.queue_size} clips are waiting", {"Retry-After": "1"}
            )
        try:
            futures = self.reward.submit(list(good.values()), [prompts[i] for i in good])
        except ValueError as error:  # an empty prompt
            raise BadRequest(str(error)) from error
        self.waiting += len(futures)
        loop = asyncio.get_running_loop()
        for future in futures:
            if isinstance(future, Failure):
                self.waiting -= 1
            else:
                future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._one_less))
        scored: dict[int, Row] = dict(zip(good, await self._gather(futures), strict=True))
        rows = [scored.get(i, clip) for i, clip in enumerate(clips)]
        failed = sum(isinstance(row, Failure) for row in rows)
        self.clips.labels("scored").inc(len(rows) - failed)
        self.clips.labels("failed").inc(failed)
        return rows

    def _one_less(self) -> None:
        self.waiting -= 1

    async def _gather(self, futures: Sequence[Future[Row] | Failure]) -> list[Row]:
        waiting = [asyncio.wrap_future(future) for future in futures if not isinstance(future, Failure)]
        rows = iter(await asyncio.gather(*waiting))
        return [future if isinstance(future, Failure) else next(rows) for future in futures]


class Counted:
    """ASGI middleware: how many requests, with what answer, in what time."""

    def __init__(self, app: ASGIApp, service: ScoringService) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0  # stays so where the client goes away before its answer

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        start = time.perf_counter()
        try:
            await self.app(scope, receive, noted)
        finally:
            # The route, not what a stranger typed: labels must stay few.
            path = getattr(scope.get("route"), "path", "other")
            self.service.seconds.labels(path).observe(time.perf_counter() - start)
            self.service.answers.labels(path, str(status)).inc()
