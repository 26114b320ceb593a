"""From what a user types - paths, folders, patterns, manifests, tar shards, URLs - to clips with their prompts."""

from __future__ import annotations

import glob
import logging
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import Any

from dover_eval.files import (
    VIDEO_SUFFIXES,
    WEB,
    Clip,
    InputError,
    Shard,
    composed,
    is_url,
    locate,
    opened,
    own_path,
    reaching,
)
from dover_eval.prompts import prompt_fault
from dover_eval.shards import read_shard
from dover_eval.tables import stream_rows, text, text_cell

# What may be a video, and is a still picture or a sound for the most part: left out of a folder, and told.
DOUBTFUL_SUFFIXES = frozenset((".avif", ".ogg", ".webp"))
SHARD_SUFFIX = ".tar"
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
NAME_COLUMNS = ("video_name", "path", "video")
NAME_COLUMN, PROMPT_COLUMN = "video_name", "Prompt"

logger = logging.getLogger(__name__)


class NoPromptError(InputError):
    """Clips that nothing gives a prompt to."""


def list_clips(names: list[str], prompt: str | None = None, prompts: Mapping[str, str] | None = None) -> list[Clip]:
    """The clips that `names` stand for, in order.

    A manifest's rows and a shard's pairs bring their own prompts; other clips take `prompt`, or theirs of `prompts` by
    path, name, or name without the suffix.

    Raises InputError for a folder, a pattern or a shard without videos, a manifest without the right columns, a place
    that cannot be reached, and clips without a prompt. A single file that is missing is a clip all the same.
    """
    found: list[tuple[str, str | None, Shard | None]] = []
    seen: set[str] = set()
    for name in names:
        if _suffix(name) == ".json":
            raise InputError(f"{name}: a .json is no manifest, expected {', '.join(MANIFEST_SUFFIXES)}")
        if _suffix(name) in MANIFEST_SUFFIXES:
            found += ((video, text, None) for video, text in read_manifest(name))
            continue
        for file in find_files(name):
            if file in seen:
                continue
            seen.add(file)
            found += read_shard(file) if _suffix(file) == SHARD_SUFFIX else [(file, None, None)]
    return with_prompts(found, prompt, prompts)


def with_prompts(
    found: Sequence[tuple[str, str | None, Shard | None]],
    prompt: str | None = None,
    prompts: Mapping[str, str] | None = None,
) -> list[Clip]:
    """Clips of (video, its own prompt, its place in a shard). Raises NoPromptError, which names some without one, and
    InputError for one that has none because there is no such file."""
    clips, lacking = [], []
    for video, own, shard in found:
        text = own or prompt or (of_clip(video, prompts) if prompts else None)
        if text is None:
            if shard is None and not is_url(video) and not os.path.lexists(video):
                raise InputError(f"{video}: there is no such file or folder")
            lacking.append(video if prompts else video_file_name(video))
        else:
            check_named_prompt(video, text)
            clips.append(Clip(video, text, shard))
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise NoPromptError(f"no prompt for {', '.join(lacking[:5])}{more}")
    return clips


def check_name(video: str) -> None:
    """Raises InputError for a name that no table can hold."""
    try:
        video.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{video!r}: a name that is not UTF-8 ({error.reason})") from error


def check_named_prompt(video: str, text: str) -> None:
    """Raises InputError for a name that no table can hold, and for a prompt with nothing to read in it."""
    check_name(video)
    if fault := prompt_fault(text):
        raise InputError(f"{video!r}: expected a text for its prompt, got {text!r} ({fault})")


def find_files(name: str, suffixes: Set[str] = VIDEO_SUFFIXES | {SHARD_SUFFIX}) -> list[str]:
    """A file as it is named; what ends in `suffixes` in a folder and its subfolders; what a pattern matches. Sorted."""
    if is_url(name):
        return _find_remote(name, suffixes)
    # os.path and not pathlib, which raises where a folder above may not be entered.
    if os.path.isdir(name):
        return _of_folder(name, files_in(name), suffixes)
    if not os.path.exists(name) and glob.has_magic(name):
        matched = sorted(str(Path(found)) for found in glob.glob(name, recursive=True) if os.path.isfile(found))
        if not matched:
            raise InputError(f"{name}: no file matches this pattern")
        return matched
    return [str(Path(name))]  # a missing file becomes a row with its error


