"""Video files through PyAV (FFmpeg): frames at given times, in one pass, with no more than those in memory.

PyAV rather than decord (no wheels for macOS, leaks, fails on AV1), torchcodec (needs an FFmpeg of the user's own) or
OpenCV (hides rotation and timestamps): its wheels carry FFmpeg and give every frame's presentation time.
"""

from __future__ import annotations

import bisect
import itertools
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import av
import torch
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from torch import Tensor

from dover_eval.video.layout import check_sides
from dover_eval.video.pixels import rgb_planes
from dover_eval.video.sample import sample_indices, sample_times, tolerance
from dover_eval.video.truncation import lost_end
from dover_eval.wording import one_line

#: What FFmpeg calls formats that name other files.
PLAYLISTS = {"concat", "hls", "dash", "imf"}
#: Transfer functions of HDR, by their numbers in ITU-T H.273.
HDR = {16: "PQ", 18: "HLG"}
#: For FFmpeg's decoders, within `frames_of_at_most`.
_decoder_options: ContextVar[Mapping[str, str]] = ContextVar("decoder_options", default=MappingProxyType({}))


class VideoError(ValueError):
    """A file that cannot be scored; the message names it, what was found and what was expected."""


@dataclass(frozen=True)
class SampledClip:
    """Sampled frames: uint8 (T,3,H,W), upright; their presentation times and the clip's length, in seconds."""

    frames: Tensor
    times: tuple[float, ...]
    duration: float

    def __repr__(self) -> str:
        count, _, height, width = self.frames.shape
        return f"SampledClip({count} frames {width}x{height} of {self.duration:.2f} s)"


def decode_clip(path: str | Path, num_frames: int, windows: int = 1) -> SampledClip:
    """`num_frames` frames of the file's first video, uniform in presentation time, or in `windows` runs.

    Each is the frame on screen in the middle of its part of the clip, so a variable frame rate is sampled
    rightly and a clip with fewer frames repeats them. With several windows they are runs of consecutive frames, as
    `sample_indices` has them. Rotation and mirroring in the metadata are obeyed. Files stream: memory holds the
    sampled frames, whatever the length.

    Raises VideoError for a missing, empty or audio-only file, one that is no video or whose frames change size, a
    playlist of other files, HDR (what is meant for another display would be scored as too dark and grey), frames up to
    the last sampled one that FFmpeg finds damaged (of HEVC, VP8 and VP9 it seldom tells), and a truncated file where
    its container tells: MP4, MOV and AVI count their frames (MP4 in fragments the bytes of each), Matroska and WebM
    (but for live streams) and WMV their bytes, FLV where its writer did, a GIF has an end. Of MPEG streams none does,
    nor MP4 that is cut exactly between two fragments, nor Matroska or MP4 behind its first 100,000 elements.
    Frames that memory cannot hold are a VideoError as well.
    """
    path = Path(path)
    frames: Tensor | None = None
    dates: dict[float, float] = {}
    with _reading(path):
        times, end = _frame_times(path)
        start = times[0]
        moments = sample_moments(times, end, num_frames, windows)
        rising = sorted(set(moments))
        for moment, (frame, time) in zip(rising, _frames_on_screen(path, rising), strict=False):
            if frames is None:
                check_sides(frame.shape[2], frame.shape[1], str(path), VideoError)
                # Filled as frames come, and not stacked at the end: 16 of 4K are 400 MB, once.
                frames = frame.new_empty((num_frames, *frame.shape))
            frames[[i for i, chosen in enumerate(moments) if chosen == moment]] = frame
            dates[moment] = time
    if frames is None or len(dates) < len(rising):
        raise VideoError(f"{path}: no frame could be decoded, expected a video")
    return SampledClip(frames, tuple(dates[moment] - start for moment in moments), end - start)


def frame_times(path: str | Path) -> tuple[list[float], float]:
    """When each frame appears, in order, and when the last one ends, in seconds on the file's own clock.

    From the packets alone, where they are dated. Raises VideoError.
    """
    path = Path(path)
    with _reading(path):
        return _frame_times(path)


def sample_moments(times: list[float], end: float, num_frames: int, windows: int = 1) -> list[float]:
    """The moments, in seconds, at which a model looks at frames that appear at `times`, the last one until `end`.

    In the order in which the model reads them. Each is the middle of a frame's time on screen. With several windows,
    and where the frames are evenly spaced but for the rounding of their dates, they are the frames that
    `sample_indices` has, as of a tensor.
    """
    middles = [(a + b) / 2 for a, b in itertools.pairwise([*times, end])]
    step = (end - times[0]) / len(times)
    even = all(abs(date - times[0] - i * step) < step / 4 for i, date in enumerate(times))
    if even or windows > 1:
        return [middles[i] for i in sample_indices(len(times), num_frames, windows)]
    moments = sample_times(times[0], end, num_frames)
    return [middles[bisect.bisect_right(times, moment + tolerance(num_frames) * step) - 1] for moment in moments]


