"""What the server accepts, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
# Characters. A tokenizer reads all of a text, in seconds a MiB, before the model takes its first 256 tokens.
LONGEST_PROMPT = 10_000


def clean_token(token: str | None) -> str | None:
    """A bearer token without the newline that a mounted secret ends with; None is none.

    Raises ValueError for an empty one and for characters beyond ASCII.
    """
    if token is not None and not (token.isascii() and token.strip()):
        raise ValueError("expected a token of ASCII characters, and not empty")
    return token and token.strip()


@dataclass(frozen=True)
class ServerSettings:
    """Limits of one server.

    token: a bearer token that every request but /health must carry; None asks for none.
    video_root: a folder; a request may name files under it as `video_path`. None refuses all server-side paths.
    max_body: bytes of one request. max_memory: bytes of all requests at work together: their bodies twice, since what
    they hold is copied out of them, JSON three times, the files that they name, and the frames decoded from all these.
    max_clips: clips of one request. max_frames: frames of one clip. max_pixels: pixels of one frame.
    queue_size: clips that wait or are scored at once; a request for which there is no room gets 429.
    body_timeout: seconds in which a request's body must have arrived. timeout: seconds in which it must then be
    decoded and scored.
    """

    token: str | None = None
    video_root: Path | None = None
    max_body: int = 256 * MIB
    max_memory: int = 2048 * MIB
    max_clips: int = 64
    max_frames: int = 1024
    max_pixels: int = 4096 * 2304
    queue_size: int = 256
    body_timeout: float = 60.0
    timeout: float = 300.0

    def __post_init__(self) -> None:
        limits = ("max_body", "max_memory", "max_clips", "max_frames", "max_pixels", "queue_size")
        for name in (*limits, "body_timeout", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        object.__setattr__(self, "token", clean_token(self.token))
        if self.max_memory < 2 * self.max_body:
            raise ValueError(f"expected max_memory of at least twice max_body {self.max_body}, got {self.max_memory}")
        if self.video_root is not None and not self.video_root.is_dir():
            raise ValueError(f"expected a folder as video_root, got {self.video_root}")
