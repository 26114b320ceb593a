"""From what a user types - paths, folders, patterns, manifests, tar shards, URLs - to clips with their prompts."""

from __future__ import annotations

import glob
import json
import logging
import os
import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import Any

from dover_eval.files import WEB, Clip, FileError, Shard, composed, is_url, locate, own_path
from dover_eval.prompts import prompt_fault
from dover_eval.tables import TableError, stream_rows, text_cell
from dover_eval.wording import one_line

# What a folder's videos end in. All are read; what else FFmpeg reads is scored where it is named.
VIDEO_SUFFIXES = frozenset(
    (
        *(".264", ".265", ".3g2", ".3gp", ".apng", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264"),
        *(".h265", ".hevc", ".ivf", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
        *(".mxf", ".nut", ".ogv", ".qt", ".rm", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m"),
    )
)
# What may be a video, and is a still picture or a sound for the most part: left out of a folder, and told.
DOUBTFUL_SUFFIXES = frozenset((".avif", ".ogg", ".webp"))
SHARD_SUFFIX = ".tar"
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
NAME_COLUMNS = ("video_name", "path", "video")
NAME_COLUMN, PROMPT_COLUMN = "video_name", "Prompt"
MOST_LINKS = 40  # to follow, as on Linux
SHARD_PROMPTS = ("Prompt", "prompt", "caption", "text")

logger = logging.getLogger(__name__)


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
        text = own or prompt or (match_prompt(video, prompts) if prompts else None)
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
    try:
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
    except InputError:
        raise
    except Exception as error:  # each file system has its own
        raise _unreadable(name, error) from error


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
        video, text = (_text(name, line, row, wanted) for wanted in (column, PROMPT_COLUMN))
        if not is_url(video) and not posixpath.isabs(video):
            beside = posixpath.join(folder, video)
            as_it_is = "fingerprint" in columns and os.path.exists(video)
            video = beside if not as_it_is and (is_url(name) or os.path.exists(beside)) else video
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
        name, text = (_text(str(path), line, row, wanted) for wanted in (NAME_COLUMN, PROMPT_COLUMN))
        name = name if is_url(name) else str(PurePosixPath(name))  # without a ./, as files are named
        if texts.setdefault(composed(name), text) != text:
            raise InputError(f"{path}, line {line}: a second prompt for {name}")
    return texts


def _text(name: str, line: int, row: Mapping[str, Any], column: str) -> str:
    """A cell that must not be empty. Raises InputError."""
    try:
        found = text_cell(f"{name}, line {line}", column, row.get(column))
    except TableError as error:
        raise InputError(str(error)) from error
    if not found:
        raise InputError(f"{name}, line {line}: an empty {column}")
    return found


def match_prompts(files: Sequence[Path], texts: Mapping[str, str]) -> list[str]:
    """Each file's prompt, as `match_prompt` finds it. Raises NoPromptError, which names some that have none."""
    return [clip.prompt for clip in with_prompts([(str(file), None, None) for file in files], prompts=texts)]


def match_prompt(video: str, texts: Mapping[str, str]) -> str | None:
    """A clip's prompt, by its path, the last parts of that, its name, or its name without the suffix.

    `texts` has composed names, as `read_prompts` gives them.
    """
    video = composed(video)
    parts = own_path(video).split("/")
    ends = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((texts[key] for key in (video, *ends, PurePosixPath(parts[-1]).stem) if key in texts), None)


def video_file_name(video: str) -> str:
    """The last part of a path, a URL or a shard's member."""
    return posixpath.basename(own_path(video))


def _rows(name: str) -> Iterator[Any]:
    """First the names of a table's columns, then (line, row), in bounded memory."""
    try:
        with _open(name) as raw:
            yield from stream_rows(own_path(name), raw, {*NAME_COLUMNS, PROMPT_COLUMN})
    except InputError:
        raise
    except TableError as error:
        raise InputError(str(error)) from error
    except Exception as error:  # each file system has its own
        raise _unreadable(name, error) from error


def read_shard(name: str) -> list[tuple[str, str | None, Shard | None]]:
    """(video, prompt, place) of a WebDataset shard: clip.mp4 beside clip.txt, or clip.json with "prompt" or "caption".

    A text is its video's by the name without the suffix; or as WebDataset has it, by what is before the first dot, if
    the text is named no more than that or no other video has as much. A link is what it leads to. Only the headers and
    the texts are read. Python's tarfile, not the webdataset package: that one streams, and would pull a million clips
    through one process to find where they lie.
    """
    texts: dict[str, str] = {}
    named: dict[str, tarfile.TarInfo] = {}
    videos: dict[str, Shard] = {}
    try:
        with _open(name) as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
            for member in archive:
                suffix = PurePosixPath(member.name).suffix.lower()
                if not (member.isfile() or member.islnk() or member.issym()):
                    continue
                if suffix in VIDEO_SUFFIXES:
                    if member.name.startswith("/") or "::" in member.name:
                        raise InputError(f"{name}: {member.name!r}: expected a name without / in front and without ::")
                    named[member.name] = member
                elif suffix in (".txt", ".json") and (data := archive.extractfile(member)):
                    stem = _stem(member.name)
                    text = _shard_prompt(f"{name}: {member.name}", data.read().decode(), suffix)
                    texts[stem] = text or texts.get(stem, "")
            _check_end(name, raw, archive.offset)
            # Files last: tar may write a file that is named twice as a link to itself.
            members = {posixpath.normpath(member.name): member for member in sorted(archive, key=lambda m: m.isfile())}
            for video, member in named.items():
                held = _behind_links(name, member, members)
                videos[video] = Shard(name, held.offset_data, held.size)
    except InputError:
        raise
    except (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{name}: expected an uncompressed tar file with UTF-8 texts ({error})") from error
    except Exception as error:
        raise _unreadable(name, error) from error
    if not videos:
        raise InputError(f"{name}: a shard without videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
    of_key = {_key(stem): text for stem, text in texts.items()}
    sharing = Counter(map(_key, videos))
    found: list[tuple[str, str | None, Shard | None]] = []
    for video, place in videos.items():
        key = _key(video)
        text = texts.get(_stem(video)) or texts.get(key) or (of_key.get(key) if sharing[key] == 1 else None)
        found.append((f"tar://{video}::{name}", text or None, place))
    return found


def _check_end(name: str, raw: Any, end: int) -> None:
    """Raises InputError where a tar file's members end without its mark: tarfile takes a damaged header for the end.

    The mark is two blocks of zeros, and some writers add more up to a whole record: of tarfile.RECORDSIZE bytes, or of
    a larger power of two. Any more than that stand where members were.
    """
    raw.seek(0, os.SEEK_END)
    size = raw.tell()
    raw.seek(end)
    mark = bytes(2 * tarfile.BLOCKSIZE)
    record = max(tarfile.RECORDSIZE, size & -size)
    if raw.read(len(mark)) != mark or size - end - len(mark) >= record:
        raise InputError(
            f"{name}: its members end at byte {end} of {size}, expected the end mark of a tar file there; it is "
            "damaged, cut off, or several archives in one file"
        )


def _behind_links(shard: str, member: tarfile.TarInfo, members: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    """The member that has the bytes. Raises InputError for a link that leads to none."""
    found: tarfile.TarInfo | None = member
    for _ in range(MOST_LINKS):
        if found is None or found.isfile():
            break
        folder = posixpath.dirname(found.name) if found.issym() else ""
        found = members.get(posixpath.normpath(posixpath.join(folder, found.linkname)))
    if found is None or not found.isfile():
        raise InputError(f"{shard}: {member.name} is a link to {member.linkname}, which is no file of this shard")
    return found


def _stem(member: str) -> str:
    return posixpath.splitext(PurePosixPath(member))[0]


def _key(member: str) -> str:
    """Up to the first dot of the name."""
    folder, name = posixpath.split(PurePosixPath(member))
    return posixpath.join(folder, name.split(".")[0] or name)


def _shard_prompt(place: str, text: str, suffix: str) -> str | None:
    if suffix == ".txt":
        return text.strip()
    found = json.loads(text)
    key = next((key for key in SHARD_PROMPTS if found.get(key)), None) if isinstance(found, dict) else None
    try:
        return text_cell(place, key, found[key]) if key else None
    except TableError as error:
        raise InputError(str(error)) from error


def _open(name: str) -> Any:
    if not is_url(name):
        return open(name, "rb")
    files, path = locate(name)
    return files.open(path)


def _unreadable(name: str, error: Exception) -> InputError:
    if isinstance(error, FileError):
        return InputError(str(error))
    kind = "cannot be reached" if is_url(name) else "cannot be read"
    return InputError(f"{name}: {kind} ({one_line(error)})")
