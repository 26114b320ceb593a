"""Videos at the door: paths, or arrays and tensors; their layout is said, never guessed, their range is one of two."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CLIP_LAYOUT = "TCHW"
#: How many times as long as the short side the long one may be: a view enlarges a frame until its short side is seen.
MOST_SIDES = 64
OVERSHOOT = 0.1  # by as much, a resize or a decoder may leave the range that it was in
ARRAY_DTYPES = (np.uint8, np.float16, np.float32, np.float64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_list(videos: Any) -> Any:
    """A path, or an iterable of paths or of clips (a generator, a pandas Series, an array of texts), as a list.

    An array or a tensor of pixels stays as it is, and so does anything unordered or not iterable.
    """
    if isinstance(videos, str | os.PathLike):
        return [videos]
    if isinstance(videos, Tensor | Mapping | Set | bytes) or getattr(videos, "ndim", 1) != 1:
        return videos
    return list(videos) if isinstance(videos, Iterable) else videos


def as_path(video: str | os.PathLike[str]) -> Path:
    """A file's path, `~` in front being the home folder unless there is a file of that very name."""
    name = os.fspath(video)
    return Path(name if os.path.exists(name) else os.path.expanduser(name))


def as_paths(videos: Any) -> list[Path] | None:
    """The paths if `videos` is a list of paths (or empty), None otherwise; TypeError for a mixture."""
    if not isinstance(videos, list):
        return None
    others = [i for i, video in enumerate(videos) if not isinstance(video, str | os.PathLike)]
    if others and len(others) < len(videos):
        found = type(videos[others[0]]).__name__
        raise TypeError(f"expected paths alone or tensors alone, got a {found} as videos[{others[0]}]")
    return None if others else [as_path(video) for video in videos]


def split_clips(videos: Any, layout: str | None) -> list[Tensor]:
    """Arrays or tensors as a list of clips (T,3,H,W), uint8 in 0-255 or float in 0-1; without copies.

    `videos` is an array or a tensor in `layout`, such as "BTCHW", "BCTHW" or "TCHW", or a list of clips in a layout
    without B. Letters are B batch, T time, C channels, H height, W width, each once.

    Raises ValueError, with the shape, dtype and range that came: for no frames, no three channels, values out of range,
    NaN, or a missing layout. Raises TypeError for what is neither an array or a tensor nor a list of these.
    """
    if isinstance(videos, Tensor | np.ndarray):
        given = [as_tensor(videos, "videos")]
    elif isinstance(videos, list):
        given = [as_tensor(video, f"videos[{i}]") for i, video in enumerate(videos)]
    else:
        raise TypeError(f"expected paths, an array, a tensor or a list of these, got {type(videos).__name__}")
    if layout is None:
        raise ValueError(
            'arrays and tensors need layout=, such as "BTCHW" or "TCHW": a shape alone cannot tell T from C'
        )
    check_layout(layout)
    if not isinstance(videos, list):
        given = unbatched(given[0], layout)
    elif layout[0] == "B":
        raise ValueError(f'a list of clips needs a layout without B, got "{layout}"')
    order = layout.removeprefix("B")
    return [check_clip(clip, order, f"videos[{i}]") for i, clip in enumerate(given)]


def check_layout(layout: str) -> None:
    """Raises ValueError for anything but the letters of TCHW in any order, or these after a B."""
    if not isinstance(layout, str) or sorted(layout.removeprefix("B")) != sorted(CLIP_LAYOUT):
        raise ValueError(f'expected a layout of T, C, H and W, each once, and B at most in front, got "{layout}"')


def unbatched(videos: Any, layout: str) -> list[Any]:
    """The clips of a batch, or the one clip where `layout` has no B. Raises ValueError for other dimensions."""
    if videos.ndim != len(layout):
        raise ValueError(f'expected {len(layout)} dimensions for layout "{layout}", got shape {tuple(videos.shape)}')
    return list(videos) if layout[0] == "B" else [videos]


def check_clip(clip: Tensor, layout: str, name: str, value_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """One clip as (T,3,H,W), after checks of its shape, dtype and range; floats must be in `value_range`."""
    found = f"{name} of shape {tuple(clip.shape)} and dtype {clip.dtype}"
    if clip.ndim != 4:
        raise ValueError(f'expected four dimensions for layout "{layout}", got {found}')
    clip = clip.permute(*(layout.index(letter) for letter in CLIP_LAYOUT))
    frames, channels, height, width = clip.shape
    if frames == 0 or height == 0 or width == 0:
        raise ValueError(f'expected at least one frame and one pixel, got {found} in layout "{layout}"')
    if channels != 3:
        raise ValueError(f'expected three channels (RGB), got {channels}: {found} in layout "{layout}"')
    check_sides(width, height, name)
    if clip.dtype == torch.uint8:
        return clip
    least, most = value_range
    wanted = f"float in {least:g}-{most:g}" if least >= 0 else f"float from {least:g} to {most:g}"
    if clip.dtype not in FLOATS:
        raise ValueError(f"expected uint8 in 0-255 or {wanted}, got {found}")
    low, high = (bound.item() for bound in clip.detach().aminmax())
    if not (low >= least and high <= most):  # also where either is NaN
        hint = "; clamp it" if low >= least - OVERSHOOT and high <= most + OVERSHOOT else ""
        # In full: rounded, a value that is barely out of range reads as if it were within.
        raise ValueError(f"expected {wanted}, got {found} with values from {low} to {high}{hint}")
    return clip


def check_sides(width: int, height: int, name: str, error: type[ValueError] = ValueError) -> None:
    """Raises `error` for frames that are too long and thin to be looked at."""
    if max(width, height) > MOST_SIDES * min(width, height):
        raise error(f"{name}: expected one side at most {MOST_SIDES} times the other, got frames of {width}x{height}")


def as_tensor(video: Any, name: str) -> Tensor:
    """A tensor as it is; an array as a tensor of the same memory, or of a copy where torch knows none of its strides.

    Raises ValueError for another dtype than uint8 and floats, or masked values, and TypeError for anything else.
    """
    if isinstance(video, Tensor):
        return video
    if not isinstance(video, np.ndarray):
        raise TypeError(f"expected an array or a tensor for {name}, got {type(video).__name__}")
    if video.dtype not in ARRAY_DTYPES:
        raise ValueError(f"expected uint8 or a floating dtype, got {name} of dtype {video.dtype}")
    if isinstance(video, np.ma.MaskedArray):
        raise ValueError(f"expected an array of which every value counts for {name}, got a MaskedArray")
    if any(stride < 0 or stride % video.itemsize for stride in video.strides):
        video = np.ascontiguousarray(video)
    return torch.from_numpy(video if video.flags.writeable else np.asarray(_Unlocked(video)))


class _Unlocked:
    """The memory of a read-only array (a picture's, a mapped file's) as writeable: torch has no tensors of another
    kind, and warns of undefined behaviour although nothing here writes to a clip."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # lives as long as what is made of this
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}
