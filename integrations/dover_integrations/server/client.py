"""`DoverRewardClient`: the call of `DoverReward`, answered by a server."""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NoReturn

import httpx
import torch
from torch import Tensor

from dover_eval.opinion import MOS_MAX, MOS_MIN, SCORE_NAMES
from dover_integrations.rewards.core import DoverReward
from dover_integrations.rewards.engine import RewardError
from dover_integrations.rewards.reading import Failure, Item, to_unit
from dover_integrations.server.settings import clean_token
from dover_integrations.server.wire import REWARD_NAME, SAFETENSORS, encode_clips

RETRIED = (429, 502, 503)
TOO_LARGE, TOO_SLOW = 413, 504
# Of one request: mostly below the server's own limits, and small enough to be sent again.
CLIPS_PER_REQUEST = 16
BYTES_PER_REQUEST = 64 * 2**20
REQUESTS_AT_ONCE = 4
LONGEST_WAIT = 16.0  # seconds before a request is sent again: who asks for many tries waits for a server, not for hours


class _TooMuch(RewardError):
    """A request that the server did not take, or not score in time; one of fewer clips it may."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DoverRewardClient(DoverReward):
    """Rewards from a server: swap it for a `DoverReward` and change nothing else; picklable, for threads and forks.

    Clips cross the wire as uint8, so floats are rounded to 256 levels; files are sent whole. There are no gradients
    over HTTP, and `to`, `offload` and `onload` do nothing: the model is not here.

    Args:
        url: such as "http://127.0.0.1:8000".
        weights, layout, value_range, mean, std, nan_policy: as in `DoverReward`.
        token: the server's bearer token.
        timeout: seconds that one answer may take; one that takes longer is not asked for again.
        retries: how often a request is sent again after a broken connection or an answer of 429, 502 or 503,
            after 0.5, 1, 2, 4, 8, 16, 16, ... seconds, or longer where the server asks, and at most 16.
            Scoring again changes nothing.

    Attributes:
        fingerprint: of the server's model and sampling, from the first answer on; copies know it, too. Scores of
            another do not compare with those before, and raise RewardError. None takes the next answer's.
    """

    def __init__(
        self,
        url: str,
        *,
        weights: Mapping[str, float] | None = None,
        layout: str,
        value_range: tuple[float, float],
        mean: float | None = None,
        std: float | None = None,
        nan_policy: Literal["raise", "nan"] = "raise",
        token: str | None = None,
        timeout: float = 300.0,
        retries: int = 6,
    ) -> None:
        super().__init__(
            weights=weights, layout=layout, value_range=value_range, mean=mean, std=std, nan_policy=nan_policy
        )
        if not re.match(r"https?://[^/]", url, re.IGNORECASE):
            raise ValueError(f'expected a URL such as "http://127.0.0.1:8000", got "{url}"')
        self.url = url.rstrip("/")
        self.retries = retries
        self.fingerprint: str | None = None
        self._token = clean_token(token)
        self._timeout = timeout
        self._http: dict[int, httpx.Client] = {}  # by process: a forked child must not speak on its parent's lines

    def scores(self, videos: Any, prompts: str | Sequence[str]) -> Tensor:
        """The five scores (B,5), as `DoverReward.scores`.

        Raises RewardError where the server cannot be reached, refuses, answers with something else, or has another
        model than it had.
        """
        items = [_readable(item) for item in self.reader.read(videos, prompts)]
        requests = _requests(items)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) if len(requests) > 1 else nullcontext() as pool:
            ask = lambda places: self._ask([items[i] for i in places])
            answers = list((pool.map if pool else map)(ask, requests))
        rows = dict(zip(chain(*requests), chain(*answers), strict=True))
        return self._gather([item if isinstance(item, Failure) else rows[i] for i, item in enumerate(items)])

    async def scores_async(self, videos: Any, prompts: str | Sequence[str]) -> Tensor:
        """`scores` for a coroutine."""
        return await asyncio.to_thread(self.scores, videos, prompts)

    def health(self) -> dict[str, Any]:
        """The server's own account: status, what it serves, and its fingerprint."""
        return self._send(lambda http: http.get("/health"))

    def submit(self, videos: Any, prompts: str | Sequence[str]) -> NoReturn:
        """Not offered over HTTP."""
        raise RewardError("submit() is for a model in this process; use scores_async() with a server")

    def differentiable_scores(self, frames: Any, prompts: str | Sequence[str], **settings: Any) -> NoReturn:
        """Not offered over HTTP."""
        raise RewardError("no gradients come back over HTTP: use DoverReward in the training process")

    def load(self) -> NoReturn:
        """There is no model here."""
        raise RewardError(f"the model is at {self.url}, not in this process")

    def to(self, device: str | torch.device) -> DoverRewardClient:
        """Nothing to move."""
        return self

    def offload(self) -> None:
        """Nothing to move."""

    def onload(self) -> None:
        """Nothing to move."""

    def close(self) -> None:
        """Close the connections of this process."""
        if (http := self._http.pop(os.getpid(), None)) is not None:
            http.close()

    def _ask(self, items: list[Item]) -> list[Tensor | Failure]:
        """The rows of items that are all files or all tensors."""
        prompts = [item.prompt for item in items]
        paths = [item.clip for item in items if isinstance(item.clip, Path)]
        if paths:
            request = lambda http: _post_files(http, paths, prompts)
        else:
            body = encode_clips([_as_bytes(item) for item in items], prompts)
            request = lambda http: http.post("/score", content=body, headers={"Content-Type": SAFETENSORS})
        try:
            answer = self._send(request)
        except _TooMuch as error:
            half = len(items) // 2
            if not half:
                if error.status == TOO_SLOW:  # the next clip would wait as long in vain
                    raise
                return [Failure(str(error))]  # a clip that no request can bring
            return self._ask(items[:half]) + self._ask(items[half:])
        rows = _rows(answer, len(items))
        self._check_fingerprint(answer.get("fingerprint"))
        return rows

    def _check_fingerprint(self, found: Any) -> None:
        if not isinstance(found, str):
            raise RewardError(f"expected a text as fingerprint from {self.url}, got {str(found)[:80]}")
        with self._loading:
            known = self.fingerprint = self.fingerprint or found
        if found != known:
            raise RewardError(
                f"expected scores of the model with fingerprint {known} from {self.url}, got those of {found}, which "
                "do not compare with what came before; to go on with it, set this client's fingerprint to None"
            )

    def _send(self, request: Callable[[httpx.Client], httpx.Response]) -> dict[str, Any]:
        problem = ""
        for attempt in range(self.retries + 1):
            wait = 0.5 * 2**attempt * random.uniform(0.8, 1.2)
            try:
                response = request(self._client())
            except httpx.DecodingError as error:
                raise RewardError(f"expected an answer that can be read from {self.url}, got {error}") from error
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                if isinstance(error, httpx.ReadTimeout):  # the server may be at it still, and would begin once more
                    break
            else:
                if response.status_code == 200:
                    return _json(response)
                problem = f"{response.status_code}: {response.text[:500]}"
                if response.status_code in (TOO_LARGE, TOO_SLOW):
                    raise _TooMuch(response.status_code, f"no rewards from {self.url}: {problem}")
                if response.status_code not in RETRIED:
                    break
                wait = max(wait, _seconds(response.headers.get("retry-after", "")))
            if attempt < self.retries:
                time.sleep(min(wait, LONGEST_WAIT))
        raise RewardError(f"no rewards from {self.url}: {problem}")

    def _client(self) -> httpx.Client:
        with self._loading:
            http = self._http.get(os.getpid())
            if http is None:
                headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
                # A proxy from the environment has no business between a trainer and its reward server.
                http = httpx.Client(base_url=self.url, headers=headers, timeout=self._timeout, trust_env=False)
                self._http[os.getpid()] = http
            return http

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_http": {}}

    def __repr__(self) -> str:
        return f"DoverRewardClient({self.url}, {self.weights}, {self.reader})"


