"""Where weights lie: with this package, in a folder, or in a repository of the Hugging Face hub or of its cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from dover_eval.wording import one_line

#: The default model's folder.
EMBEDDED = Path(str(resources.files("dover_eval") / "assets"))


def local_folder(name: str | Path) -> Path | None:
    """The folder `name`, `~` in front being the home folder; None where there is none."""
    folder = Path(os.path.expanduser(name))
    return folder if folder.is_dir() else None


def folder_of(name: str | Path, **options: Any) -> Path:
    """The folder `name`, or a local copy of the repository `name`; `options` are `snapshot_download`'s.

    Raises FileNotFoundError, which names what was looked for and why it was not found.
    """
    from huggingface_hub import snapshot_download

    return local_folder(name) or _download(name, "", lambda repository: snapshot_download(repository, **options))


def file_of(name: str | Path, file: str, **options: Any) -> Path:
    """A file of the folder `name`, or a local copy of that of the repository `name`; `options` are `hf_hub_download`'s.

    Raises FileNotFoundError, which names what was looked for and why it was not found.
    """
    if folder := local_folder(name):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder}: a folder without {file}")
        return folder / file
    from huggingface_hub import hf_hub_download

    return _download(name, f"{file} of a ", lambda repository: hf_hub_download(repository, file, **options))


def _download(name: str | Path, sought: str, download: Callable[[str], str]) -> Path:
    folder = os.path.expanduser(name)
    if isinstance(name, Path) or folder.startswith(("/", ".", "~")):  # never a repository
        raise FileNotFoundError(f"no folder {folder}")
    try:
        return Path(download(folder))
    except (OSError, ValueError) as error:  # ValueError: a name that no repository can have
        raise FileNotFoundError(
            f"no folder {name}, and no {sought}repository of that name on the hub or in its cache: {one_line(error)}"
        ) from error
