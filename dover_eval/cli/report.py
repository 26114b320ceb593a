"""`dover-eval report`: a results file as one page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dover_eval.cli.exits import check_file, check_names, needs, usage, writing
from dover_eval.cli.output import say
from dover_eval.cli.progress import progress_bar
from dover_eval.wording import plural

#: Suffixes of a page.
SUFFIXES = (".html", ".htm")


def report(
    results: Annotated[
        Path, typer.Argument(help="What `dover-eval score --output` wrote: .parquet, .jsonl, .csv, .json.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, one self-contained HTML file.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Where the clips lie, if their names in the file are relative."
        ),
    ] = None,
    clips: Annotated[int, typer.Option(min=0, help="Worst and best clips to show playing, by each score.")] = 6,
) -> None:
    """Make a page of a results file: distributions, ranking, worst and best clips, errors.

    Exit status: 0 when the page was written, 2 when the results cannot be used.
    """
    check_file("--output", output, SUFFIXES)
    check_names(results, folder)
    needs("report", "jinja2", "vl_convert")
    from dover_eval.looking.page import write_page
    from dover_eval.looking.report import report_page
    from dover_eval.results import read_results
    from dover_eval.tables import TableError

    try:
        table = read_results(results)
    except TableError as error:
        usage(error)
    with progress_bar("reading clips") as bar:
        page = report_page(table, clips=clips, folder=folder, progress=bar.reach)
    with writing(output):
        write_page(page, output)
    failed = len(table) - int(table.scored.sum())
    size = f"{output.stat().st_size / 1e6:.1f} MB"
    say(f"{output}: {plural(len(table), 'clip')}, {failed} of them failed; {size}", err=True)