def _readable(item: Item | Failure) -> Item | Failure:
    if isinstance(item, Item) and isinstance(item.clip, Path):
        try:
            item.clip.open("rb").close()
        except OSError as error:
            return Failure(f"{item.clip}: {error.strerror or error}")
    return item


def _requests(items: Sequence[Item | Failure]) -> list[list[int]]:
    """Places of the items that go together: files or tensors, in order, no more than a request may hold."""
    requests: list[list[int]] = []
    for kind in (Path, Tensor):
        size = 0
        for i, item in enumerate(items):
            if not isinstance(item, Item) or not isinstance(item.clip, kind):
                continue
            bytes_ = item.clip.stat().st_size if isinstance(item.clip, Path) else item.clip.numel()
            if not size or size + bytes_ > BYTES_PER_REQUEST or len(requests[-1]) == CLIPS_PER_REQUEST:
                requests.append([])
                size = 0
            requests[-1].append(i)
            size += bytes_
    return requests


def _seconds(retry_after: str) -> float:
    """What the header Retry-After asks to wait: seconds, or until a date; 0 for anything else."""
    try:
        seconds = float(retry_after)
        return seconds if math.isfinite(seconds) else 0.0
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(timezone.utc)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no date, one without a zone, or of a year that is none
        return 0.0


