"""Tensors on disk, at most so many bytes of them: for clips that are decoded once and read every epoch.

Any number of processes share a folder. An entry appears whole or not at all, carries a checksum, and one that does not
match it is made again. Candidates were diskcache (its bound is approximate, its database pickles) and joblib.Memory
(not bounded while it writes); filelock, which huggingface_hub brings, and safetensors are what is left to need.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from filelock import FileLock
from torch import Tensor

CHECKSUM_BYTES = 4
TEMPORARY = ".writing-"
EVICT_TO = 0.9  # so that a full cache is not listed anew for every entry


class TensorCache:
    """A folder of named tensors that never holds more than `limit` bytes; what was not read for longest goes first.

    The folder belongs to the cache. A `limit` of 0 stores nothing. Safe between threads and processes of one machine.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self.folder.mkdir(parents=True, exist_ok=True)
        self._total = self.folder / "total"

    def get(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors stored as `key`, a file name; from `make` where there are none, or damaged ones."""
        path = self.folder / f"{key}.bin"
        try:
            stored = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            stored = b""
        checksum, payload = stored[:CHECKSUM_BYTES], stored[CHECKSUM_BYTES:]
        if payload and checksum == _checksum(payload):
            return safetensors.torch.load(payload)
        tensors = make()
        payload = safetensors.torch.save(tensors)
        self._store(path, _checksum(payload) + payload)
        return tensors

    def _store(self, path: Path, entry: bytes) -> None:
        if len(entry) > self.limit:
            return
        with FileLock(self.folder / "lock"):
            total = self._stored_bytes() + len(entry)
            if total > self.limit:
                total = self._evict(int(self.limit * EVICT_TO) - len(entry)) + len(entry)
            # Counted before it is there: who is killed in between leaves the count too high, never too low.
            self._total.write_text(str(total))
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=TEMPORARY, delete=False) as file:
                file.write(entry)
            os.replace(file.name, path)

    def _stored_bytes(self) -> int:
        """The count that is kept; a listing where there is none."""
        try:
            return int(self._total.read_text())
        except (FileNotFoundError, ValueError):
            return sum(size for _, size, _ in self._entries())

    def _evict(self, wanted: int) -> int:
        """Remove what was not read for longest, until at most `wanted` bytes are left; how many are left."""
        for leftover in self.folder.glob(f"{TEMPORARY}*"):  # of a process that was killed: the lock is ours
            leftover.unlink()
        entries = sorted(self._entries())
        left = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if left <= max(wanted, 0):
                break
            path.unlink(missing_ok=True)
            left -= size
        return left

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(time of the last use, bytes, path) of each."""
        found = []
        for path in self.folder.glob("*.bin"):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
        return found


def _checksum(payload: bytes) -> bytes:
    return zlib.crc32(payload).to_bytes(CHECKSUM_BYTES, "big")
