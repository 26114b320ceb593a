"""VideoFeedback, of VideoScore (TIGER-Lab): 37.6 thousand generated clips with ratings from 1 (bad) to 4 (perfect).

Verified on its card: `annotated/train-*.parquet` with `id`, `text prompt`, `video link` and whole numbers for `visual
quality`, `temporal consistency`, `dynamic degree`, `text-to-video alignment` and `factual consistency`. Verified in
public code: links are to `hexuan21/VideoFeedback-videos-mp4`, `.../resolve/main/p/p110924.mp4`. The card's stored
versions say Apache-2.0 and others MIT: look at the one that you download. Not verified: that every link has that form;
another is refused. Dynamic degree and factual consistency have no score of ours and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from examples.recipes.tables import SchemaError, parquet_rows, write_ratings

REPOSITORIES = ("TIGER-Lab/VideoFeedback", "hexuan21/VideoFeedback-videos-mp4")
ASPECTS = {
    "visual quality": "Traditional",
    "text-to-video alignment": "Alignment",
    "temporal consistency": "Temporal",
}
MARK = "/resolve/main/"


def convert(source: Path, out: Path) -> int:
    """`source` with a folder for each repository to `out/ratings.csv`, on 1-4, clips named from the second one."""
    return write_ratings(out / "ratings.csv", _ratings(source / "VideoFeedback"))


def _ratings(repository: Path) -> Iterator[tuple[str, str, dict[str, float]]]:
    for row in parquet_rows(repository, "annotated/train-*.parquet", ["text prompt", "video link", *ASPECTS]):
        _, mark, name = row["video link"].partition(MARK)
        if not mark:
            raise SchemaError(f"video link: expected .../resolve/main/FILE, found {row['video link']!r}")
        yield name, row["text prompt"], {ours: row[theirs] for theirs, ours in ASPECTS.items()}
