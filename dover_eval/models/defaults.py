"""Process-wide defaults of torch that our models do not follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dover_eval.forks import Lock

_SWITCHED = Lock()


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Parameters made or read inside are float32: in bfloat16 a checkpoint's weights would be rounded as they load.

    One thread at a time: the default is the process's, and the first to leave would take it from the others.
    """
    with _SWITCHED:
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
