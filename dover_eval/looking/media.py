"""Small pictures and clips for pages: H.264 in MP4 (every browser plays it) and WebP, as bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dover_eval.video.decode import VideoError, all_frames, frame_times
from dover_eval.video.sample import resized

THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT = 240, 180
THUMBNAIL_SECONDS, THUMBNAIL_RATE = 2.5, 12
TICKS = 90_000  # of a second, MPEG's clock: real timestamps need a fine one


@dataclass(frozen=True)
class Thumbnail:
    """A clip that a page can play: MP4 bytes, and its (height, width)."""

    mp4: bytes
    size: tuple[int, int]

    @property
    def base64(self) -> str:
        return base64.b64encode(self.mp4).decode()


def thumbnail(path: str | Path) -> Thumbnail:
    """The first seconds of a clip, small and at their own speed; no more is decoded. Raises VideoError."""
    chosen: list[tuple[Tensor, float]] = []
    end = THUMBNAIL_SECONDS
    for pixels, time in all_frames(path):
        start = chosen[0][1] if chosen else time
        if time >= start + THUMBNAIL_SECONDS:
            break
        if time >= start + len(chosen) / THUMBNAIL_RATE - 1e-6:
            chosen.append((shrink(pixels, THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH), time))
    else:
        end = frame_times(path)[1] - chosen[0][1] if chosen else end
    if not chosen:
        raise VideoError(f"{path}: no frame could be decoded, expected a video")
    buffer = io.BytesIO()
    write_mp4(buffer, ((as_image(pixels), time - chosen[0][1]) for pixels, time in chosen), end=end, crf=31)
    return Thumbnail(buffer.getvalue(), (chosen[0][0].shape[1], chosen[0][0].shape[2]))


def shrink(pixels: Tensor, height: int, width: int) -> Tensor:
    """(3,H,W) uint8, fitted into the size with its proportions; sides are even, as H.264 wants them. Never larger."""
    scale = min(1.0, height / pixels.shape[1], width / pixels.shape[2])
    rows, columns = (max(2, round(side * scale / 2) * 2) for side in pixels.shape[1:])
    return resized(pixels[None], (rows, columns))[0]


def as_image(pixels: Tensor) -> NDArray[np.uint8]:
    """(3,H,W) as (H,W,3)."""
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def write_mp4(
    file: BinaryIO | str, frames: Iterable[tuple[NDArray[np.uint8], float]], *, end: float | None = None, crf: int = 20
) -> None:
    """Frames (H,W,3) uint8 of one even size, with their presentation times in seconds, rising, as H.264 in MP4.

    end: until when the last one is on screen, in seconds; by default for 1/25 s.
    A file on disk gets its index first (faststart), so that a browser starts before the end is there.
    """
    options = {"movflags": "+faststart"} if isinstance(file, str) else {}
    with av.open(file, "w", format="mp4", options=options) as container:
        stream: Any = None
        durations: dict[int, int] = {}

        def mux(packets: list[av.Packet]) -> None:
            for packet in packets:  # the encoder gives each the same duration
                packet.duration = durations.pop(packet.pts or 0)
                container.mux(packet)

        for image, time, duration in _lasting(frames, end):
            if stream is None:
                # No B-frames: MP4 keeps a duration for the frame that is last in the file, not for the last one shown.
                settings = {"crf": str(crf), "preset": "veryfast", "bf": "0"}
                stream = container.add_stream("libx264", rate=Fraction(25), options=settings)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = Fraction(1, TICKS)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, TICKS)
            durations[time] = duration
            mux(stream.encode(frame))
        if stream is None:
            raise ValueError("expected at least one frame, got none")
        mux(stream.encode())


def _lasting(
    frames: Iterable[tuple[NDArray[np.uint8], float]], end: float | None
) -> Iterator[tuple[NDArray[np.uint8], int, int]]:
    """Times and durations in ticks; a frame that does not come after the one before is never shown and is dropped."""
    shown: tuple[NDArray[np.uint8], int] | None = None
    for image, time in frames:
        ticks = round(time * TICKS)
        if shown is None:
            shown = image, ticks
        elif ticks > shown[1]:
            yield *shown, ticks - shown[1]
            shown = image, ticks
    if shown is not None:
        yield *shown, TICKS // 25 if end is None else max(1, round(end * TICKS) - shown[1])


def webp(image: NDArray[np.uint8]) -> str:
    """(H,W,3) uint8 as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
