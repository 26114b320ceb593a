"""Video files, frames and server-side paths from requests as clips, within the server's limits."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import av
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dover_eval.scorer import VideoScorer
from dover_eval.video.decode import VideoError, frames_of_at_most, open_file, video_streams
from dover_eval.video.layout import check_sides
from dover_integrations.server.settings import ServerSettings
from dover_integrations.server.wire import BadRequest

# Called with the bytes that frames or a file will hold, before they are read; raises where there is no room for them.
Take = Callable[[int], None]

# By their first bytes. FFmpeg also reads playlists, which name further files and addresses: none of those come in.
CONTAINERS = {"mp4 or mov": (4, b"ftyp"), "webm or mkv": (0, b"\x1a\x45\xdf\xa3"), "avi": (8, b"AVI ")}


def clip_from_bytes(data: bytes, scorer: VideoScorer, settings: ServerSettings, take: Take, name: str) -> Tensor:
    """A video file's bytes as uint8 (T,3,H,W), the frames that `scorer` samples.

    Raises BadRequest for what is no video or too large.
    """
    if not any(data[start : start + len(magic)] == magic for start, magic in CONTAINERS.values()):
        raise BadRequest(f"{name}: expected a video file ({', '.join(CONTAINERS)}), got {data[:8]!r}...")
    with tempfile.TemporaryDirectory(prefix="dover-") as folder:
        path = Path(folder) / "video"
        path.write_bytes(data)
        try:
            with frames_of_at_most(settings.max_pixels):
                pixels = _pixels(path, settings, name)
            take(scorer.config.num_frames * 3 * pixels)
            with frames_of_at_most(pixels):
                frames = scorer.decode(path)
        except (VideoError, BadRequest, av.error.FFmpegError) as error:
            reason = str(error).replace(str(path), name)
            raise BadRequest(f"{name}: {reason.removeprefix(f'{name}: ')}") from error
    check_clip_size(frames, settings, name)
    return frames


def clip_from_base64(text: str, scorer: VideoScorer, settings: ServerSettings, take: Take, name: str) -> Tensor:
    """`clip_from_bytes` of a base64 text."""
    return clip_from_bytes(_base64(text, name), scorer, settings, take, name)


def clip_from_frames(frames: Sequence[str], settings: ServerSettings, take: Take, name: str) -> Tensor:
    """Base64 PNG or JPEG frames of one size as uint8 (T,3,H,W)."""
    if not 0 < len(frames) <= settings.max_frames:
        raise BadRequest(f"{name}: expected 1 to {settings.max_frames} frames, got {len(frames)}")
    clip = torch.empty(0)
    for i, text in enumerate(frames):
        try:
            with Image.open(io.BytesIO(_base64(text, name)), formats=["PNG", "JPEG"]) as image:
                size = (image.height, image.width)
                if image.width * image.height > settings.max_pixels:
                    raise BadRequest(f"{name}: expected at most {settings.max_pixels} pixels, got {image.size}")
                if i == 0:
                    take(len(frames) * 3 * image.width * image.height)
                    clip = torch.empty(len(frames), 3, *size, dtype=torch.uint8)
                if size != tuple(clip.shape[2:]):
                    raise BadRequest(f"{name}: expected frames of one size, got {size} and {tuple(clip.shape[2:])}")
                clip[i] = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except UnidentifiedImageError:  # whose text has an address in this process
            raise BadRequest(f"{name}: frame {i} is no PNG or JPEG image") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, BadRequest):
                raise
            raise BadRequest(f"{name}: frame {i} is no PNG or JPEG image: {error}") from error
    return clip


def bytes_from_path(text: str, settings: ServerSettings, take: Take) -> bytes:
    """A file under `video_root`. Every folder on the way and the file are opened without following links."""
    root = settings.video_root
    if root is None:
        raise BadRequest("video_path: this server reads no files; send the video, or start it with --video-root")
    path = PurePosixPath(text)
    if path.is_absolute():
        try:
            path = path.relative_to(PurePosixPath(root))
        except ValueError:
            raise BadRequest("video_path: expected a path under the server's video root") from None
    if not path.parts or ".." in path.parts or "\0" in text:
        raise BadRequest("video_path: expected the path of a file under the server's video root")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in path.parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = os.open(path.parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:  # missing, a link, no folder: one answer, which tells a stranger nothing about the disk
        raise BadRequest("video_path: no such file under the server's video root") from None
    finally:
        os.close(folder)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):  # a folder, a pipe
            raise BadRequest("video_path: no such file under the server's video root")
        if found.st_size > settings.max_body:
            raise BadRequest(f"video_path: expected at most {settings.max_body} bytes, got {found.st_size}")
        take(found.st_size)
        with os.fdopen(file, "rb", closefd=False) as stream:
            return stream.read(found.st_size)
    finally:
        os.close(file)


def check_clip_size(clip: Tensor, settings: ServerSettings, name: str) -> None:
    """Raises BadRequest for a clip (T,3,H,W) beyond the limits, or too thin."""
    frames, _, height, width = clip.shape
    check_sides(width, height, name, BadRequest)
    if frames > settings.max_frames:
        raise BadRequest(f"{name}: expected at most {settings.max_frames} frames, got {frames}")
    if height * width > settings.max_pixels:
        raise BadRequest(f"{name}: expected at most {settings.max_pixels} pixels a frame, got {width}x{height}")


def _pixels(path: Path, settings: ServerSettings, name: str) -> int:
    """Of one frame, by the file's header; raises BadRequest where that or the packets are beyond the limits."""
    with open_file(path) as container:
        for stream in video_streams(container)[:1]:  # which is decoded
            if stream.codec_context is None:
                raise BadRequest(f"{name}: expected a video, got one of a codec that FFmpeg does not know")
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > settings.max_pixels:
                raise BadRequest(f"{name}: expected at most {settings.max_pixels} pixels a frame, got {width}x{height}")
            if not width * height:
                raise BadRequest(f"{name}: found no frame of at most {settings.max_pixels} pixels, expected a video")
            # A packet is a frame; headers of Matroska, WebM and fragmented MP4 count none.
            frames = sum(packet.size > 0 for packet in container.demux(stream))
            if frames > settings.max_frames:
                raise BadRequest(f"{name}: expected at most {settings.max_frames} frames, got {frames}")
            return width * height
    return 0  # no video, which the decoder says


def _base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{name}: not base64: {error}") from error
