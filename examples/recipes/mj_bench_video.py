"""MJ-Bench-Video (MIT): pairs with verdicts by category, from "Video 1 better" over "Same" to "Video 2 better".

Verified in its authors' own `test.json` and loader: a JSON array of objects with `caption`, `video_0_path`,
`video_1_path`, `category_preference`, `overall_preference` and `discard`; "Video 1" is `video_0_path`. Verified on its
card: the licence, `train.json`, and that the clips are under `videos/`. Not verified: that `train.json` has no further
verdicts; an unknown one is refused. Safety and Bias have no score of ours and are left out. Some of its prompts are
violent or sexual, as it tests for safety as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from examples.recipes.tables import Preference, SchemaError, check_columns, json_rows, write_pairs

REPOSITORIES = ("MJ-Bench/MJ-BENCH-VIDEO",)
ASPECTS = {"Alignment": "Alignment", "Fineness": "Traditional", "Coherence & Consistency": "Temporal"}
LABELS = {"Video 1 better": "A", "Video 2 better": "B", "Same": "tie", "Hard to judge": None}
COLUMNS = ("caption", "video_0_path", "video_1_path", "category_preference", "overall_preference", "discard")


def convert(source: Path, out: Path) -> int:
    """`source` with the repository's folder to `out/pairs.csv`, clips named from its `videos`."""
    return write_pairs(out / "pairs.csv", _preferences(source / "MJ-BENCH-VIDEO" / "train.json"))


def _preferences(file: Path) -> Iterator[Preference | None]:
    for row in json_rows(file, COLUMNS):
        if row["discard"]:
            continue
        categories = row["category_preference"]
        check_columns(file, categories, ASPECTS)
        verdicts = {ours: categories[theirs] for theirs, ours in ASPECTS.items()}
        for aspect, verdict in (verdicts | {"Overall": row["overall_preference"]}).items():
            if verdict not in LABELS:
                raise SchemaError(f"{file}: expected one of {', '.join(LABELS)}, found {verdict!r}")
            if label := LABELS[verdict]:
                yield Preference(row["caption"], row["video_0_path"], row["video_1_path"], aspect, label)
