"""Whether a file ends before it should, for containers that do not count their frames but mark or tell their end."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

#: Identifiers of Matroska's elements: all of a file but its header lies in one segment.
SEGMENT = b"\x18\x53\x80\x67"
#: The boxes of MP4 that have frames, or tell where they are.
MEDIA = {b"moov", b"moof", b"mdat"}


def lost_end(path: Path, container: str) -> str | None:
    """What tells that the file is cut; None where nothing does. `container` is FFmpeg's name of its format."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if "matroska" in container:
            told = _matroska_bytes(file)
            return f"found {size} of {told} bytes" if told is not None and size < told else None
        if "mp4" in container:
            told = _mp4_bytes(file, size)
            return f"found {size} of {told} bytes" if size < told else None
        if container == "gif":
            file.seek(max(size - 64, 0))
            return None if file.read().rstrip(b"\0").endswith(b";") else "a GIF without its end"
    return None


def _matroska_bytes(file: BinaryIO) -> int | None:
    """How long a Matroska or WebM file is, sound included, by its segment; None where the writer left that open, as
    for a live stream. The duration is no measure: it counts what the last frame is held for."""
    while identifier := _number(file)[0]:
        size = _number(file)[1]
        if identifier == SEGMENT:
            return None if size is None else file.tell() + size
        if size is None:
            return None
        file.seek(size, 1)
    return None


def _mp4_bytes(file: BinaryIO, size: int) -> int:
    """How long a file of `size` bytes must be for its last box: MP4, MOV and their kin are boxes, and one in fragments,
    which counts no frames in front, is cut in one of them, unless it is cut between two."""
    end = 0
    while size - end >= 8:
        file.seek(end)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:  # the real one follows
            length = int.from_bytes(header[8:16], "big")
        if length < 8 or not kind.isalnum():  # to the end of the file, or no box: something was appended
            return size
        end += length
        if end > size:
            return end if kind in MEDIA else size
    return size


def _number(file: BinaryIO) -> tuple[bytes, int | None]:
    """The next number of a variable length: its bytes, which are an identifier, and its value; none where all of its
    bits are set."""
    first = file.read(1)
    if not first or not first[0]:
        return b"", None
    length = 9 - first[0].bit_length()
    found = first + file.read(length - 1)
    unknown = (1 << 7 * length) - 1
    value = int.from_bytes(found, "big") & unknown
    return found, None if value == unknown else value
