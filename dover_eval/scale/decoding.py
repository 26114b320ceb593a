"""Decoding beside the model: worker processes that hand uint8 frames over in shared memory, in the input's order.

Processes and shared memory are torch's DataLoader, which every torch has, rather than a pool of our own, DALI or
torchcodec (decoders on a GPU, of one vendor). It is bounded: each worker decodes at most `AHEAD` clips ahead.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dover_eval.files import NO_ROOM, Clip, FileError, identity, local_file
from dover_eval.scale.runlog import RunError
from dover_eval.video.decode import VideoError

AHEAD = 2  # clips a worker
# Clips of one worker, in a row, that shared memory does not take: it is too small then, and they are not too large.
MISFITS = 8
# What a DataLoader raises, or what its pipes do, when a worker is gone.
WORKER_LOST = (RuntimeError, ConnectionError, EOFError, FileNotFoundError)

Decode = Callable[[Path], Tensor]


class Decoded(NamedTuple):
    """A clip's frames, uint8 (T,3,H,W), or why there are none; and the identity of its file."""

    frames: Tensor | None
    error: str | None
    file: str | None


def decode_file(clip: Clip, decode: Decode) -> Decoded:
    """The frames of one clip, wherever it lies; a failure is a reason, with the clip's own name.

    Raises RunError where it is this machine that fails, which has no room for a copy.
    """
    file = None
    try:
        file = identity(clip)
        with local_file(clip) as path:
            try:
                frames = decode(path)
            except VideoError as error:
                return Decoded(None, str(error).replace(str(path), clip.video), file)
        if identity(clip) != file:
            return Decoded(None, f"{clip.video}: it changed while it was read", file)
        return Decoded(frames, None, file)
    except FileError as error:
        return Decoded(None, str(error), file)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise RunError(
                f"{clip.video}: cannot be copied to {tempfile.gettempdir()} ({error.strerror}): make room, or set "
                "TMPDIR to another folder, and go on with --resume"
            ) from error
        return Decoded(None, f"{clip.video}: cannot be read ({error.strerror or error})", file)


def known_identity(clip: Clip) -> str | None:
    """`identity`; None also for a clip whose store cannot be asked, which may be why it failed."""
    try:
        return identity(clip)
    except FileError:
        return None


def decode_ahead(
    clips: Sequence[Clip], order: Sequence[int], decode: Decode, workers: int, *, pin: bool = False
) -> Iterator[Decoded]:
    """`clips[i]` for each i of `order`, decoded by `workers` processes; with `pin` where a GPU can fetch them.

    A file that kills its decoder, or makes the system kill it, becomes a row with that reason: the clips that were
    under way are decoded again one by one, each in a process of its own.

    So does one whose frames do not fit into the memory that processes share.

    Raises RunError where those of `MISFITS` clips on end do not, or copies onto this machine's disk.
    """
    at = 0
    while at < len(order):
        try:
            with _loading(clips, order[at:], decode, workers, pin) as loaded:
                for found in loaded:
                    if isinstance(found, RunError):
                        raise found
                    at += 1
                    yield found
        except WORKER_LOST as error:
            if not _is_lost(error):
                raise
        for index in order[at : at + workers * AHEAD]:  # none, unless a worker was lost
            at += 1
            yield decode_apart(clips, index, decode)


def decode_apart(clips: Sequence[Clip], index: int, decode: Decode) -> Decoded:
    """One clip, decoded in a process that nothing else depends on."""
    try:
        with _loading(clips, [index], decode, 1, pin=False) as loaded:
            found = next(loaded)
    except WORKER_LOST as error:
        if not _is_lost(error):
            raise
        clip = clips[index]
        return Decoded(None, f"{clip.video}: it ended the process that decoded it ({error})", known_identity(clip))
    if isinstance(found, RunError):
        raise found
    return found


def _is_lost(error: Exception) -> bool:
    """Whether it is a worker that ended, and not what its code raised."""
    return not isinstance(error, RuntimeError) or str(error).startswith("DataLoader worker (")


@contextmanager
def _loading(
    clips: Sequence[Clip], order: Sequence[int], decode: Decode, workers: int, pin: bool
) -> Iterator[Iterator[Decoded | RunError]]:
    loader: Any = DataLoader(
        _Files(clips, decode),
        sampler=order,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        pin_memory=pin,
        # Forked workers share the list of clips and need no second import of torch.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    loaded = iter(loader)
    try:
        yield loaded
    finally:
        # A worker's exit status does not matter once its clips are taken or abandoned; left to the garbage collector, a
        # worker that ends badly would be reported there, in the middle of something else.
        with suppress(RuntimeError):
            loaded._shutdown_workers()


def _as_it_is(found: Any) -> Any:
    return found


class _Files(Dataset[Decoded | RunError]):
    def __init__(self, clips: Sequence[Clip], decode: Decode) -> None:
        self.clips, self.decode = clips, decode
        self.misfits = 0

    def __getitem__(self, index: int) -> Decoded | RunError:
        try:
            found = decode_file(self.clips[index], self.decode)
        except RunError as error:
            return error
        if found.frames is None:
            return found
        try:
            found.frames.share_memory_()
        except RuntimeError as error:
            self.misfits += 1
            reason = (
                f"{self.clips[index].video}: {found.frames.numel() / 1e6:.0f} MB of frames do not fit into shared "
                f"memory ({error}); take fewer --workers, or make /dev/shm larger (docker run --shm-size)"
            )
            if self.misfits == MISFITS:
                return RunError(f"{reason}; nor did the clips before it: go on with --resume --retry-failed")
            return Decoded(None, reason, found.file)
        self.misfits = 0
        return found
