"""`DoverRewardClient`: the call of `DoverReward`, answered by a server."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NoReturn

import httpx
import torch
from torch import Tensor

from dover_eval.models.heads import SCORE_NAMES
from dover_integrations.rewards.core import DoverReward
from dover_integrations.rewards.engine import Failure, Item, RewardError
from dover_integrations.server.wire import REWARD_NAME, SAFETENSORS, encode_clips

RETRIED = (429, 502, 503, 504)
CLIPS_PER_REQUEST = 16
REQUESTS_AT_ONCE = 4


class DoverRewardClient(DoverReward):
    """Rewards from a server: swap it for a `DoverReward` and change nothing else; also picklable and thread-safe.

    Clips cross the wire as uint8, so floats are rounded to 256 levels; files are sent whole. There are no gradients
    over HTTP, and `to`, `offload` and `onload` do nothing: the model is not here.

    Args:
        url: such as "http://127.0.0.1:8000".
        weights, layout, value_range, mean, std, nan_policy: as in `DoverReward`.
        token: the server's bearer token.
        timeout: seconds that one answer may take.
        retries: how often a request is sent again after a broken connection or an answer of 429, 502, 503 or 504,
            after 0.5, 1, 2, 4, ... seconds or what the server asks for. Scoring again changes nothing.
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
        self.url = url.rstrip("/")
        self.retries = retries
        self._token = token
        self._timeout = timeout
        self._http: httpx.Client | None = None

    def scores(self, videos: Any, prompts: str | Sequence[str]) -> Tensor:
        """The five scores (B,5), as `DoverReward.scores`.

        Raises RewardError where the server cannot be reached, refuses, or answers with something else.
        """
        items = self._read(videos, prompts)
        good = [item for item in items if isinstance(item, Item)]
        chunks = [good[i : i + CLIPS_PER_REQUEST] for i in range(0, len(good), CLIPS_PER_REQUEST)]
        if len(chunks) > 1:
            with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
                answers = list(pool.map(self._ask, chunks))
        else:
            answers = [self._ask(chunk) for chunk in chunks]
        rows = iter([row for answer in answers for row in answer])
        return self._gather([next(rows) if isinstance(item, Item) else item for item in items])

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
        """Close the connections."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def _ask(self, items: list[Item]) -> list[Tensor | Failure]:
        prompts = [item.prompt for item in items]
        paths = [item.clip for item in items if isinstance(item.clip, Path)]
        if paths and len(paths) < len(items):
            raise TypeError(f"expected files alone or tensors alone, got {len(paths)} files of {len(items)}")
        if paths:
            answer = self._send(lambda http: _post_files(http, paths, prompts))
        else:
            body = encode_clips([_as_bytes(item) for item in items], prompts)
            answer = self._send(lambda http: http.post("/score", content=body, headers={"Content-Type": SAFETENSORS}))
        return _rows(answer, len(items))

    def _send(self, request: Callable[[httpx.Client], httpx.Response]) -> dict[str, Any]:
        problem = ""
        for attempt in range(self.retries + 1):
            wait = 0.5 * 2**attempt * random.uniform(0.8, 1.2)
            try:
                response = request(self._client())
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return _json(response)
                problem = f"{response.status_code}: {response.text[:500]}"
                if response.status_code not in RETRIED:
                    break
                wait = max(wait, float(response.headers.get("retry-after", 0)))
            if attempt < self.retries:
                time.sleep(wait)
        raise RewardError(f"no rewards from {self.url}: {problem}")

    def _client(self) -> httpx.Client:
        with self._loading:
            if self._http is None:
                headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
                # A proxy from the environment has no business between a trainer and its reward server.
                self._http = httpx.Client(base_url=self.url, headers=headers, timeout=self._timeout, trust_env=False)
            return self._http

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_http": None}

    def __repr__(self) -> str:
        return f'DoverRewardClient({self.url}, {self.weights}, layout="{self.layout}", value_range={self.value_range})'


def _as_bytes(item: Item) -> Tensor:
    assert isinstance(item.clip, Tensor)
    if item.clip.dtype == torch.uint8:
        return item.clip
    low, high = item.value_range
    return ((item.clip.detach().float() - low) * (255 / (high - low))).round().to(torch.uint8)


def _post_files(http: httpx.Client, paths: Sequence[Path], prompts: list[str]) -> httpx.Response:
    files = [("videos", (path.name, path.read_bytes(), "application/octet-stream")) for path in paths]
    return http.post("/score", files=files, data={"prompts": prompts})


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError as error:
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
        if REWARD_NAME in result:
            rows.append(torch.tensor([result[REWARD_NAME][name] for name in SCORE_NAMES]))
        else:
            rows.append(Failure(error.get(REWARD_NAME, "the server gave neither scores nor a reason")))
    return rows
