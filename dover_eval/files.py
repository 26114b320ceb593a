"""One clip's bytes, wherever they lie: a path, a URL that fsspec reaches, or a member of a tar shard."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from dover_eval.tables import TableError
from dover_eval.wording import one_line

# What the videos of a folder or a shard end in. All are read; what else FFmpeg reads is scored where it is named.
VIDEO_SUFFIXES = frozenset(
    (
        *(".264", ".265", ".3g2", ".3gp", ".apng", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264"),
        *(".h265", ".hevc", ".ivf", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
        *(".mxf", ".nut", ".ogv", ".qt", ".rm", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m"),
    )
)
# Metadata keys that change with a file's content, most reliable first.
REVISIONS = (
    *("ETag", "etag", "e_tag", "blob_id", "checksum", "md5", "Content-MD5", "Digest"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "created"),
)
WEB = ("http://", "https://")
# What a row may name: files, stores and archives. Others of fsspec run templates, log in elsewhere or start processes.
PROTOCOLS = (
    *("file", "local", "memory", "tar", "zip"),
    *("http", "https", "hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"),
)
# Errors of this machine, not of a clip: no room for a copy, or no file left to open.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


class InputError(TableError):
    """Inputs that cannot be scored as they are; the message says what was found and what was expected.

    A `TableError`, for what a user names is a table or stands in the place of one.
    """


class FileError(InputError):
    """A file that cannot be reached; the message names it and says why."""


class Shard(NamedTuple):
    """Where in a tar file a clip lies, in bytes."""

    path: str
    offset: int
    size: int


class Clip(NamedTuple):
    """A row to come. `video` is a path, a URL, or "tar://member::shard", as fsspec calls a member of a tar file.

    folder: where relative paths start; empty for the current folder.
    """

    video: str
    prompt: str
    shard: Shard | None = None
    folder: str = ""

    @property
    def place(self) -> str:
        """The path or the URL of the file that holds it."""
        name = self.shard.path if self.shard else self.video
        inside, colons, file = name.rpartition("::") if is_url(name) else ("", "", name)
        return name if is_url(file) else f"{inside}{colons}{os.path.join(self.folder, file)}"

    @property
    def is_local(self) -> bool:
        return not is_url(self.place)


def is_url(name: str) -> bool:
    return "://" in name


def own_path(video: str) -> str:
    """A clip's name; where it is a member of an archive, without what that is called; without a web address' query."""
    if not is_url(video):
        return video
    name = video.split("::")[0]
    return re.split("[?#]", name, maxsplit=1)[0] if name.startswith(WEB) else name


def composed(name: str) -> str:
    """A name as names are compared: in Unicode's composed form. Some file systems and archives decompose accents."""
    return unicodedata.normalize("NFC", name)


def locate(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and what that calls it: a member's name alone, in an archive.

    Raises FileError for a protocol that is none of `PROTOCOLS`, in any part of a chain, where its package is missing,
    and where its address means nothing.
    """
    import fsspec

    for part in url.split("::"):
        protocol, colons, _ = part.partition("://")
        if (colons or re.fullmatch(r"[\w+-]+", part)) and protocol not in PROTOCOLS:  # fsspec takes "zip" for zip://
            raise FileError(f"{url}: expected a protocol of {', '.join(PROTOCOLS)}, found {protocol!r}")
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise FileError(f"{url}: {error}: pip install 'dover-eval[remote]'") from error
    except Exception as error:  # each file system has its own
        raise FileError(f"{url}: {one_line(error)}") from error


@contextmanager
def reaching(name: str) -> Iterator[None]:
    """Around what reads a file or lists a folder: raises FileError for what a file system raises."""
    try:
        yield
    except TableError:
        raise
    except Exception as error:  # each file system has its own
        kind = "cannot be reached" if is_url(name) else "cannot be read"
        raise FileError(f"{name}: {kind} ({one_line(error)})") from error


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """A path or a URL, open; raises as `reaching` does."""
    with reaching(name):
        files, path = locate(name) if is_url(name) else (None, name)
        with files.open(path) if files else open(path, "rb") as raw:
            yield raw


def batch_span(batch: int, batch_size: int, count: int) -> range:
    """Which of `count` clips are in a batch; the last one may be smaller."""
    return range(batch * batch_size, min((batch + 1) * batch_size, count))


def identity(clip: Clip) -> str | None:
    """What changes when the file does, read without its bytes; None for a file that is not there.

    Size and modification time of a local file; size and the store's ETag, checksum or date else. A member of a shard
    has its place in it, too.
    """
    if not clip.is_local:
        try:
            files, path = locate(clip.place)
            info = files.info(path)
        except FileNotFoundError as error:
            # fsspec takes whatever a web server answers for a file that is not there.
            answer = error.__cause__ if clip.place.split("::")[-1].startswith(WEB) else None
            if answer is None or isinstance(answer, FileNotFoundError) or getattr(answer, "status", 0) in (404, 410):
                return None
            raise FileError(f"{clip.video}: cannot be reached ({one_line(answer)})") from error
        except FileError:
            raise
        except Exception as error:
            raise FileError(f"{clip.video}: cannot be reached ({one_line(error)})") from error
        revision = next((str(info[key]) for key in REVISIONS if info.get(key) is not None), "")
        found = f"{info.get('size')} {revision}"
    else:
        try:
            status = os.stat(clip.place)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise FileError(f"{clip.video}: cannot be read ({error.strerror})") from error
        except ValueError as error:  # a name with a NUL
            raise FileError(f"{clip.video!r}: cannot be read ({error})") from error
        found = f"{status.st_size} {status.st_mtime_ns}"
    return f"{found} {clip.shard.offset}+{clip.shard.size}" if clip.shard else found


@contextmanager
def local_file(clip: Clip) -> Iterator[Path]:
    """The clip as a file of this machine: itself, or a copy for as long as it is used.

    Raises FileError, and OSError with one of `NO_ROOM` where this machine cannot hold a copy.
    """
    if clip.shard is None and clip.is_local:
        yield Path(clip.place)
        return
    suffix = PurePosixPath(own_path(clip.video)).suffix.replace("\0", "")  # which no file's name can hold
    with tempfile.NamedTemporaryFile(prefix="dover-eval-", suffix=suffix) as copy:
        try:
            if clip.shard is not None and clip.is_local:
                with open(clip.place, "rb") as shard:
                    shard.seek(clip.shard.offset)
                    copy.write(shard.read(clip.shard.size))
            elif clip.shard is not None:
                files, path = locate(clip.place)
                start = clip.shard.offset
                copy.write(files.cat_file(path, start=start, end=start + clip.shard.size))
            else:
                files, path = locate(clip.place)
                files.get_file(path, copy.name)
            copy.flush()
        except FileError:
            raise
        except FileNotFoundError as error:
            raise FileError(f"{clip.video}: no such file") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            raise FileError(f"{clip.video}: cannot be fetched ({one_line(error)})") from error
        size = os.path.getsize(copy.name)
        if clip.shard is not None and size != clip.shard.size:
            why = "the shard ends before it does" if size < clip.shard.size else "its server ignores byte ranges"
            raise FileError(f"{clip.video}: expected {clip.shard.size} bytes, found {size}: {why}")
        yield Path(copy.name)
