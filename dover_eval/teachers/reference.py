"""Full-reference quality: what is left of the pristine clip, frame by frame, by SSIM or MS-SSIM.

Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, and "Multiscale
structural similarity for image quality assessment", 2003, as pytorch-msssim (MIT) computes them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from dover_eval.distillation import Linear, Scale, requires
from dover_eval.files import composed
from dover_eval.inputs import of_clip
from dover_eval.tables import TableError, read_rows, text
from dover_eval.teachers import TEACHERS_EXTRA
from dover_eval.video.decode import decode_clip

METRICS = ("ssim", "ms-ssim")
CEILING = 25.0  # dB; beyond it differences are of the order of rounding in 8 bits
TIME_TOLERANCE = 0.05  # seconds


class FullReference:
    """Traditional: the similarity of a clip with its pristine original, -10 log10(1 - similarity), in dB.

    Decibels, because the similarity itself crowds all that is watchable into its last tenth. 0 dB, nothing in common,
    becomes 1, and 25 dB (a similarity of 0.997) and more 5.

    Frames are compared that are on screen at the same time, so what moves a picture in time or place counts as well:
    label with it only what was spoiled within its frames. A clip of another size is resized to its original's.

    Args:
        references: a folder with the originals under the clips' own names, or a table `video_name, reference` of the
            clips' names and of originals beside it. A name is a clip's path, the last parts of that, or its stem.
        metric: "ssim" or "ms-ssim"; the latter needs 161 pixels a side.
        frames: how many are compared, uniform in time.

    Raises ValueError in a clip's row: no original, one of another length, or one too small for the metric.
    """

    scales: ClassVar[dict[str, Scale]] = {"Traditional": Linear(0.0, CEILING)}

    def __init__(self, references: str, metric: str = "ms-ssim", frames: int = 8) -> None:
        with requires(TEACHERS_EXTRA, "MIT"):
            from pytorch_msssim import ms_ssim, ssim
        if metric not in METRICS:
            raise ValueError(f"expected a metric of {', '.join(METRICS)}, got {metric}")
        self.frames = frames
        self._similarity: Any = ssim if metric == "ssim" else ms_ssim
        self._least = 161 if metric == "ms-ssim" else 1
        place = Path(str(references))  # a folder may be called 2024, which an option takes for a number
        if not place.exists():
            raise ValueError(f"references: there is no folder or table {place}")
        self._folder = place if place.is_dir() else place.parent
        self._table = None if place.is_dir() else _read(place)

    def inputs(self, path: str) -> list[Path]:
        """The original, whose change is a change of the clip."""
        return [self._reference(path)]

    def __call__(self, path: str, prompt: str) -> dict[str, float]:
        reference = self._reference(path)
        clip, original = decode_clip(path, self.frames), decode_clip(reference, self.frames)
        if abs(clip.duration - original.duration) > TIME_TOLERANCE:
            raise ValueError(f"lasts {clip.duration:.2f} s, and its original {reference} {original.duration:.2f} s")
        height, width = original.frames.shape[2:]
        if min(height, width) < self._least:
            raise ValueError(f"{reference} is {width}x{height}: ms-ssim needs 161 pixels a side, and ssim any number")
        values = []
        for spoiled, pristine in zip(clip.frames, original.frames, strict=True):
            a, b = spoiled[None].float() / 255, pristine[None].float() / 255
            if a.shape != b.shape:
                a = F.interpolate(a, b.shape[2:], mode="bicubic", antialias=True).clamp(0, 1)
            values.append(self._similarity(a, b, data_range=1.0))
        lost = max(1 - torch.stack(values).mean().item(), 1e-9)
        return {"Traditional": min(max(-10 * math.log10(lost), 0.0), CEILING)}

    def _reference(self, path: str) -> Path:
        if self._table is not None:
            name = of_clip(path, self._table)
            if name is None:
                raise ValueError(f"{path} has no original in the table of references")
            places = [self._folder / name]
        else:
            parts = Path(path).parts[1:]
            places = [self._folder.joinpath(*parts[i:]) for i in range(len(parts))]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise ValueError(f"{path} has no original {places[-1]}")
        return found


def _read(table: Path) -> dict[str, str]:
    columns = ("video_name", "reference")
    originals: dict[str, str] = {}
    for place, row in read_rows(table, columns):
        name, original = (text(place, column, row[column]) for column in columns)
        if originals.setdefault(composed(name), original) != original:
            raise TableError(f"{place}: a second original for {name}")
    return originals
