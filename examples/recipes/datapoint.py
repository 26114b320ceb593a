"""Datapoint AI's preferences on human motion (CC-BY-4.0): pairs of four models, by share of the annotators.

Verified on its cards: the licence, `data/train-*.parquet`, and the columns `prompt`, `video1`, `video2`, and
`weighted_results1_...` and `weighted_results2_...` of Coherence, Aesthetic and Prompt_Adherence. The first set holds
GIF previews and its second version embedded MP4. Not verified: how Parquet holds them; `{bytes, path}`, as the hub
writes media, and plain bytes are read, anything else is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.recipes.tables import Preference, SchemaError, from_votes, parquet_rows, write_pairs

REPOSITORIES = ("datapointai/text-2-video-human-preferences-motion",)
ASPECTS = {"Coherence": "Temporal", "Aesthetic": "Aesthetic", "Prompt_Adherence": "Alignment"}
VOTES = [f"weighted_results{side}_{question}" for question in ASPECTS for side in (1, 2)]


def convert(source: Path, out: Path) -> int:
    """`source` with a folder for each repository to `out/pairs.csv` and the clips in `out/videos`."""
    (out / "videos").mkdir(exist_ok=True)
    return write_pairs(out / "pairs.csv", _preferences(source, out / "videos"))


def _preferences(source: Path, videos: Path) -> Iterator[Preference | None]:
    for repository in sorted(path for path in source.iterdir() if path.is_dir()):
        for row in parquet_rows(repository, "data/train-*.parquet", ["prompt", "video1", "video2", *VOTES]):
            a, b = (_write_clip(row[name], name, videos) for name in ("video1", "video2"))
            for question, aspect in ASPECTS.items():
                votes = (row[f"weighted_results{side}_{question}"] for side in (1, 2))
                for_a, for_b = (0.0 if vote is None else float(vote) for vote in votes)
                yield from_votes(row["prompt"], a, b, aspect, for_a, for_b)


def _write_clip(media: Any, column: str, videos: Path) -> str:
    """The clip as a file named by its bytes, so that one clip in many pairs is one file; its name."""
    data = media.get("bytes") if isinstance(media, dict) else media
    if not isinstance(data, bytes):
        raise SchemaError(f"{column}: expected a clip's bytes, found {type(data).__name__} in {type(media).__name__}")
    suffix = ".gif" if data.startswith(b"GIF8") else ".mp4" if data[4:8] == b"ftyp" else None
    if suffix is None:
        raise SchemaError(f"{column}: expected a GIF or an MP4, found bytes that begin with {data[:8]!r}")
    name = hashlib.sha256(data).hexdigest()[:16] + suffix
    if not (videos / name).exists():
        (videos / name).write_bytes(data)
    return name
