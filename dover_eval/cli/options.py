"""Options that several commands have, with the same words in each one's help."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str | None, typer.Option(help="A checkpoint folder or hub repository; by default the embedded one.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")]
CalibrationFile = Annotated[Path | None, typer.Option(help="What `dover-eval calibrate` wrote.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Clips that go through the model together; by default 8 on a GPU, else 1.")
]
Prompts = Annotated[
    Path | None, typer.Option(help="A .csv, .jsonl, .json or .parquet with the columns video_name and Prompt.")
]
