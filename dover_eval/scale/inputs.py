"""From what a user types - paths, folders, patterns, manifests, tar shards, URLs - to clips with their prompts."""

from __future__ import annotations

import csv
import glob
import io
import json
import posixpath
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import IO, Any

from dover_eval.scale.files import Clip, FileError, Shard, filesystem, is_url

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv")
)
SHARD_SUFFIX = ".tar"
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
NAME_COLUMNS = ("video_name", "path", "video")
NAME_COLUMN, PROMPT_COLUMN = "video_name", "Prompt"
SHARD_PROMPTS = ("Prompt", "prompt", "caption", "text")


class InputError(ValueError):
    """Inputs that cannot be scored as they are; the message says what was found and what was expected."""


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
        if PurePosixPath(name).suffix.lower() in MANIFEST_SUFFIXES:
            found += ((video, text, None) for video, text in read_manifest(name))
            continue
        for file in find_files(name):
            if file in seen:
                continue
            seen.add(file)
            found += read_shard(file) if PurePosixPath(file).suffix.lower() == SHARD_SUFFIX else [(file, None, None)]
    return with_prompts(found, prompt, prompts)


def with_prompts(
    found: Sequence[tuple[str, str | None, Shard | None]],
    prompt: str | None = None,
    prompts: Mapping[str, str] | None = None,
) -> list[Clip]:
    """Clips of (video, its own prompt, its place in a shard). Raises NoPromptError, which names some that have none."""
    clips, lacking = [], []
    for video, own, shard in found:
        text = own or prompt or (match_prompt(video, prompts) if prompts else None)
        if text is None:
            lacking.append(video if prompts else video_file_name(video))
        else:
            _check_unicode(video, text)
            clips.append(Clip(video, text, shard))
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise NoPromptError(f"no prompt for {', '.join(lacking[:5])}{more}")
    return clips


def _check_unicode(video: str, text: str) -> None:
    """Neither tables nor tokenizers take halves of a character."""
    for what, value in (("name", video), ("prompt", text)):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{video!r}: a {what} that is not UTF-8 ({value!r})") from error


def find_files(name: str, suffixes: Set[str] = VIDEO_SUFFIXES | {SHARD_SUFFIX}) -> list[str]:
    """A file as it is named; what ends in `suffixes` in a folder and its subfolders; what a pattern matches. Sorted."""
    if is_url(name):
        return _find_remote(name, suffixes)
    path = Path(name)
    if path.is_dir():
        return _of_folder(name, (str(p) for p in path.rglob("*") if p.is_file()), suffixes)
    if not path.exists() and glob.has_magic(name):
        matched = sorted(str(p) for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
        if not matched:
            raise InputError(f"{name}: no file matches this pattern")
        return matched
    return [str(path)]  # a missing file becomes a row with its error


def find_videos(names: Sequence[str]) -> list[Path]:
    """Files as they are named, the videos of folders (with their subfolders) and of patterns, sorted, each once.

    Raises InputError for a folder or a pattern without any.
    """
    return list(dict.fromkeys(Path(file) for name in names for file in find_files(name, VIDEO_SUFFIXES)))


def _find_remote(name: str, suffixes: Set[str]) -> list[str]:
    try:
        files = filesystem(name)
        if glob.has_magic(name) and not name.startswith(("http://", "https://")):
            matched = sorted(files.unstrip_protocol(path) for path in files.glob(name))
            if not matched:
                raise InputError(f"{name}: no file matches this pattern")
            return matched
        if PurePosixPath(name).suffix.lower() in suffixes:
            return [name]
        return _of_folder(name, (files.unstrip_protocol(path) for path in files.find(name)), suffixes)
    except InputError:
        raise
    except Exception as error:  # each file system has its own
        raise _unreadable(name, error) from error


def _of_folder(folder: str, paths: Iterator[str], suffixes: Set[str]) -> list[str]:
    inside = sorted(path for path in paths if PurePosixPath(path).suffix.lower() in suffixes)
    if not inside:
        raise InputError(f"{folder}: a folder without videos ({', '.join(sorted(suffixes))})")
    return inside


def read_manifest(name: str) -> Iterator[tuple[str, str]]:
    """(video, prompt) of a .csv, .jsonl or .parquet table with `Prompt` and `video_name`, `path` or `video`.

    Relative paths start from the manifest's folder where the file is there, else from the current one.
    """
    rows = _rows(name)
    columns: list[str] = next(rows, [])
    column = next((column for column in NAME_COLUMNS if column in columns), None)
    if column is None or PROMPT_COLUMN not in columns:
        found = ", ".join(columns) or "none"
        raise InputError(
            f"{name}: expected the columns {PROMPT_COLUMN} and one of {', '.join(NAME_COLUMNS)}, found {found}"
        )
    folder, line = posixpath.dirname(name), 0
    for line, row in rows:
        video, text = _cell(row, column), _cell(row, PROMPT_COLUMN)
        if not video or not text:
            raise InputError(f"{name}, line {line}: an empty {PROMPT_COLUMN if video else column}")
        if not is_url(video) and not posixpath.isabs(video):
            beside = posixpath.join(folder, video)
            video = beside if is_url(name) or Path(beside).exists() else video
        yield video, text
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
        name, text = _cell(row, NAME_COLUMN), _cell(row, PROMPT_COLUMN)
        if not name or not text:
            raise InputError(f"{path}, line {line}: an empty {PROMPT_COLUMN if name else NAME_COLUMN}")
        if texts.setdefault(unicodedata.normalize("NFC", name), text) != text:
            raise InputError(f"{path}, line {line}: a second prompt for {name}")
    return texts


def match_prompts(files: Sequence[Path], texts: Mapping[str, str]) -> list[str]:
    """Each file's prompt, as `match_prompt` finds it. Raises NoPromptError, which names some that have none."""
    return [clip.prompt for clip in with_prompts([(str(file), None, None) for file in files], prompts=texts)]


def match_prompt(video: str, texts: Mapping[str, str]) -> str | None:
    """A clip's prompt, by its path, the last parts of that, its name, or its name without the suffix.

    Names are compared in Unicode's composed form, as `read_prompts` has them; some file systems decompose them.
    """
    video = unicodedata.normalize("NFC", video)
    parts = video.split("::")[0].split("/")
    ends = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((texts[key] for key in (video, *ends, PurePosixPath(parts[-1]).stem) if key in texts), None)


def video_file_name(video: str) -> str:
    """The last part of a path, a URL or a shard's member."""
    return posixpath.basename(video.split("::")[0])


def _rows(name: str) -> Iterator[Any]:
    """First the names of a table's columns, then (line, row), in bounded memory."""
    try:
        with _open(name) as raw:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix == ".parquet":
                yield from _parquet_rows(name, raw)
                return
            file = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            if suffix == ".jsonl":
                yield from _json_rows(name, file)
                return
            yield from _csv_rows(name, file)
    except InputError:
        raise
    except Exception as error:  # each format and each file system has its own
        raise _unreadable(name, error) from error


def _csv_rows(name: str, file: io.TextIOWrapper) -> Iterator[Any]:
    reader = csv.DictReader(file, strict=True)
    columns = list(reader.fieldnames or [])
    if doubled := {column for column in columns if columns.count(column) > 1}:
        raise InputError(f"{name}: the columns {', '.join(sorted(doubled))} are there twice")
    yield columns
    for row in reader:
        if None in row:  # the rest of a text that holds a comma
            raise InputError(
                f"{name}, line {reader.line_num}: {len(columns) + len(row[None])} cells for {len(columns)} columns; "
                'a text with a comma needs quotes, "a dog, running"'
            )
        yield reader.line_num, row


def _json_rows(name: str, file: io.TextIOWrapper) -> Iterator[Any]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}, line {line}: no JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{name}, line {line}: expected an object with a value for each column")
        if line == 1:
            yield list(row)
        yield line, row


