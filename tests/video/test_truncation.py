"""Files that are damaged or end before they should, and whole ones that only look so."""

from __future__ import annotations

import math
import struct

import av
import numpy as np
import pytest
from PIL import Image

from dover_eval import VideoError
from dover_eval.video.decode import all_frames, decode_clip
from dover_eval.video.truncation import ASF_PROPERTIES, lost_end
from tests.video.conftest import LEVELS, grey_frames, levels_of


def test_a_damaged_frame_is_refused(write_video, moving_frames):
    path = write_video(moving_frames, options={"crf": "4", "preset": "ultrafast", "g": "1"})
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"damaged in the frame at \d\.\d\d s|cannot be decoded"):
        decode_clip(path, 12)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")])
def test_a_matroska_whose_bytes_never_came_is_refused(write_video, moving_frames, name, codec):
    """A download takes its place on the disk first, and fills it."""
    path = write_video(moving_frames, name, codec=codec, options={"g": "1"})
    data = path.read_bytes()
    for length in range(len(data) // 4, len(data) - 200, len(data) // 10):
        path.write_bytes(data[:length] + bytes(len(data) - length))
        with pytest.raises(VideoError, match=r"truncated, zeros from byte|damaged"):
            decode_clip(path, 4)
    path.write_bytes(data + bytes(100))
    assert len(decode_clip(path, 4).frames) == 4


def test_a_damaged_frame_between_those_that_are_sampled_is_refused(write_video, moving_frames):
    """What follows is made of it."""
    path = write_video(np.tile(moving_frames, (5, 1, 1, 1)), "a.ts", codec="mpeg2video", options={"g": "60", "b": "4M"})
    assert len(decode_clip(path, 2).frames) == 2
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 188 // 3 * 188, len(data) // 2, 376):
        data[at + 100 : at + 112] = bytes(12)  # of what a packet carries, which alone does not tell
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"damaged in the frame at [2-5]\.\d\d s"):
        decode_clip(path, 2)


def test_a_transport_stream_that_lacks_a_packet_is_refused(write_video, moving_frames):
    path = write_video(np.tile(moving_frames, (5, 1, 1, 1)), "a.ts", codec="mpeg2video", options={"g": "60", "b": "4M"})
    data = path.read_bytes()
    middle = len(data) // 188 // 2 * 188
    path.write_bytes(data[:middle] + data[middle + 188 :])
    with pytest.raises(VideoError, match=r"truncated or damaged in packet \d+"):
        decode_clip(path, 2)


def test_a_gif_with_a_byte_too_many_between_its_blocks_is_whole(write_video):
    path = write_video(grey_frames(LEVELS), "a.gif", codec="gif")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\0" + data[-1:])
    assert len(decode_clip(path, 4).frames) == 4


def test_a_gif_of_which_ffmpeg_reads_a_part_is_not_called_truncated(tmp_path, moving_frames):
    first, *more = map(Image.fromarray, moving_frames)
    first.save(tmp_path / "a.gif", save_all=True, append_images=more)
    with pytest.raises(VideoError, match=r"a\.gif: FFmpeg reads \d+ of 12 pictures, which have no duration"):
        decode_clip(tmp_path / "a.gif", 4)


@pytest.mark.parametrize(("name", "codec"), [("a.flv", "flv1"), ("a.wmv", "wmv2"), ("a.gif", "gif")])
def test_a_file_that_tells_its_bytes_or_its_end_is_found_truncated_wherever_it_is_cut(write_video, name, codec):
    path = write_video(grey_frames(LEVELS), name, codec=codec)
    data = path.read_bytes()
    assert len(decode_clip(path, 4).frames) == 4
    for length in range(len(data) // 4, len(data), max(1, len(data) // 60)):
        path.write_bytes(data[:length])
        with pytest.raises(VideoError):
            decode_clip(path, 4)
    path.write_bytes(data + b"what a transfer appended")
    assert len(decode_clip(path, 4).frames) == 4


@pytest.mark.parametrize(
    ("container", "head", "empty", "cut"),
    [
        ("matroska,webm", b"\x18\x53\x80\x67\x50\0", b"\xec\x80", bytes(9000)),
        ("mov,mp4", b"", b"\0\0\0\x08free", b"\0\1\0\0mdat"),
    ],
)
def test_so_many_elements_are_looked_at_and_no_more(tmp_path, monkeypatch, container, head, empty, cut):
    """Millions of empty ones would take minutes."""
    path = tmp_path / "clip"
    path.write_bytes(head + 1000 * empty + cut)
    assert lost_end(path, container)
    monkeypatch.setattr("dover_eval.video.truncation.MOST", 1000)
    assert lost_end(path, container) is None


def test_a_box_that_tells_its_length_in_64_bits_is_found_cut(tmp_path):
    path = tmp_path / "large.mp4"
    path.write_bytes(struct.pack(">I4sQ", 1, b"mdat", 100) + bytes(20))
    assert lost_end(path, "mov,mp4") == "found 36 of 100 bytes"


def test_an_mp4_is_whole_though_a_box_behind_it_that_has_no_frames_is_cut(write_video):
    path = write_video(grey_frames(LEVELS))
    path.write_bytes(path.read_bytes() + struct.pack(">I4s", 1000, b"free") + bytes(10))
    assert levels_of(decode_clip(path, 8)) == LEVELS


def test_of_a_broadcast_the_bytes_told_are_not_its_length(write_video):
    path = write_video(grey_frames(LEVELS), "a.wmv", codec="wmv2")
    data = bytearray(path.read_bytes()[:-100])
    path.write_bytes(data)
    assert "found" in lost_end(path, "asf")
    data[data.index(ASF_PROPERTIES) + 88] |= 1
    path.write_bytes(data)
    assert lost_end(path, "asf") is None


def test_an_flv_that_tells_an_endless_size_tells_nothing(write_video):
    path = write_video(grey_frames(LEVELS), "a.flv", codec="flv1")
    data = bytearray(path.read_bytes())
    struct.pack_into(">d", data, data.index(b"filesize\0") + 9, math.inf)
    path.write_bytes(data)
    assert len(decode_clip(path, 4).frames) == 4


@pytest.mark.parametrize("name", ["cut.mkv", "cut.webm", "cut.gif"])
def test_containers_that_count_no_frames_are_found_truncated_too(write_video, name):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    codec = {"cut.webm": "libvpx-vp9", "cut.gif": "gif"}.get(name, "libx264")
    path = write_video(frames, name, codec=codec)
    assert decode_clip(path, 8).frames.shape[0] == 8
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match="truncated"):
        decode_clip(path, 8)
    with pytest.raises(VideoError, match="truncated"):  # before any of its frames is used
        next(all_frames(path))


