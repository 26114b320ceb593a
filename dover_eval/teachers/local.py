"""Weights where they lie: a folder as it is, a repository in the Hugging Face hub's cache or from the hub."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from dover_eval.distillation import TeacherError
from dover_eval.hashing import file_sha256
from dover_eval.hub import folder_of

WEIGHTS = ("*.safetensors", "*.pth", "*.pt", "*.bin")


def checkpoint_folder(name: str) -> Path:
    """The folder `name`, or a local copy of that repository. Raises TeacherError where there is neither."""
    try:
        return folder_of(name)
    except FileNotFoundError as error:
        raise TeacherError(str(error)) from error


def use_clone(root: str, holds: Iterable[str], where: str) -> Path:
    """Make a repository that is no package importable. Raises TeacherError where its files are not there."""
    folder = Path(root).expanduser().resolve()
    if lacking := [name for name in holds if not (folder / name).exists()]:
        raise TeacherError(f"{folder} has no {', '.join(lacking)}: expected a clone of {where}")
    sys.path.insert(0, str(folder))
    return folder


def weights_digest(folder: Path) -> str:
    """sha256 of the weights in a folder. Raises TeacherError where there are none."""
    files = sorted({file for pattern in WEIGHTS for file in folder.rglob(pattern)})
    if not files:
        raise TeacherError(f"{folder} holds no weights ({', '.join(WEIGHTS)})")
    return file_sha256(*files)
