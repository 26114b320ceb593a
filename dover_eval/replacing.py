"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, draft: Path | None = None) -> Iterator[Path]:
    """A draft to write to: it becomes `path` once all is on the disk, and goes where something fails.

    By default a hidden file beside `path`, with its suffix. It is a new file, never what somebody left under its name,
    and gets the permissions of what it replaces; meanwhile only its owner reads it.

    Raises OSError where the disk is full or the folder is not to be written; what was at `path` is then still there.
    What is no regular file, such as a pipe, is written as it is.
    """
    if draft is None:
        path = path.resolve()  # what a link names, and not the link
        draft = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    if path.exists() and not path.is_file():
        yield path
        return
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    draft.unlink(missing_ok=True)
    draft.touch(0o666 if mode is None else 0o600, exist_ok=False)
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        if mode is not None:
            draft.chmod(mode)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
