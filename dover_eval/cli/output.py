"""What several commands print, and write, in one way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dover_eval.cli.exits import writing
from dover_eval.replacing import replacing

if TYPE_CHECKING:
    from rich.table import Table


def plain_table(**options: Any) -> Table:
    """A table of rich without lines at its sides; its options are rich's."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **options)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """The file appears whole or not at all; one that cannot be written ends the command."""
    with writing(path), replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