def frames_at(path: str | Path, times: list[float]) -> Iterator[tuple[Tensor, float]]:
    """For each of the rising `times`, in seconds on the file's own clock, the frame on screen then and its own time.

    Frames are (3,H,W) uint8, upright; times that fall on one frame share one tensor. Streams; raises VideoError.
    """
    path = Path(path)
    with _reading(path):
        yield from _frames_on_screen(path, times)


def all_frames(path: str | Path) -> Iterator[tuple[Tensor, float]]:
    """Every frame as (3,H,W) uint8, upright, and its time on the file's own clock. Streams; raises VideoError."""
    path = Path(path)
    with _reading(path):
        _frame_times(path)  # says that a file is truncated before its first frame is used
        for pixels, time in _dated_frames(path):
            yield pixels(), time


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuses what is no file, and gives what a file can cause, of FFmpeg or of numbers in it, the file's name."""
    try:
        status = path.stat()
    except ValueError as error:  # a name with a NUL
        raise VideoError(f"{str(path)!r}: cannot be read ({error})") from error
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError(f"{path}: no such file") from None
    except OSError as error:  # a folder above that may not be entered, a name that is too long
        raise VideoError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise VideoError(f"{path}: {kind}, expected a video file")
    if status.st_size == 0:
        raise VideoError(f"{path}: an empty file, expected a video")
    try:
        yield
    except VideoError as error:
        if str(path) in str(error):
            raise
        raise VideoError(f"{path}: {error}") from error
    except (av.error.FFmpegError, EOFError, OSError, ValueError, OverflowError, MemoryError) as error:
        raise VideoError(f"{path}: cannot be decoded as a video ({one_line(error)})") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise VideoError(f"{path}: its frames do not fit into memory ({one_line(error)})") from error


@contextmanager
def frames_of_at_most(pixels: int) -> Iterator[None]:
    """Within this, in this thread, FFmpeg takes no memory for a frame of more, whatever the file's header says.

    For files of strangers: in some kilobytes can be a frame of gigabytes, which opening the file decodes. FFmpeg counts
    sides in whole blocks, so up to 2^20 pixels more may pass: 64 for each along sides of 8192.
    """
    token = _decoder_options.set({"max_pixels": str(pixels + 2**20)})
    try:
        yield
    finally:
        _decoder_options.reset(token)


@contextmanager
def open_file(path: str | Path, **options: str) -> Iterator[av.container.InputContainer]:
    """Open a file with FFmpeg, by its absolute path: "a:b.mp4" would be taken for a protocol. From a file that has a
    path FFmpeg goes to no network.

    options: of FFmpeg's demuxer. Raises VideoError for a playlist, and FFmpeg's own errors.
    """
    options |= _decoder_options.get()  # for the frames by which FFmpeg finds out what is in the file
    with av.open(os.path.abspath(path), metadata_errors="replace", options=options) as container:
        if PLAYLISTS & set(container.format.name.split(",")):
            raise VideoError(f"{path}: a playlist of other files ({container.format.name}), expected a video")
        yield container


def video_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The videos of a file, without the cover of a song, which is a video stream to FFmpeg."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _open_video(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    videos = video_streams(container)
    if not videos:
        kinds = sorted({str(stream.type) for stream in container.streams if stream.type != "video"}) or ["nothing"]
        raise VideoError(f"{path}: no video stream, found {', '.join(kinds)}")
    stream = videos[0]
    if stream.codec_context is None:  # PyAV 17.1 would crash where it decodes
        raise VideoError(f"{path}: of a codec that FFmpeg does not know")
    stream.codec_context.options = dict(_decoder_options.get())
    stream.thread_type = "AUTO"
    stream.thread_count = torch.get_num_threads()  # one in a worker process, which has others beside it
    return stream


def _frame_times(path: Path) -> tuple[list[float], float]:
    """When each frame appears, in order, and when the last one ends, from the packets alone, without decoding."""
    with open_file(path) as container:
        stream = _open_video(container, path)
        promised = stream.frames
        unit = stream.time_base
        frame_time = 1 / stream.average_rate if stream.average_rate else None
        if lost := lost_end(path, container.format.name):
            raise VideoError(f"{path}: truncated, {lost}")
        count, undated = 0, 0
        lengths: dict[int, int] = {}  # of frames, by when they appear
        places: list[int] = []  # in a file that counts places, of which some may hold no frame
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_corrupt:
                raise VideoError(f"{path}: truncated or damaged in packet {count + 1}, expected a whole video")
            count += 1
            if packet.dts is not None:
                places.append(packet.dts)
            if packet.is_discard:
                continue
            if packet.pts is None:
                undated += 1
                continue
            lengths[packet.pts] = packet.duration or 0
        if count == 0:
            raise VideoError(f"{path}: no frames, expected at least one")
        # An AVI has a frame rate and places, and no times; those that FFmpeg makes up for frames that refer to later
        # ones are not in the order in which they are shown. A frame that stays for longer leaves the next places empty.
        if container.format.name != "avi":
            places = []
        found = max(places) + 1 if places else count
        if found < promised and "mov" in container.format.name.split(","):
            found = max(found, _packets_outside_of_edits_too(path))
        if found < promised and container.format.name == "gif":  # which ends as it should, see above
            raise VideoError(f"{path}: FFmpeg reads {found} of {promised} pictures, which have no duration")
        if found < promised:
            raise VideoError(f"{path}: truncated, found {found} of {promised} frames")
        if places and unit is not None:
            return [float(place * unit) for place in sorted(places)], float(found * unit)
        if not lengths or unit is None or undated > count // 2:
            return _frame_times_by_decoding(path)
        dates = sorted(lengths)
        last, length = dates[-1], lengths[dates[-1]]
        if not length:
            length = round(frame_time / unit) if frame_time else 1
        end = float((last + length) * unit)
        return [float(date * unit) for date in dates], end


