"""Files: frames by presentation time, upright, streamed, and an error with the file's name for everything else."""

from __future__ import annotations

import gc
import os
import socket
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition

from dover_eval import VideoError
from dover_eval.video.decode import decode_clip, frame_times, sample_moments
from dover_eval.video.sample import sample_indices
from tests.video.conftest import LEVELS, grey_frames, levels_of


def test_every_frame_of_a_clip_in_order(write_video):
    clip = decode_clip(write_video(grey_frames(LEVELS), rate=8), 8)
    assert levels_of(clip) == LEVELS
    assert clip.frames.shape == (8, 3, 48, 64)
    assert clip.frames.dtype == torch.uint8
    assert clip.duration == pytest.approx(1.0)
    assert clip.times == pytest.approx([i / 8 for i in range(8)])


def test_fewer_frames_are_the_middles_of_equal_parts(write_video):
    assert levels_of(decode_clip(write_video(grey_frames(LEVELS)), 4)) == [40, 80, 120, 160]
    assert levels_of(decode_clip(write_video(grey_frames(LEVELS)), 1)) == [100]


def test_short_clips_repeat_frames_by_time(write_video):
    assert levels_of(decode_clip(write_video(grey_frames([40, 120])), 6)) == [40, 40, 40, 120, 120, 120]


def test_windows_are_consecutive_frames(write_video):
    clip = decode_clip(write_video(grey_frames(LEVELS), rate=8), 4, windows=2)
    assert levels_of(clip) == [40, 60, 120, 140]
    assert clip.times == pytest.approx([1 / 8, 2 / 8, 5 / 8, 6 / 8])


def test_windows_count_frames_where_the_frame_rate_varies(write_video):
    path = write_video(grey_frames([40, 80, 120, 160]), "vfr.mkv", times=[0, 100, 900, 1000])
    assert levels_of(decode_clip(path, 4, windows=2)) == [40, 80, 120, 160]


def test_windows_of_a_clip_shorter_than_one_go_back_and_forth(write_video):
    assert levels_of(decode_clip(write_video(grey_frames([40, 80, 120])), 10, windows=2)) == [40, 80, 120, 80, 40] * 2


def test_one_frame(write_video):
    assert levels_of(decode_clip(write_video(grey_frames([80])), 4)) == [80] * 4


def test_variable_frame_rates_are_sampled_by_time(write_video):
    """The second frame stands for most of the clip, so most samples are of it."""
    path = write_video(grey_frames([40, 80, 120, 160]), "vfr.mkv", times=[0, 100, 900, 1000])
    assert levels_of(decode_clip(path, 10)) == [40] + [80] * 8 + [120]


def test_frames_that_come_unevenly_by_a_third_of_a_step_are_sampled_by_time():
    times = [0, 0.14, 0.2, 0.3]
    moments = sample_moments(times, 0.4, 8)
    assert [sum(time <= moment for time in times) - 1 for moment in moments] == [0, 0, 0, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_containers_and_codecs(write_video, name, codec):
    clip = decode_clip(write_video(grey_frames(LEVELS), name, codec=codec), 4)
    assert np.abs(np.array([frame.float().mean() for frame in clip.frames]) - [40, 80, 120, 160]).max() < 18


def test_a_codec_that_ffmpeg_does_not_know_is_an_error(write_video):
    path = write_video(grey_frames(LEVELS), "a.mp4", codec="mpeg4")
    path.write_bytes(path.read_bytes().replace(b"mp4v", b"zzzz").replace(b"esds", b"zzzz"))
    with pytest.raises(VideoError, match=r"a\.mp4: of a codec that FFmpeg does not know"):
        decode_clip(path, 4)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
@pytest.mark.parametrize("rate", [8, 24, 60])
def test_a_file_is_sampled_as_a_tensor_of_its_frames_whatever_its_dates_are_rounded_to(write_video, name, codec, rate):
    for length in (10, 16, 29, 49, 81, 121):
        times, end = frame_times(write_video(grey_frames([100] * length, 16, 16), name, rate=rate, codec=codec))
        for count in (8, 16, 32):
            moments = sample_moments(times, end, count)
            shown = [sum(time <= moment for time in times) - 1 for moment in moments]
            assert shown == sample_indices(length, count), (length, count)


def test_an_animated_gif(write_video):
    clip = decode_clip(write_video(grey_frames([0, 255, 255, 0]), "a.gif", codec="gif"), 8)
    assert [frame.float().mean().item() > 128 for frame in clip.frames] == [False] * 2 + [True] * 4 + [False] * 2


def test_a_raw_stream_without_timestamps(write_video, tmp_path):
    source = write_video(grey_frames(LEVELS), "a.h264")
    assert levels_of(decode_clip(source, 4)) == [40, 80, 120, 160]


def test_a_title_that_is_not_utf8_does_no_harm(write_video, moving_frames):
    """Old cameras and editors write Latin-1."""
    path = write_video(moving_frames, metadata={"title": "CAFETERIA"})
    data = path.read_bytes()
    assert data.count(b"CAFETERIA") == 1
    path.write_bytes(data.replace(b"CAFETERIA", b"CAF\xe9TERIA"))
    assert len(decode_clip(path, 4).frames) == 4


SHOWN = {
    (1, 0, 0, 1): lambda frame: frame,
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),  # a phone held sideways: clockwise
    (-1, 0, 0, -1): lambda frame: np.rot90(frame, 2),
    (0, -1, 1, 0): lambda frame: np.rot90(frame, 1),
    (-1, 0, 0, 1): lambda frame: frame[:, ::-1],  # mirrored, as some front cameras do
    (1, 0, 0, -1): lambda frame: frame[::-1],
    (0, 1, 1, 0): lambda frame: frame.swapaxes(0, 1),
    (0, -1, -1, 0): lambda frame: np.rot90(frame, 2).swapaxes(0, 1),
    (0, 0, 0, 0): lambda frame: frame,  # what a broken writer leaves
    (1, -1 / 65536, 1 / 65536, 1): lambda frame: frame,  # rounding
}


