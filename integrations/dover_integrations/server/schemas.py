"""JSON of the server: UniRL's `/score`, Flow-Factory's `/compute`, and the answers."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field

from dover_integrations.server.wire import REWARD_NAME

Entry = TypeVar("Entry")
# Its first bad entry is enough: making an error of each of 190,000 stopped the server for two seconds.
Entries = Annotated[list[Entry], FailFast()]

IDENTITY = ("request_id", "sample_id", "group_id", "source_rank", "policy_version", "scorer_version", "idempotency_key")


class Turn(BaseModel):
    """One video and its prompt; exactly one of `video_b64` and `video_path`."""

    model_config = ConfigDict(extra="ignore")

    text: str = Field(description="the prompt")
    video_b64: str | None = Field(None, description="a video file (mp4, mov, webm, mkv, avi) in base64")
    video_path: str | None = Field(None, description="a file under the server's video root")


class ScoreItem(BaseModel):
    """One clip to score; the last turn of `history` counts. Fields of identity are sent back as they came."""

    model_config = ConfigDict(extra="allow")

    history: Entries[Turn] = Field(min_length=1)
    required_rewards: Entries[str] = Field(default_factory=lambda: [REWARD_NAME])


class ScoreRequest(BaseModel):
    """UniRL's request."""

    model_config = ConfigDict(extra="ignore")

    protocol_version: str = "1"
    requests: Entries[ScoreItem] = Field(min_length=1)


class ComputeRequest(BaseModel):
    """Flow-Factory's request: prompts, and for each a list of frames as base64 PNG or JPEG."""

    model_config = ConfigDict(extra="ignore")

    prompt: Entries[str] = Field(min_length=1)
    video: Entries[Entries[str]] = Field(min_length=1)


class ScoreResponse(BaseModel):
    """`results[i]["dover"]` has the five scores, Overall first; it is missing where `errors[i]["dover"]` says why."""

    protocol_version: str = "1"
    results: list[dict[str, dict[str, float]]]
    errors: list[dict[str, str]]
    identities: list[dict[str, Any]] | None = None
    fingerprint: str = Field(description="equal where scores are comparable")


class ComputeResponse(BaseModel):
    """One reward a prompt, or `error`."""

    rewards: list[float] | None = None
    error: str | None = None


class Health(BaseModel):
    """`rewards` names what is served, and the scores of each."""

    status: str
    rewards: dict[str, list[str]]
    fingerprint: str
    waiting: int = Field(description="clips that wait or are being scored")


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
