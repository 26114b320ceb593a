"""Whether a file ends before it should, for containers that do not count their frames but mark or tell their end."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

#: Identifiers of Matroska's elements: all of a file but its header lies in one segment.
SEGMENT = b"\x18\x53\x80\x67"
#: What begins the file properties of ASF, which WMV is in.
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
#: Bytes in which the headers of ASF and FLV are looked for.
HEADER = 1 << 16
#: Elements or boxes, one behind the other, that are looked at: those of hours of video, where millions of empty ones
#: would take minutes. Whether a file of more is cut is not told.
MOST = 100_000
#: The boxes of MP4 that have frames, or tell where they are.
MEDIA = {b"moov", b"moof", b"mdat"}


def lost_end(path: Path, container: str) -> str | None:
    """What tells that the file is cut; None where nothing does. `container` is FFmpeg's name of its format."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if "matroska" in container:
            return _lost_matroska(file, size)
        if "mp4" in container:
            told = _mp4_bytes(file, size)
            return f"found {size} of {told} bytes" if size < told else None
        if container == "gif":
            return None if _gif_ends(file) else "a GIF without its end"
        if container in ("asf", "flv"):
            told = (_asf_bytes if container == "asf" else _flv_bytes)(file.read(HEADER))
            return f"found {size} of {told} bytes" if size < told else None
    return None


def _lost_matroska(file: BinaryIO, size: int) -> str | None:
    """By its segment, which has the sound too; nothing where the writer left its length open, as for a live stream. The
    duration is no measure: it counts what the last frame is held for."""
    end = 0
    for _ in range(MOST):
        place = file.tell()
        if end and place >= end:
            return None
        if not (identifier := _number(file)[0]):
            return f"zeros from byte {place} of {size}" if end else None
        length = _number(file)[1]
        if length is None:
            return None
        if identifier != SEGMENT:  # of the file, or of its segment
            file.seek(length, 1)
        elif size < (end := file.tell() + length):
            return f"found {size} of {end} bytes"
    return None


def _mp4_bytes(file: BinaryIO, size: int) -> int:
    """How long a file of `size` bytes must be for its last box: MP4, MOV and their kin are boxes, and one in fragments,
    which counts no frames in front, is cut in one of them, unless it is cut between two."""
    end = 0
    for _ in range(MOST):
        if size - end < 8:
            break
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


def _gif_ends(file: BinaryIO) -> bool:
    """Whether its blocks go on to the one that ends it; what follows that is nobody's business."""
    file.seek(10)
    file.seek(2 + _colours(file.read(1)), 1)
    while (kind := file.read(1)) in (b"\x21", b"\x2c", b"\0"):
        if kind == b"\0":  # some writers put one more between blocks
            continue
        if kind == b"\x21":  # an extension, with its label
            file.seek(1, 1)
        else:  # an image: its place, its colours, and the least size of a code
            file.seek(8, 1)
            file.seek(_colours(file.read(1)) + 1, 1)
        while length := file.read(1):
            if length == b"\0":
                break
            file.seek(length[0], 1)
        else:
            return False
    return kind == b"\x3b"


def _colours(flags: bytes) -> int:
    """Bytes of the table of colours that a GIF's flags tell of."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _asf_bytes(header: bytes) -> int:
    """How long a WMV is, by its file properties; 0 where they are not there, or tell of a broadcast."""
    place = header.find(ASF_PROPERTIES)
    if place < 0 or len(header) < place + 92 or header[place + 88] & 1:
        return 0
    return int.from_bytes(header[place + 40 : place + 48], "little")


def _flv_bytes(header: bytes) -> int:
    """How long an FLV is, by the `filesize` of its metadata; 0 where its writer left that out."""
    place = header.find(b"filesize\0") + len(b"filesize\0")
    if place < 9 or len(header) < place + 8:
        return 0
    (size,) = struct.unpack_from(">d", header, place)
    return int(size) if 0 < size < math.inf else 0


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