def files_in(folder: str) -> Iterator[str]:
    """The files of a folder and of its subfolders, each folder once, by a link where nothing else leads to it.

    Raises InputError for one that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: a folder that cannot be listed ({error.strerror})") from error

    seen, waiting = set(), [str(Path(folder))]
    while waiting:
        for place, folders, names in os.walk(waiting.pop(0), onerror=refuse):
            real = os.path.realpath(place)
            if real in seen:  # also where a link leads to a folder above
                folders.clear()
                continue
            seen.add(real)
            waiting += (path for name in sorted(folders) if os.path.islink(path := os.path.join(place, name)))
            yield from (path for name in names if os.path.isfile(path := os.path.join(place, name)))


def find_videos(names: Sequence[str]) -> list[Path]:
    """Files as they are named, the videos of folders (with their subfolders) and of patterns, sorted, each once.

    Raises InputError for a folder or a pattern without any.
    """
    return list(dict.fromkeys(Path(file) for name in names for file in find_files(name, VIDEO_SUFFIXES)))


def _find_remote(name: str, suffixes: Set[str]) -> list[str]:
    with reaching(name):
        files, path = locate(name)
        inside, *archive = name.split("::")

        def named(found: str) -> str:
            return "::".join([files.unstrip_protocol(found), *archive])

        if glob.has_magic(inside) and not name.startswith(WEB):
            matched = sorted(map(named, files.glob(path)))
            if not matched:
                raise InputError(f"{name}: no file matches this pattern")
            return matched
        if _suffix(name) in suffixes:
            return [name]
        return _of_folder(name, map(named, files.find(path)), suffixes)


def _suffix(name: str) -> str:
    return PurePosixPath(own_path(name)).suffix.lower()


def _of_folder(folder: str, paths: Iterator[str], suffixes: Set[str]) -> list[str]:
    by_suffix: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_suffix[_suffix(path)].append(path)
    if doubtful := [f"{len(by_suffix[suffix])} {suffix}" for suffix in sorted(DOUBTFUL_SUFFIXES & by_suffix.keys())]:
        logger.warning("%s: %s left out, name those that are videos", folder, ", ".join(doubtful))
    inside = sorted(path for suffix in suffixes & by_suffix.keys() for path in by_suffix[suffix])
    if not inside:
        raise InputError(f"{folder}: a folder without videos ({', '.join(sorted(suffixes))})")
    return inside


def read_manifest(name: str) -> Iterator[tuple[str, str]]:
    """(video, prompt) of a .csv, .jsonl or .parquet table with `Prompt` and `video_name`, `path` or `video`.

    Relative paths start from the manifest's folder where the file is there, else from the current one; those of a
    results file the other way round, as its run had them.
    """
    rows = _rows(name)
    columns: list[str] = next(rows, [])
    column = next((column for column in NAME_COLUMNS if column in columns), None)
    if column is None or PROMPT_COLUMN not in columns:
        found = ", ".join(columns) or "none"
        raise InputError(
            f"{name}: expected the columns {PROMPT_COLUMN} and one of {', '.join(NAME_COLUMNS)}, found {found}"
        )
    folder, line = posixpath.dirname(own_path(name)), 0
    for line, row in rows:
        place = f"{name}, line {line}"
        video, prompt = (text(place, c, text_cell(place, c, row.get(c))) for c in (column, PROMPT_COLUMN))
        if not is_url(video) and not posixpath.isabs(video):
            beside = posixpath.join(folder, video)
            as_it_is = "fingerprint" in columns and os.path.exists(video)
            video = beside if not as_it_is and (is_url(name) or os.path.exists(beside)) else video
        yield video, prompt
    if not line:
        raise InputError(f"{name}: a table without rows")


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by file name, from a table with `video_name` and `Prompt`. Raises InputError."""
    rows = _rows(str(path))
    columns: list[str] = next(rows, [])
    if NAME_COLUMN not in columns or PROMPT_COLUMN not in columns:
        found = ", ".join(columns) or "none"
        raise InputError(f"{path}: expected the columns {NAME_COLUMN} and {PROMPT_COLUMN}, found {found}")
    texts: dict[str, str] = {}
    for line, row in rows:
        place = f"{path}, line {line}"
        name, prompt = (text(place, c, text_cell(place, c, row.get(c))) for c in (NAME_COLUMN, PROMPT_COLUMN))
        name = name if is_url(name) else str(PurePosixPath(name))  # without a ./, as files are named
        if texts.setdefault(composed(name), prompt) != prompt:
            raise InputError(f"{place}: a second prompt for {name}")
    return texts


def match_prompts(files: Sequence[Path], texts: Mapping[str, str]) -> list[str]:
    """Each file's prompt, as `of_clip` finds it. Raises NoPromptError, which names some that have none."""
    return [clip.prompt for clip in with_prompts([(str(file), None, None) for file in files], prompts=texts)]


def of_clip(video: str, by_name: Mapping[str, str]) -> str | None:
    """What a table says of a clip, by its path, the last parts of that, its name, or its name without the suffix.

    `by_name` has composed names, as `read_prompts` gives them.
    """
    video = composed(video)
    parts = own_path(video).split("/")
    ends = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((by_name[key] for key in (video, *ends, PurePosixPath(parts[-1]).stem) if key in by_name), None)


def video_file_name(video: str) -> str:
    """The last part of a path, a URL or a shard's member."""
    return posixpath.basename(own_path(video))


def _rows(name: str) -> Iterator[Any]:
    """First the names of a table's columns, then (line, row), in bounded memory."""
    with opened(name) as raw:
        yield from stream_rows(own_path(name), raw, {*NAME_COLUMNS, PROMPT_COLUMN})
