"""The clips of a training: who is who by content, and what the model sees of each, decoded once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.fft import dctn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dover_eval import __version__
from dover_eval.config import DOVERConfig
from dover_eval.hashing import file_sha256
from dover_eval.training.cache import TensorCache
from dover_eval.video.decode import VideoError, decode_clip
from dover_eval.video.sample import prepare_clip

SAMPLING = ("num_frames", "frame_size", "windows", "views", "mean", "std")  # what decides a model's input
LOOKS_BYTES = 1 << 28
LOOK_FRAMES, LOOK_SIDE, LOOK_KEPT = 4, 32, 8
LOOK_BITS = LOOK_FRAMES * LOOK_KEPT**2
FLAT = 2.0  # grey levels of standard deviation, under which a frame looks like any other
# A clip may be decoded otherwise by another version of these, or refused.
DECODERS = (__version__, av.__version__)


@dataclass(frozen=True)
class ClipIdentity:
    """A clip's content: its file's sha256, and how it looks, 256 bits in hexadecimal; None where it is too flat."""

    sha256: str
    look: str | None


class ClipStore:
    """Decodes clips as the model of `config` reads them, and keeps what it decoded in a bounded `TensorCache`."""

    def __init__(self, config: DOVERConfig, folder: str | Path, limit: int) -> None:
        self.config = config
        sampling = {name: value for name, value in asdict(config).items() if name in SAMPLING}
        self._sampling = json.dumps([DECODERS, sampling], sort_keys=True)
        self._clips = TensorCache(Path(folder) / "clips", limit)
        self._looks = TensorCache(Path(folder) / "looks", LOOKS_BYTES)

    def load(self, path: str, sha256: str) -> Tensor:
        """The model's input for the file `path`. Raises VideoError, also where its content is not of this `sha256`."""

        def make() -> dict[str, Tensor]:
            frames, _ = self._decode(path)
            if file_sha256(path) != sha256:  # or its frames would be another file's, here and for every other run
                raise VideoError(f"{path} has changed: expected the content of sha256 {sha256[:12]}...")
            return {"frames": frames}

        return self._clips.get(self._key(sha256), make)["frames"]

    def identify(self, path: str) -> ClipIdentity:
        """The file's identity; an unseen file is decoded and cached. Raises VideoError."""
        sha256 = file_sha256(path)
        decoded: list[Tensor] = []

        def make() -> dict[str, Tensor]:
            frames, look = self._decode(path)
            decoded.append(frames)
            return {"look": look}

        look = self._looks.get(self._key(sha256), make)["look"]
        if decoded:
            self._clips.get(self._key(sha256), lambda: {"frames": decoded[0]})
        return ClipIdentity(sha256, look.numpy().tobytes().hex() or None)

    def _decode(self, path: str) -> tuple[Tensor, Tensor]:
        """The model's input, and the look (32,) uint8, or (0,) of a flat clip."""
        frames = decode_clip(path, self.config.num_frames, self.config.windows).frames
        look = frames_look(frames)
        return prepare_clip(frames, self.config), torch.from_numpy(np.frombuffer(look, np.uint8).copy())

    def _key(self, sha256: str) -> str:
        return hashlib.sha256(f"{sha256}{self._sampling}".encode()).hexdigest()


def survey(paths: Sequence[str], store: ClipStore, workers: int) -> tuple[dict[str, ClipIdentity], dict[str, str]]:
    """Every clip's identity by its path, and the reasons of those that cannot be decoded. Fills the cache as well."""
    identities, errors = {}, {}
    loader = DataLoader(_Survey(paths, store), batch_size=None, num_workers=workers)
    for path, (identity, error) in zip(paths, loader, strict=True):
        if identity is None:
            errors[path] = error
        else:
            identities[path] = identity
    return identities, errors


class _Survey(Dataset):
    def __init__(self, paths: Sequence[str], store: ClipStore) -> None:
        self.paths, self.store = paths, store

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[ClipIdentity | None, str]:
        try:
            return self.store.identify(self.paths[index]), ""
        except (VideoError, OSError) as error:
            return None, str(error)


def frames_look(frames: Tensor) -> bytes:
    """A perceptual hash of frames (T,3,H,W) uint8: 32 bytes, or none where a frame is flat.

    Of four frames, evenly apart, the signs about the median of the 8x8 lowest frequencies of a 32x32 grey picture
    (pHash; Zauner, 2010). Re-encoding and resizing change a few of the 256 bits, another clip about half.
    """
    at = [int((i + 0.5) * len(frames) / LOOK_FRAMES) for i in range(LOOK_FRAMES)]
    grey = frames[at].float().mean(dim=1, keepdim=True)
    small = F.interpolate(grey, (LOOK_SIDE, LOOK_SIDE), mode="bilinear", antialias=True)[:, 0].numpy()
    if (small.std(axis=(1, 2)) < FLAT).any():
        return b""
    low = dctn(small.astype(np.float64), axes=(1, 2))[:, :LOOK_KEPT, :LOOK_KEPT].reshape(LOOK_FRAMES, -1)
    return np.packbits(low > np.median(low, axis=1, keepdims=True)).tobytes()


def look_alikes(first: Sequence[ClipIdentity], second: Sequence[ClipIdentity], share: float) -> list[tuple[int, int]]:
    """(i, j) of `first` and `second` whose looks differ in at most `share` of their bits."""
    if share <= 0:
        return []
    rows, looks = _looks(first)
    columns, others = _looks(second)
    found = []
    for row, look in zip(rows, looks, strict=True):  # one against all: memory stays in proportion to their number
        bits = np.bitwise_count(look ^ others).sum(axis=1)
        found += [(row, int(columns[j])) for j in np.flatnonzero(bits <= share * LOOK_BITS)]
    return found


def _looks(identities: Sequence[ClipIdentity]) -> tuple[list[int], NDArray[Any]]:
    rows = [i for i, identity in enumerate(identities) if identity.look]
    looks = [np.frombuffer(bytes.fromhex(str(identities[i].look)), np.uint64) for i in rows]
    return rows, np.stack(looks) if looks else np.zeros((0, LOOK_BITS // 64), np.uint64)