def _parquet_rows(name: str, raw: IO[bytes]) -> Iterator[Any]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{name}: Parquet needs pyarrow: pip install 'dover-eval[parquet]'") from error
    table = pyarrow.parquet.ParquetFile(raw)
    columns = table.schema_arrow.names
    yield columns
    line = 0
    for batch in table.iter_batches(columns=[name for name in columns if name in (*NAME_COLUMNS, PROMPT_COLUMN)]):
        for row in batch.to_pylist():
            line += 1
            yield line, row


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value).strip()


def read_shard(name: str) -> Iterator[tuple[str, str | None, Shard | None]]:
    """(video, prompt, place) of a WebDataset shard: clip.mp4 beside clip.txt, or clip.json with "prompt" or "caption".

    Only the headers and the texts are read. Python's tarfile, not the webdataset package: that one streams, and would
    pull a million clips through one process to find where they lie.
    """
    texts: dict[str, str] = {}
    videos: dict[str, tuple[str, Shard]] = {}
    try:
        with _open(name) as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                key = f"{folder}/{file.split('.')[0]}"  # up to the first dot, as WebDataset has it
                suffix = PurePosixPath(file).suffix.lower()
                if not member.isfile():
                    continue
                if suffix in VIDEO_SUFFIXES:
                    place = Shard(name, member.offset_data, member.size)
                    videos[key] = (f"tar://{member.name}::{name}", place)
                elif suffix in (".txt", ".json") and (data := archive.extractfile(member)):
                    texts[key] = _shard_prompt(data.read().decode(), suffix) or texts.get(key, "")
    except (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{name}: expected an uncompressed tar file with UTF-8 texts ({error})") from error
    except Exception as error:
        raise _unreadable(name, error) from error
    if not videos:
        raise InputError(f"{name}: a shard without videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return ((video, texts.get(key) or None, place) for key, (video, place) in videos.items())


def _shard_prompt(text: str, suffix: str) -> str | None:
    if suffix == ".txt":
        return text.strip()
    found = json.loads(text)
    named = [str(found[key]).strip() for key in SHARD_PROMPTS if found.get(key)] if isinstance(found, dict) else []
    return named[0] if named else None


def _open(name: str) -> Any:
    return filesystem(name).open(name) if is_url(name) else open(name, "rb")


def _unreadable(name: str, error: Exception) -> InputError:
    if isinstance(error, FileError):
        return InputError(str(error))
    kind = "cannot be reached" if is_url(name) else "cannot be read"
    return InputError(f"{name}: {kind} ({' '.join(str(error).split()) or type(error).__name__})")