@pytest.mark.parametrize("matrix", SHOWN, ids=str)
def test_rotation_and_mirroring_in_the_metadata_are_obeyed(write_video, matrix):
    """The matrix of the track's header says how the stored picture is shown."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = 240  # the upper left corner of the stored picture
    frame[24:, :32] = 120
    path = write_video(np.stack([frame] * 3))
    a, b, c, d = (round(value * 65536) for value in matrix)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of times, ids, layer and volume
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    expected = SHOWN[matrix](frame)
    found = decode_clip(path, 2).frames[0].permute(1, 2, 0).numpy()
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_where_a_moment_falls_between_two_frames_rounding_does_not_decide(write_video, name):
    """64 frames for 32: every moment is where one frame gives way to the next. So it is in a tensor of them."""
    frames = np.zeros((64, 48, 64, 3), np.uint8)
    for i in range(64):
        for bit in range(8):
            frames[i, :, 8 * bit : 8 * bit + 8] = 255 * (i >> bit & 1)
    shown = decode_clip(write_video(frames, name, rate=24, codec="libx264"), 32).frames[:, :, 24, 4::8].float().mean(1)
    found = [sum(bool(light > 128) << bit for bit, light in enumerate(row)) for row in shown.tolist()]
    assert found == list(range(1, 64, 2)) == sample_indices(64, 32)


def test_an_mp4_of_which_an_edit_list_shows_a_part(write_video):
    """A trim without encoding anew: all frames are there and counted, and some are shown."""
    path = write_video(grey_frames(LEVELS), options={"crf": "4", "preset": "ultrafast", "g": "2", "bf": "0"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    data[at : at + 8] = struct.pack(">Ii", 500, scale // 2)  # from 0.5 s, for 0.5 s
    path.write_bytes(data)
    clip = decode_clip(path, 4)
    assert levels_of(clip) == [100, 120, 140, 160]
    assert clip.duration == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["dog:cat.mp4", "concat:other.mp4", "file:a.mp4", "http:a.mp4"])
def test_a_name_with_a_colon_is_no_protocol(write_video, name, tmp_path, monkeypatch):
    write_video(grey_frames([200] * 8), "other.mp4")
    write_video(grey_frames(LEVELS)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert levels_of(decode_clip(name, 8)) == LEVELS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mp4", "ffconcat version 1.0\nfile 'clip.mp4'\n"),
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1.0,\nclip.mp4\n#EXT-X-ENDLIST\n"),
    ],
)
def test_a_playlist_is_no_video(write_video, tmp_path, name, content):
    write_video(grey_frames(LEVELS))
    (tmp_path / name).write_text(content)
    with pytest.raises(VideoError, match="a playlist of other files"):
        decode_clip(tmp_path / name, 4)


def test_no_address_in_a_playlist_is_asked(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/clip.ts"
        path = tmp_path / "a.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1.0,\n{address}\n#EXT-X-ENDLIST\n")
        with pytest.raises(VideoError, match=r"a\.m3u8: cannot be decoded"):
            decode_clip(path, 4)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(("transfer", "kind"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused(tmp_path, transfer, kind):
    path = tmp_path / "hdr.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p10le"
        stream.codec_context.color_trc = transfer
        for frame in grey_frames(LEVELS):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p10le"))
            )
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=rf"HDR \({kind}\), expected SDR"):
        decode_clip(path, 4)


def test_no_frame_is_left_in_a_cycle_of_references(write_video):
    """It would stay in memory for as long, and its scaler's threads would be waited for by a forked process."""
    path = write_video(grey_frames(LEVELS))
    gc.collect()
    gc.disable()
    try:
        assert len(decode_clip(path, 4).frames) == 4
        assert not [f for f in gc.get_objects() if type(f) is av.VideoFrame and f.height > 8]
    finally:
        gc.enable()


def test_an_odd_size(write_video):
    frames = np.random.default_rng(0).integers(0, 255, (3, 46, 62, 3), np.uint8)
    assert decode_clip(write_video(frames), 3).frames.shape == (3, 3, 46, 62)


