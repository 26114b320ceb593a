"""Rapidata's text-to-video preferences (Apache-2.0): pairs of many models, thousands of votes, by weighted share.

Verified in public code that reads the sets of veo3, pika2.2 and wan2.1: `data/train-*.parquet` with `prompt`,
`file_name1`, `file_name2`, and `weighted_results1_...` and `weighted_results2_...` of Preference, Coherence and
Alignment; clips of these names under `videos/`. Verified on its card's pages: the licence, and that the first set has
its clips under `Videos/`. Not verified: that the first set, and those of other models, have the same columns; another
layout is refused with what was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from examples.recipes.tables import Preference, from_votes, parquet_rows, write_pairs

REPOSITORIES = (
    "Rapidata/text-2-video-human-preferences-veo3",
    "Rapidata/text-2-video-human-preferences-pika2.2",
    "Rapidata/text-2-video-human-preferences-wan2.1",
)
# "Which do you prefer", "which is more coherent", "which fits the description better".
ASPECTS = {"Preference": "Overall", "Coherence": "Temporal", "Alignment": "Alignment"}
VOTES = [f"weighted_results{side}_{question}" for question in ASPECTS for side in (1, 2)]


def convert(source: Path, out: Path) -> int:
    """`source` with a folder for each repository to `out/pairs.csv`, clips named from `source`."""
    return write_pairs(out / "pairs.csv", _preferences(source))


def _preferences(source: Path) -> Iterator[Preference | None]:
    for repository in sorted(path for path in source.iterdir() if path.is_dir()):
        places = {file.name: file.relative_to(source).as_posix() for file in repository.rglob("*.mp4")}
        clip = lambda name, places=places: places.get(Path(name).name, name)
        for row in parquet_rows(repository, "data/train-*.parquet", ["prompt", "file_name1", "file_name2", *VOTES]):
            a, b = clip(row["file_name1"]), clip(row["file_name2"])
            for question, aspect in ASPECTS.items():
                votes = (row[f"weighted_results{side}_{question}"] for side in (1, 2))
                for_a, for_b = (0.0 if vote is None else float(vote) for vote in votes)
                yield from_votes(row["prompt"], a, b, aspect, for_a, for_b)
