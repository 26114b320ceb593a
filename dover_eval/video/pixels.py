"""From FFmpeg's frames to RGB, and back, alike whatever vector instructions a processor has.

FFmpeg's usual conversion gives other bits with other vector instructions, and up to two levels of 255 too few. The
flags are those with which FFmpeg's own tests compare machines; `gbrp` is planar, as frames are here, and faster than
`rgb24` with them.
"""

from __future__ import annotations

from typing import BinaryIO

import av
import numpy as np
import torch
from av import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

#: SWS_BILINEAR, SWS_FULL_CHR_H_INT, SWS_ACCURATE_RND and SWS_BITEXACT, of which PyAV before 18 names only the first.
EXACT = 0x2 | 0x2000 | 0x40000 | 0x80000
#: Of red, green and blue in luma, by ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)
#: Formats of a luma and no colours, by how FFmpeg's names begin.
MONOCHROME = ("gray", "ya")


def rgb_planes(frame: VideoFrame, reformatter: VideoReformatter | None = None) -> Tensor:
    """The frame's pixels (3,H,W) uint8, RGB of full range, by the matrix and the range that the frame names.

    reformatter: spares frames of one file the making of their own.
    """
    planar = (reformatter or VideoReformatter()).reformat(frame, format="gbrp", interpolation=EXACT)
    green, blue, red = (
        np.asarray(plane).reshape(plane.height, plane.line_size)[:, : plane.width] for plane in planar.planes
    )
    rgb = torch.from_numpy(np.stack([red, green, blue]))
    if frame.format.name.startswith(MONOCHROME) and frame.color_range == ColorRange.MPEG:
        rgb = ((rgb.int() - 16) * 255 + 109).div(219, rounding_mode="floor").clamp(0, 255).byte()  # FFmpeg ignores it
    return rgb


def to_yuv420p(pixels: np.ndarray) -> VideoFrame:
    """A frame for an encoder from RGB (H,W,3) uint8 of even sides."""
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return VideoReformatter().reformat(frame, format="yuv420p", interpolation=EXACT)


def write_h264(file: BinaryIO | str, frames: NDArray[np.uint8], *, rate: int, **options: str) -> None:
    """Frames (T,H,W,3) uint8 of even sides as H.264 in MP4, `rate` of them a second; the options are x264's.

    By one thread: the bits do not depend on how many processors there are.
    """
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(to_yuv420p(frame)))
        container.mux(stream.encode())
