"""The routes: bodies in, scores out; the queue behind them makes the batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from torch import Tensor

import dover_eval
from dover_eval.opinion import SCORE_NAMES
from dover_integrations.rewards.core import DoverReward
from dover_integrations.rewards.reading import BYTE_RANGE, Failure
from dover_integrations.server import media
from dover_integrations.server.guard import Guard
from dover_integrations.server.memory import Held
from dover_integrations.server.schemas import (
    IDENTITY,
    ComputeRequest,
    ComputeResponse,
    Health,
    Problem,
    ScoreRequest,
    ScoreResponse,
)
from dover_integrations.server.service import Counted, Row, ScoringService
from dover_integrations.server.settings import ServerSettings
from dover_integrations.server.wire import REWARD_NAME, SAFETENSORS, BadRequest, decode_clips

T = TypeVar("T")
# Of JSON, a clip: the fields of an item, and the commas in its prompt.
SMALL_VALUES = 2048
HEADLINE_FIRST = sorted(SCORE_NAMES, key=lambda name: name != "Overall")
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "an unreadable body, a prompt that is too long, frames of /compute that are no pictures or too many",
        401: "no valid bearer token",
        403: "where no token is asked for: a Host that is a name, or a web page",
        408: "the body did not arrive in time",
        413: "the request is too large by itself: its body, the frames decoded from it, or its clips",
        415: "a content type that is not served",
        422: "JSON of another form",
        429: "the queue is full: try again",
        503: "too many connections, or the client went away",
        504: "not scored in time",
    }.items()
}


def create_app(reward: DoverReward, settings: ServerSettings | None = None) -> FastAPI:
    """The server as an ASGI application.

    `reward` must read uint8 clips in "TCHW" (or "BTCHW") with `value_range` (0, 255): its weights, mean and std make
    the rewards of `/compute`. The model is loaded when the application starts.
    """
    if reward.reader.layout.removeprefix("B") != "TCHW" or reward.reader.value_range != BYTE_RANGE:
        raise ValueError(f'expected layout "TCHW" and value_range (0, 255), got {reward}')
    settings = settings or ServerSettings()
    service = ScoringService(reward, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.load)
        yield

    app = FastAPI(
        title="dover-eval",
        description="Scores videos against their prompts: five mean-opinion scores from 1 to 5.",
        version=dover_eval.__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages' scripts come from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Counted, service=service)
    _add_problem_handlers(app)
    _describe_json_bodies(app)

    @app.post("/score", response_model=ScoreResponse, responses=PROBLEMS, openapi_extra=SCORE_BODY)
    async def score(request: Request) -> ScoreResponse:
        """Score clips: a safetensors body, video files in a form, or JSON as UniRL sends it."""
        memory: Held = request.scope["memory"]
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == SAFETENSORS:
            work = _score_tensors(service, memory, await request.body())
        elif kind == "multipart/form-data":
            work = _score_files(service, memory, *await _read_form(request, settings))
        elif kind == "application/json":
            work = _score_json(service, memory, _parse(ScoreRequest, await request.body(), settings, memory))
        else:
            raise HTTPException(415, f"expected {SAFETENSORS}, multipart/form-data or application/json, got {kind!r}")
        return await in_time(request, work, settings.timeout)

    @app.post("/compute", response_model=ComputeResponse, responses=PROBLEMS, openapi_extra=COMPUTE_BODY)
    async def compute(request: Request) -> ComputeResponse:
        """Rewards as Flow-Factory's remote reward model asks for them; one clip that fails fails the request."""
        memory: Held = request.scope["memory"]
        asked = _parse(ComputeRequest, await request.body(), settings, memory)
        service.check(len(asked.video), asked.prompt)
        names = [f"video {i}" for i in range(len(asked.video))]

        async def work() -> list[Row]:
            read = lambda i: media.clip_from_frames(asked.video[i], settings, memory.take, names[i])
            return await service.score(await _decoded(memory, read, len(names)), asked.prompt)

        rows = await in_time(request, work(), settings.timeout)
        for name, row in zip(names, rows, strict=True):
            if isinstance(row, Failure):
                return ComputeResponse(error=f"{name}: {row.reason}")
        rewards = [reward.combine(row[None]).item() for row in rows if isinstance(row, Tensor)]
        return ComputeResponse(rewards=rewards)

    @app.get("/health", response_model=Health)
    async def health() -> Health:
        """Whether the server is up, and what it serves."""
        return Health(
            status="ok",
            rewards={REWARD_NAME: HEADLINE_FIRST},
            fingerprint=service.fingerprint,
            waiting=service.waiting,
        )

    @app.get("/metrics", response_class=Response, responses={401: PROBLEMS[401], 200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _score_tensors(service: ScoringService, memory: Held, body: bytes) -> ScoreResponse:
    clips, prompts = await _in_thread(memory, lambda: decode_clips(body))
    service.check(len(clips), prompts)
    return await _answer(service, [_within(clip, service.settings, i) for i, clip in enumerate(clips)], prompts)


def _within(clip: Tensor, settings: ServerSettings, i: int) -> Tensor | Failure:
    """`clip`, or why it is beyond the limits."""
    try:
        media.check_clip_size(clip, settings, f"video {i}")
    except BadRequest as error:
        return Failure(str(error))
    return clip


async def _score_files(
    service: ScoringService, memory: Held, files: Sequence[bytes], prompts: Sequence[str]
) -> ScoreResponse:
    service.check(len(files), prompts)
    scorer = service.reward.scorer

    def read(i: int) -> Tensor | Failure:
        try:
            return media.clip_from_bytes(files[i], scorer, service.settings, memory.take, f"video {i}")
        except BadRequest as error:
            return Failure(str(error))

    return await _answer(service, await _decoded(memory, read, len(files)), prompts)


async def _score_json(service: ScoringService, memory: Held, asked: ScoreRequest) -> ScoreResponse:
    settings, scorer = service.settings, service.reward.scorer
    prompts = [item.history[-1].text for item in asked.requests]
    service.check(len(prompts), prompts)

    def read(i: int) -> Tensor | Failure:
        item, turn = asked.requests[i], asked.requests[i].history[-1]
        unknown = [name for name in item.required_rewards if name != REWARD_NAME]
        if unknown:
            return Failure(f"{unknown} are not served, {REWARD_NAME} is")
        if (turn.video_b64 is None) == (turn.video_path is None):
            return Failure("expected exactly one of video_b64 and video_path")
        try:
            if turn.video_b64 is not None:
                return media.clip_from_base64(turn.video_b64, scorer, settings, memory.take, "video_b64")
            data = media.bytes_from_path(turn.video_path or "", settings, memory.take)
            return media.clip_from_bytes(data, scorer, settings, memory.take, "video_path")
        except BadRequest as error:
            return Failure(str(error))

    clips = await _decoded(memory, read, len(asked.requests))
    answer = await _answer(service, clips, prompts)
    names = [item.required_rewards or [REWARD_NAME] for item in asked.requests]
    answer.errors = [
        dict.fromkeys(wanted, error[REWARD_NAME]) if error else {}
        for wanted, error in zip(names, answer.errors, strict=True)
    ]
    extras = [item.model_extra or {} for item in asked.requests]
    if any("request_id" in extra for extra in extras):
        answer.identities = [{key: extra.get(key) for key in IDENTITY} for extra in extras]
    return answer


async def _answer(service: ScoringService, clips: Sequence[Tensor | Failure], prompts: Sequence[str]) -> ScoreResponse:
    results: list[dict[str, dict[str, float]]] = []
    errors: list[dict[str, str]] = []
    for row in await service.score(clips, prompts):
        if isinstance(row, Failure):
            results.append({})
            errors.append({REWARD_NAME: row.reason})
        else:
            named = dict(zip(SCORE_NAMES, row.tolist(), strict=True))
            results.append({REWARD_NAME: {name: named[name] for name in HEADLINE_FIRST}})
            errors.append({})
    return ScoreResponse(results=results, errors=errors, fingerprint=service.fingerprint)


async def _decoded(memory: Held, read: Callable[[int], T], count: int) -> list[T]:
    """`read` of each place in turn, in a thread. Where this is cancelled, the one that has begun is the last."""
    return [await _in_thread(memory, partial(read, i)) for i in range(count)]


async def _in_thread(memory: Held, work: Callable[[], T]) -> T:
    """What `work` gives. It goes on where this is cancelled, and holds `memory` until its end."""

    def held() -> T:
        with memory:
            return work()

    return await asyncio.to_thread(held)


async def in_time(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """What `work` gives. It is cancelled where nobody waits for it any more, and at the end of its time.

    Raises ClientDisconnect, and HTTPException 504.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientDisconnect
        raise HTTPException(504, f"not scored within {seconds:g} seconds")
    finally:
        working.cancel()
        leaving.cancel()


async def _read_form(request: Request, settings: ServerSettings) -> tuple[list[bytes], list[str]]:
    most = max(settings.max_clips, 1000)  # how many clips there may be is for `ScoringService.check` to say
    try:
        async with request.form(max_files=most, max_fields=most) as form:
            files, prompts = form.getlist("videos"), form.getlist("prompts")
            if not files or not all(isinstance(file, UploadFile) for file in files):
                raise BadRequest("expected one or more files in the field 'videos'")
            if not all(isinstance(prompt, str) for prompt in prompts):
                raise BadRequest("expected texts in the field 'prompts', got a file")
            data = [await file.read() for file in files if isinstance(file, UploadFile)]
    except UnicodeError as error:  # of the charset in its Content-Type
        raise BadRequest(f"expected a form whose texts are in its charset: {error}") from error
    return data, [str(prompt) for prompt in prompts]


def _parse(model: type[Any], body: bytes, settings: ServerSettings, memory: Held) -> Any:
    """`body` as `model`.

    Raises HTTPException 413, before parsing, for more values than `settings` can need, 422 for another form, and as
    `Held.take` does.

    Nothing else runs meanwhile, and small values take far more time and memory than long texts: so these are counted.
    """
    most = settings.max_clips * (settings.max_frames + SMALL_VALUES)
    found = sum(body.count(mark) for mark in (b",", b"[", b"{"))  # base64 has none of these
    if found > most:
        raise HTTPException(413, f"expected at most {most} commas and opening brackets in JSON, got {found}")
    memory.take(len(body))  # for the files and pictures that its texts are decoded to
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise HTTPException(422, f"{place}: {first['msg']}") from None


def _add_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(BadRequest)
    async def bad_request(request: Request, error: BadRequest) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        return JSONResponse({"detail": "the client went away"}, 503)


def _describe_json_bodies(app: FastAPI) -> None:
    """The routes read their bodies themselves, to keep to the limits; so the description is told what they take."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = describe()["components"]["schemas"]
            for model in (ScoreRequest, ComputeRequest):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]


SCORE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            SAFETENSORS: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "tensors video.0, video.1, ... uint8 (T,C,H,W), or one tensor videos (B,T,C,H,W); "
                    "metadata: prompts, a JSON list of texts",
                }
            },
            "application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["videos", "prompts"],
                    "properties": {
                        "videos": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
                        "prompts": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                    },
                }
            },
        },
    }
}
COMPUTE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ComputeRequest"}}},
    }
}
