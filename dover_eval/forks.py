"""Locks and forks: a forked child lacks its parent's threads. A lock that one of them held would stay locked there, and
torch would wait for ever for those that computed with it."""

from __future__ import annotations

import os
import sys
import threading
from typing import Protocol
from weakref import WeakSet


class Renewed(Protocol):
    """What `renew_in_children` takes."""

    def renew(self) -> None: ...


_RENEWED: WeakSet[Renewed] = WeakSet()


def renew_in_children(owner: Renewed) -> None:
    """Call `owner.renew()` now and in every forked child."""
    owner.renew()
    _RENEWED.add(owner)


def _renew() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # as DataLoader's workers have it
    for owner in list(_RENEWED):
        owner.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class Lock:
    """`threading.RLock`, for `with`: free in a forked child, and a free one of its own in a pickled or copied owner."""

    def __init__(self) -> None:
        renew_in_children(self)

    def renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()
