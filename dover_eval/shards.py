"""WebDataset shards: which videos a tar file holds, where in it they lie, and their prompts."""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import IO

from dover_eval.files import VIDEO_SUFFIXES, InputError, Shard, opened
from dover_eval.tables import text_cell

MOST_LINKS = 40  # to follow, as on Linux
LONGEST_TEXT = 1 << 20  # bytes of a shard's text, which may be a hole of any size
PROMPTS = ("Prompt", "prompt", "caption", "text")


def read_shard(name: str) -> list[tuple[str, str | None, Shard | None]]:
    """(video, prompt, place) of a WebDataset shard: clip.mp4 beside clip.txt, or clip.json with "prompt" or "caption".

    A text is its video's by the name without the suffix; or as WebDataset has it, by what is before the first dot, if
    the text is named no more than that or no other video has as much. A link is what it leads to. Only the headers and
    the texts are read. Python's tarfile, not the webdataset package: that one streams, and would pull a million clips
    through one process to find where they lie.
    """
    with opened(name) as raw:
        try:
            videos, texts = _members(name, raw)
        except (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{name}: expected an uncompressed tar file with UTF-8 texts ({error})") from error
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


def _members(name: str, raw: IO[bytes]) -> tuple[dict[str, Shard], dict[str, str]]:
    """The places of a shard's videos by name, and its texts by name without the suffix."""
    texts: dict[str, str] = {}
    named: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(fileobj=raw, mode="r:") as archive:
        for member in archive:
            suffix = PurePosixPath(member.name).suffix.lower()
            if not (member.isfile() or member.islnk() or member.issym()):
                continue
            if suffix in VIDEO_SUFFIXES:
                if member.name.startswith("/") or "::" in member.name:
                    raise InputError(f"{name}: {member.name!r}: expected a name without / in front and without ::")
                named[member.name] = member
            elif suffix in (".txt", ".json") and (data := archive.extractfile(member)):
                stem, content = _stem(member.name), data.read(LONGEST_TEXT + 1)
                if len(content) > LONGEST_TEXT:
                    raise InputError(f"{name}: {member.name}: expected a text of at most {LONGEST_TEXT:,} bytes")
                text = _prompt(f"{name}: {member.name}", content.decode(), suffix)
                texts[stem] = text or texts.get(stem, "")
        _check_end(name, raw, archive.offset)
        # Files last: tar may write a file that is named twice as a link to itself.
        members = {posixpath.normpath(member.name): member for member in sorted(archive, key=lambda m: m.isfile())}
    held = {video: _behind_links(name, member, members) for video, member in named.items()}
    return {video: Shard(name, member.offset_data, member.size) for video, member in held.items()}, texts


def _check_end(name: str, raw: IO[bytes], end: int) -> None:
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
    """The member that has the bytes. Raises InputError for a link that leads to none, and a file without its holes."""
    found: tarfile.TarInfo | None = member
    for _ in range(MOST_LINKS):
        if found is None or found.isfile():
            break
        folder = posixpath.dirname(found.name) if found.issym() else ""
        found = members.get(posixpath.normpath(posixpath.join(folder, found.linkname)))
    if found is None or not found.isfile():
        raise InputError(f"{shard}: {member.name} is a link to {member.linkname}, which is no file of this shard")
    if found.issparse():
        raise InputError(f"{shard}: {found.name} is stored without its holes (tar -S), expected all of its bytes")
    return found


def _stem(member: str) -> str:
    return posixpath.splitext(PurePosixPath(member))[0]


def _key(member: str) -> str:
    """Up to the first dot of the name."""
    folder, name = posixpath.split(PurePosixPath(member))
    return posixpath.join(folder, name.split(".")[0] or name)


def _prompt(place: str, text: str, suffix: str) -> str | None:
    if suffix == ".txt":
        return text.strip()
    found = json.loads(text)
    key = next((key for key in PROMPTS if found.get(key)), None) if isinstance(found, dict) else None
    return text_cell(place, key, found[key]) if key else None