def _as_bytes(item: Item) -> Tensor:
    assert isinstance(item.clip, Tensor)
    if item.clip.dtype == torch.uint8:
        return item.clip
    return (to_unit(item.clip.detach(), item.value_range) * 255).round().to(torch.uint8)


def _post_files(http: httpx.Client, paths: Sequence[Path], prompts: list[str]) -> httpx.Response:
    files = [("videos", (path.name, path.read_bytes(), "application/octet-stream")) for path in paths]
    return http.post("/score", files=files, data={"prompts": prompts})


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except (ValueError, RecursionError) as error:
        raise RewardError(f"expected JSON from {response.url}, got {response.text[:80]!r}") from error
    if not isinstance(answer, dict):
        raise RewardError(f"expected a JSON object from {response.url}, got {response.text[:80]!r}")
    return answer


def _rows(answer: dict[str, Any], count: int) -> list[Tensor | Failure]:
    results, errors = answer.get("results"), answer.get("errors")
    if not isinstance(results, list) or not isinstance(errors, list) or not len(results) == len(errors) == count:
        raise RewardError(f"expected {count} results and errors, got {str(answer)[:200]}")
    rows: list[Tensor | Failure] = []
    for result, error in zip(results, errors, strict=True):
        if not isinstance(result, dict) or not isinstance(error, dict):
            raise RewardError(f"expected objects as result and error, got {str(result)[:100]} and {str(error)[:100]}")
        if REWARD_NAME in result:
            rows.append(_row(result[REWARD_NAME]))
        else:
            rows.append(Failure(error.get(REWARD_NAME, "the server gave neither scores nor a reason")))
    return rows


def _row(found: Any) -> Tensor:
    scores: list[Any] = [found.get(name) for name in SCORE_NAMES] if isinstance(found, dict) else []
    # JSON as Python reads it has NaN. On another scale, scores would train another policy, and nobody would know.
    if not scores or not all(type(score) in (int, float) and MOS_MIN <= score <= MOS_MAX for score in scores):
        expected = f"expected a number from {MOS_MIN:g} to {MOS_MAX:g} for each of {SCORE_NAMES}"
        raise RewardError(f"{expected}, got {str(found)[:200]}")
    return torch.tensor(scores, dtype=torch.float32)
