"""Which bytes a file has, in a few characters."""

from __future__ import annotations

import hashlib
import os


def file_sha256(*paths: str | os.PathLike[str]) -> str:
    """Of a file's bytes, or of several files' one after another, in hexadecimal; files are read in blocks.

    Raises OSError where one cannot be read.
    """
    digest = hashlib.sha256()  # hashlib.file_digest is newer than Python 3.10
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
