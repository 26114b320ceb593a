"""How many bytes all requests hold together: their bodies, what is copied out of these, and the frames."""

from __future__ import annotations

import threading
from typing import Any

from starlette.exceptions import HTTPException


class Budget:
    """At most `most` bytes, of which requests take shares. For threads."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self.lock = threading.Lock()


class Held:
    """What one request has taken of a budget. Given back when the last of those who hold it, each in a `with`, leaves.

    The request is one; the thread that decodes for it is another, and goes on for a while where the request is over.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.taken = 0
        self.holders = 0

    def take(self, size: int) -> None:
        """`size` bytes more. HTTPException 413 where no budget would do, 429 where others have left too little."""
        budget = self.budget
        with budget.lock:
            if self.taken + size > budget.most:
                found = f"got {self.taken + size} or more"
                raise HTTPException(413, f"expected a body and frames of at most {budget.most} bytes, {found}")
            if budget.taken + size > budget.most:
                raise HTTPException(429, "too many bytes at work: try again", {"Retry-After": "1"})
            self.taken += size
            budget.taken += size

    def __enter__(self) -> Held:
        with self.budget.lock:
            self.holders += 1
        return self

    def __exit__(self, *error: Any) -> None:
        with self.budget.lock:
            self.holders -= 1
            if not self.holders:
                self.budget.taken -= self.taken
                self.taken = 0
