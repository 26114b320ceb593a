"""Tables and settings of small runs, as files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.small import CLIPS, HEARTS, MODEL, PAIR_COLUMNS, RATING_COLUMNS, STAR_PAIRS

WriteTable = Callable[..., Path]
WriteSettings = Callable[..., Path]


@pytest.fixture
def write_table(tmp_path: Path) -> WriteTable:
    """Writes rows under columns, by default the ratings of the hearts; CSV or Parquet by the name."""

    def write(
        name: str = "ratings.csv", rows: Sequence[Sequence[Any]] = HEARTS, columns: Sequence[str] = RATING_COLUMNS
    ) -> Path:
        path = tmp_path / name
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet

            cells = {c: [row[i] if row[i] != "" else None for row in rows] for i, c in enumerate(columns)}
            pa.parquet.write_table(pa.table(cells), path)
            return path
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])
        return path

    return write


@pytest.fixture(scope="session")
def clip_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that one test has decoded, for the next."""
    return tmp_path_factory.mktemp("clips")


@pytest.fixture
def write_settings(tmp_path: Path, write_table: WriteTable, clip_cache: Path) -> WriteSettings:
    """Writes a run that learns ratings of hearts and is judged on pairs of stars; `data__workers=2` changes a key."""

    def write(name: str = "run.yaml", **changes: Any) -> Path:
        write_table()
        write_table("pairs.csv", STAR_PAIRS, PAIR_COLUMNS)
        settings: dict[str, Any] = {
            "output": "model",
            "model": dict(MODEL),
            "data": {
                "train": [{"table": "ratings.csv", "videos": str(CLIPS)}],
                "validation": [{"table": "pairs.csv", "videos": str(CLIPS), "kind": "pairs"}],
                "cache": str(clip_cache),
                "workers": 0,
            },
            "training": {"steps": 4, "batch_size": 3, "learning_rate": 1e-3, "evaluate_every": 2, "log_every": 2},
            "card": {"licence": "apache-2.0"},
        }
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = settings
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        path = tmp_path / name
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path

    return write
