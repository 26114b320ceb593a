"""Locks and forks: what a thread of the parent held would be held for ever in a child, where that thread is not."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class HasLocks(Protocol):
    """What `renew_in_children` takes."""

    def renew_locks(self) -> None: ...


_OWNERS: WeakSet[HasLocks] = WeakSet()


def renew_in_children(*owners: HasLocks) -> None:
    """Give `owners` new locks in every forked child."""
    _OWNERS.update(owners)


def _renew() -> None:
    for owner in list(_OWNERS):
        owner.renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