@pytest.mark.parametrize(
    "flags", ["frag_keyframe+empty_moov", "dash", "cmaf", "frag_every_frame+empty_moov+separate_moof"]
)
def test_an_mp4_in_fragments_is_found_truncated_wherever_it_is_cut_within_one(tmp_path, flags):
    path = tmp_path / "fragments.mp4"
    with av.open(str(path), "w", container_options={"movflags": flags}) as container:
        stream = container.add_stream("libx264", rate=8, width=64, height=48, pix_fmt="yuv420p", options={"g": "6"})
        for pixels in np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    assert b"moof" in whole
    assert len(decode_clip(path, 8).frames) == 8
    path.write_bytes(whole + b"\0" * 100)  # what was appended is not a part that is missing
    assert len(decode_clip(path, 8).frames) == 8
    for share in (0.95, 0.7, 0.4):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(VideoError, match=r"truncated"):
            decode_clip(path, 8)


def with_sound(path, frames, codec, sound):
    """A file of `frames`, eight a second, and as much silence."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=8, width=frames.shape[2], height=frames.shape[1], pix_fmt="yuv420p")
        audio = container.add_stream(sound, rate=48000)
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        size = audio.codec_context.frame_size
        for start in range(0, 6000 * len(frames), size):
            silence = av.AudioFrame(audio.codec_context.format.name, audio.codec_context.layout.name, size)
            for plane in silence.planes:
                plane.update(bytes(plane.buffer_size))
            silence.sample_rate, silence.pts = 48000, start
            container.mux(audio.encode(silence))
        container.mux(audio.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [("a.webm", "libvpx-vp9", "libopus"), ("a.mkv", "libx264", "aac"), ("a.avi", "mpeg4", "mp3")],
)
def test_files_with_sound_are_whole_or_truncated_as_those_without(tmp_path, name, codec, sound):
    frames = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    path = with_sound(tmp_path / name, frames, codec, sound)
    assert decode_clip(path, 8).frames.shape[0] == 8
    whole = path.read_bytes()
    for share in (0.5, 0.25):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(VideoError, match="truncated"):
            decode_clip(path, 8)


def test_a_live_stream_never_says_how_long_it_is(tmp_path):
    """Matroska through a pipe: its segment's size is left open, and whatever came is taken."""
    path = tmp_path / "live.mkv"
    with av.open(str(path), "w", format="matroska", options={"live": "1"}) as container:
        stream = container.add_stream("libx264", rate=8, width=64, height=48, pix_fmt="yuv420p")
        for pixels in grey_frames(LEVELS):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    assert b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" in path.read_bytes()
    assert len(decode_clip(path, 8).frames) == 8


def test_a_last_frame_that_is_held_ends_no_file_early(write_video, tmp_path):
    source, path = write_video(grey_frames(LEVELS)), tmp_path / "held.mkv"
    with av.open(str(source)) as container, av.open(str(path), "w") as held:
        video = container.streams.video[0]
        stream = held.add_stream_from_template(video)
        packets = [packet for packet in container.demux(video) if packet.size]
        last = max(packets, key=lambda packet: packet.pts)
        for packet in packets:
            if packet is last:
                packet.duration = int(2 / packet.time_base)
            packet.stream = stream
            held.mux(packet)
    assert len(decode_clip(path, 8).frames) == 8