def test_a_file_that_cannot_be_reached_is_a_row_s_error_too(tmp_path):
    with pytest.raises(VideoError, match=r"cannot be read \(File name too long\)"):
        decode_clip("a" * 5000 + ".mp4", 4)
    (tmp_path / "file").touch()
    with pytest.raises(VideoError, match="no such file"):
        decode_clip(tmp_path / "file" / "a.mp4", 4)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="a pipe or a device, expected a video file"):
        decode_clip(tmp_path / "pipe.mp4", 4)


def test_frames_that_memory_cannot_hold_are_the_clip_s_error(write_video, monkeypatch):
    path = write_video(grey_frames(LEVELS))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *_: torch.empty(1 << 60))
    with pytest.raises(VideoError, match=r"clip\.mp4: its frames do not fit into memory .*can't allocate memory"):
        decode_clip(path, 4)


@pytest.mark.parametrize("content", ["missing", "folder", "empty", "text", "audio", "truncated", "cut", "no frames"])
def test_bad_files_are_refused_by_name(content, tmp_path, write_video, moving_frames):
    path = tmp_path / "bad.mp4"
    words = {
        "missing": "no such file",
        "folder": "a folder, expected a video",
        "empty": "an empty file",
        "text": "cannot be decoded as a video",
        "audio": "no video stream, found audio",
        "truncated": "cannot be decoded as a video",  # the index at the end is lost
        "cut": "truncated",  # the index is in front, the frames are not all there
        "no frames": "cannot be decoded as a video",
    }[content]
    if content == "folder":
        path.mkdir()
    elif content == "empty":
        path.touch()
    elif content == "text":
        path.write_text("Not a video.\n" * 100)
    elif content == "audio":
        path = tmp_path / "bad.wav"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    elif content == "truncated":
        whole = write_video(moving_frames, "whole.mp4").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "cut":
        source = write_video(moving_frames, "whole.mp4")
        front = tmp_path / "front.mp4"
        with av.open(str(source)) as old, av.open(str(front), "w", options={"movflags": "faststart"}) as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
        whole = front.read_bytes()
        path.write_bytes(whole[: int(len(whole) * 0.7)])
    elif content == "no frames":
        path = tmp_path / "bad.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            container.start_encoding()
    with pytest.raises(VideoError, match=words) as caught:
        decode_clip(path, 4)
    assert str(path) in str(caught.value)


@pytest.mark.slow
def test_a_long_file_streams(tmp_path):
    """Ten minutes of 640x360 are 4 GB of pixels; 16 frames of them, 11 MB, took 36 MB above the start (PyAV 18.1)."""
    path = tmp_path / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "crf": "40"})
        stream.height, stream.width, stream.pix_fmt = 360, 640, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((360, 640, 3), np.uint8), format="rgb24")
        for i in range(6000):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    code = (
        "import resource, sys; from dover_eval.video.decode import decode_clip; import torch;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"clip = decode_clip({str(path)!r}, 16);"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "print(round(clip.duration), clip.frames.shape[0], (after - before) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    duration, frames, megabytes = map(float, done.stdout.split())
    assert (duration, frames) == (600, 16)
    assert megabytes < 120


def test_example_clips(example_clip: Path):
    clip = decode_clip(example_clip, 8)
    assert clip.frames.shape[:2] == (8, 3)
    assert clip.frames.float().std() > 1
    assert clip.duration == 2
    assert torch.equal(decode_clip(example_clip, 8).frames, clip.frames)


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_a_frame_of_an_avi_that_is_held_is_on_screen_for_longer(tmp_path, codec):
    """An AVI has no times, but empty places."""
    path = tmp_path / "held.avi"
    with av.open(str(path), "w") as container:
        form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream = container.add_stream(codec, rate=10, width=64, height=48, pix_fmt=form)
        for place, level in zip((0, 1, 8, 9), (40, 80, 120, 160), strict=True):
            frame = av.VideoFrame.from_ndarray(grey_frames([level])[0], format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert frame_times(path) == ([0.0, 0.1, 0.8, 0.9], 1.0)
    assert levels_of(decode_clip(path, 10)) == [40] + [80] * 7 + [120, 160]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"truncated|cannot be decoded"):
        decode_clip(path, 8)


def test_frames_of_an_avi_that_refer_to_later_ones_are_shown_in_order(write_video):
    """Sixty frames that grow brighter, with B-frames, which an AVI has no times for."""
    frames = np.repeat(np.linspace(0, 255, 60).astype(np.uint8)[:, None, None, None], 64 * 64 * 3, 1)
    frames = frames.reshape(60, 64, 64, 3)
    options = {"crf": "4", "bf": "3"}
    avi, mkv = (decode_clip(write_video(frames, f"clip.{kind}", options=options), 16, 2) for kind in ("avi", "mkv"))
    assert (avi.frames.float().mean(dim=(1, 2, 3)).diff() > 0).all()
    assert torch.equal(avi.frames, mkv.frames)


def test_the_cover_of_a_song_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg", rate=1, width=64, height=64, pix_fmt="yuvj420p")
        cover.disposition = Disposition.attached_pic.value
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(VideoError, match="no video stream, found audio"):
        decode_clip(path, 8)
