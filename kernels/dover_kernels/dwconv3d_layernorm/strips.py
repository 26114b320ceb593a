"""How the kernels cut a batch of frames: into strips of a few columns, down which a program marches row by row."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

#: Programs that a weight gradient is cut into. It fixes the order of its sums, so it is no property of the device.
WEIGHT_GRADIENT_PROGRAMS = 1056


@dataclass(frozen=True)
class Strips:
    """A batch of frames cut into strips of `height` rows and R columns: rows x columns strips a frame."""

    height: int
    rows: int
    columns: int
    count: int
    even: bool

    @classmethod
    def cut(cls, frames: int, H: int, W: int, R: int, rows: int) -> "Strips":
        height = math.ceil(H / rows)
        rows, columns = math.ceil(H / height), math.ceil(W / R)
        return cls(height, rows, columns, frames * rows * columns, W % R == 0)


@lru_cache(maxsize=1024)
def plan(R: int, together: int, chunks: int, shape: torch.Size, slots: int, K: int, unroll: int = 1) -> Strips:
    """The cut that takes the fewest row steps from start to end, where a program marches down `together` strips of R
    columns in one of `chunks` chunks of channels, and `slots` programs run at a time.

    A strip of a part of its frame meets K - 1 rows more than it has; more strips fill the device better, but none of a
    single row where that has a price. An unrolled march takes `unroll` steps at a time.
    """
    B, _C, T, H, W = shape

    def steps(strips: Strips) -> int:
        halo = K - 1 if strips.rows > 1 else 0
        waves = math.ceil(math.ceil(strips.count / together) * chunks / slots)
        return waves * math.ceil((strips.height + halo) / unroll) * unroll

    most = H if K == 1 else max(H // 2, 1)
    return min((Strips.cut(B * T, H, W, R, rows) for rows in range(1, most + 1)), key=steps)


def slabs(cut: Strips, together: int, chunks: int) -> int:
    """Into how many shares, each added up by itself, a weight gradient's strips are dealt out, `together` at a time,
    where `chunks` programs work on a share."""
    return min(math.ceil(cut.count / together), math.ceil(WEIGHT_GRADIENT_PROGRAMS / chunks))
