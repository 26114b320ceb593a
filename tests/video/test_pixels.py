"""Colours as the file means them, and the same bits whatever a processor can do."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av import VideoFrame
from av.video.reformatter import ColorRange

from dover_eval.video.decode import decode_clip
from dover_eval.video.pixels import rgb_planes, to_yuv420p

BT601, BT709, BT2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)
#: A matrix by its number in ITU-T H.273: how much of the luma is red, and how much is blue.
MATRICES = {1: BT709, 5: BT601, 6: BT601, 9: BT2020}
PATCHES = [(81, 90, 240), (145, 54, 34), (41, 240, 110), (126, 128, 128), (60, 140, 100), (200, 110, 150)]


def flat(levels, pixel_format, *, matrix=1, colour_range=ColorRange.MPEG, width=64, height=48):
    """A frame of one colour; `levels` of its planes in eight bits."""
    frame = VideoFrame(width, height, pixel_format)
    bits = frame.format.components[0].bits
    kind = np.dtype(np.uint8 if bits == 8 else "<u2")
    for plane, level in zip(frame.planes, levels, strict=True):
        plane.update(np.full(plane.buffer_size // kind.itemsize, level << (bits - 8), kind).tobytes())
    frame.colorspace, frame.color_range = matrix, colour_range
    return frame


def expected_rgb(levels, red_share, blue_share, *, full):
    """ITU-T H.273, in doubles."""
    y, u, v = (float(n) for n in levels)
    luma = y / 255 if full else (y - 16) / 219
    u, v = ((n - 128) / (255 if full else 224) for n in (u, v))
    red = luma + 2 * (1 - red_share) * v
    blue = luma + 2 * (1 - blue_share) * u
    green = (luma - red_share * red - blue_share * blue) / (1 - red_share - blue_share)
    return np.clip(np.array([red, green, blue]), 0, 1) * 255


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_are_right_by_the_matrix_and_the_range_of_the_frame(pixel_format, full, matrix):
    for levels in PATCHES:
        frame = flat(levels, pixel_format, matrix=matrix, colour_range=ColorRange.JPEG if full else ColorRange.MPEG)
        expected = expected_rgb(levels, *MATRICES[matrix], full=full)
        found = rgb_planes(frame).numpy()
        assert (found == found[:, :1, :1]).all()
        assert np.abs(found[:, 0, 0] - expected).max() < 1.02


def test_no_colour_is_darker_in_the_mean():
    """FFmpeg's usual conversion of 4:2:0 is one to two levels too dark."""
    rng = np.random.default_rng(0)
    levels = [(rng.integers(60, 180), *rng.integers(108, 149, 2)) for _ in range(64)]
    found = np.stack([rgb_planes(flat(given, "yuv420p"))[:, 20, 20].numpy() for given in levels]).astype(float)
    expected = np.stack([expected_rgb(given, *BT709, full=False) for given in levels])
    assert np.abs((found - expected).mean(axis=0)).max() < 0.1


@pytest.mark.parametrize("pixel_format", ["gray", "gray10le", "gray12le", "ya8"])
def test_monochrome_of_limited_range_is_black_to_white(pixel_format):
    levels = [
        [int(rgb_planes(flat([luma], pixel_format, colour_range=tagged)).max()) for luma in (16, 126, 235)]
        for tagged in (ColorRange.MPEG, ColorRange.JPEG, ColorRange.UNSPECIFIED)
    ]
    assert levels == [[0, 128, 255], [16, 126, 235], [16, 126, 235]]  # untagged, FFmpeg's writers mean full range


def test_monochrome_of_limited_range_is_rounded_to_the_nearest_level():
    found = [int(rgb_planes(flat([luma], "gray")).max()) for luma in range(16, 236)]
    assert found == [math.floor((luma - 16) * 255 / 219 + 0.5) for luma in range(16, 236)]


@pytest.mark.parametrize("pixel_format", ["rgb24", "bgra", "gbrp", "rgb0"])
def test_rgb_stays_as_it_is(pixel_format, moving_frames):
    frame = VideoFrame.from_ndarray(moving_frames[0], format="rgb24").reformat(format=pixel_format)
    assert (rgb_planes(frame).permute(1, 2, 0).numpy() == moving_frames[0]).all()


def test_what_an_encoder_gets_is_what_a_decoder_gives():
    pixels = np.full((16, 32, 3), (200, 100, 50), np.uint8)
    assert np.abs(rgb_planes(to_yuv420p(pixels)).permute(1, 2, 0).numpy().astype(int) - pixels).max() <= 2


WITHOUT_VECTOR_INSTRUCTIONS = """
import ctypes, hashlib, sys
import av
import numpy as np

flags, library, *paths = sys.argv[1:]
if flags != "all":
    ctypes.CDLL(library).av_force_cpu_flags(int(flags))

from dover_eval.distortions import h264
from dover_eval.video.decode import decode_clip

digest = hashlib.sha256()
for path in paths:
    digest.update(decode_clip(path, 4).frames.numpy().tobytes())
digest.update(h264(np.random.default_rng(0).integers(0, 256, (4, 31, 45, 3), dtype=np.uint8), 30).tobytes())
print(digest.hexdigest())
"""


def test_a_processor_without_vector_instructions_gives_the_same_bits(write_video, moving_frames):
    wheel = Path(av.__file__).parent.parent / "av.libs"
    libraries = sorted(map(str, wheel.glob("libavutil*")))
    if not libraries:
        pytest.skip("FFmpeg's libavutil lies elsewhere than in PyAV's wheels for Linux, and cannot be asked")
    codecs = {"a.mp4": "libx264", "b.webm": "libvpx-vp9", "c.avi": "mpeg4", "d.mkv": "mpeg2video", "e.mkv": "libx265"}
    paths = [str(write_video(moving_frames, name, rate=25, codec=codec)) for name, codec in codecs.items()]
    digests = {
        subprocess.run(
            [sys.executable, "-c", WITHOUT_VECTOR_INSTRUCTIONS, flags, libraries[0], *paths],
            env=os.environ, capture_output=True, text=True, check=True,
        ).stdout
        for flags in ("all", "0")
    }  # fmt: skip
    assert len(digests) == 1


def test_a_file_of_full_range_is_not_stretched(tmp_path):
    """As phones write it: 0 to 255, and a tag that says so."""
    path = tmp_path / "full.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.color_range, stream.codec_context.colorspace = ColorRange.JPEG, 1
        for luma in (16, 235):
            container.mux(stream.encode(flat((luma, 128, 128), "yuv420p", colour_range=ColorRange.JPEG)))
        container.mux(stream.encode())
    assert decode_clip(path, 2).frames.amax(dim=(1, 2, 3)).tolist() == [16, 235]