def _packets_outside_of_edits_too(path: Path) -> int:
    """An MP4 or MOV whose edit list shows a part of it counts all of its frames, and gives out those of the part."""
    with open_file(path, ignore_editlist="1") as container:
        return sum(packet.size > 0 for packet in container.demux(_open_video(container, path)))


def _frame_times_by_decoding(path: Path) -> tuple[list[float], float]:
    """For raw streams, whose packets carry no times: FFmpeg dates the frames as it decodes them."""
    times = sorted({time for _, time in _dated_frames(path)})
    if not times:
        raise VideoError(f"{path}: no frame could be decoded, expected a video")
    return times, times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0.04)


def _dated_frames(path: Path) -> Iterator[tuple[Callable[[], Tensor], float]]:
    """Every frame as a function that gives its pixels, (3,H,W) uint8 and upright, and its time."""
    with open_file(path) as container:
        stream = _open_video(container, path)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        places = _frame_times(path)[0] if container.format.name == "avi" else []
        size: tuple[int, int] | None = None
        matrix, reformatter = None, VideoReformatter()
        for index, frame in enumerate(container.decode(stream)):
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                found = f"{size[0]}x{size[1]} and {frame.width}x{frame.height}"
                raise VideoError(f"{path}: frames of {found}, expected one size")
            if (transfer := stream.codec_context.color_trc) in HDR:
                raise VideoError(f"{path}: HDR ({HDR[transfer]}), expected SDR: map its tones first")
            if frame.is_corrupt:  # also of one that is not sampled: those after it are made of it
                raise VideoError(f"{path}: damaged in the frame at {frame.time or 0:.2f} s, expected a whole video")
            if index == 0:
                matrix = _display_matrix(frame)
            dated = index / rate if frame.time is None else frame.time
            time = places[min(index, len(places) - 1)] if places else dated
            yield partial(_upright, frame, reformatter, matrix), time


def _frames_on_screen(path: Path, targets: list[float]) -> Iterator[tuple[Tensor, float]]:
    """For each of the rising `targets` the frame on screen then, as (3,H,W) uint8, and its time."""
    waiting = iter(targets)
    target = next(waiting, None)
    shown: tuple[Callable[[], Tensor], float] | None = None
    end: tuple[None, float] = (None, float("inf"))
    for frame, time in itertools.chain(_dated_frames(path), [end]):
        pixels: Tensor | None = None
        # A frame is on screen until the next one appears.
        while target is not None and shown is not None and target < time:
            pixels = shown[0]() if pixels is None else pixels
            yield pixels, shown[1]
            target = next(waiting, None)
        if target is None or frame is None:
            return
        shown = (frame, time)


def _display_matrix(frame: av.VideoFrame) -> tuple[float, ...] | None:
    """a, b, u, c, d of the file's display matrix: (x, y) is shown at (ax + cy, bx + dy). None without one.

    Asked of a small copy: a frame that has been asked for its side data is in a cycle of references, and would lie in
    memory until Python looks for such; in a process forked meanwhile, freeing its scaler waits for threads for ever.
    """
    small = VideoReformatter().reformat(frame, width=8, height=8)
    matrix = small.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]
    return None if matrix is None else tuple(n / 65536 for n in struct.unpack_from("=5i", bytes(matrix)))


def _upright(frame: av.VideoFrame, reformatter: VideoReformatter, matrix: tuple[float, ...] | None) -> Tensor:
    pixels = rgb_planes(frame, reformatter)
    a, b, _, c, d = matrix or (1.0, 0.0, 0.0, 0.0, 1.0)  # scales and shifts are a player's business
    most = max(map(abs, (a, b, c, d)))
    if most == 0:  # left empty by its writer
        return pixels
    a, b, c, d = (n if abs(n) > most / 100 else 0 for n in (a, b, c, d))
    if (a == d == 0) == (b == c == 0):
        raise VideoError(f"a display matrix of {a:g} {b:g} {c:g} {d:g}, expected right angles")
    if a == 0:
        pixels = pixels.transpose(1, 2)
    flipped = [dim for dim, sign in ((2, a or c), (1, d or b)) if sign < 0]
    return pixels.flip(flipped).contiguous()
