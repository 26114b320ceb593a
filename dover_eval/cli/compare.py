"""`dover-eval compare`: two models over the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dover_eval.cli.exits import check_file, check_names, needs, usage, writing
from dover_eval.cli.output import plain_table, said
from dover_eval.cli.progress import progress_bar
from dover_eval.cli.report import SUFFIXES

if TYPE_CHECKING:
    from dover_eval.evaluation.compare import Comparison


def compare(
    a: Annotated[Path, typer.Argument(help="The baseline results: .parquet, .jsonl, .csv, .json.")],
    b: Annotated[Path, typer.Argument(help="Another generator's results, on the same prompts and by the same model.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a page as well: .html.")] = None,
    folder_a: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where A's clips lie, if their names are relative."),
    ] = None,
    folder_b: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where B's clips lie, if their names are relative."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=0, help="Prompts to show side by side, by each score.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap and of the permutation test.")] = 0,
) -> None:
    """Compare two results files over the prompts that they share; differences are B - A.

    Means with paired bootstrap intervals, a permutation test corrected for five scores, win rates. What is not in the
    figures (prompts of one file alone, failed clips) is said. Exit status: 0 when they were compared, 2 when they do
    not compare: other fingerprints, no prompt in common, a clip twice.
    """
    check_file("--output", output, SUFFIXES)
    check_names(a, b, folder_a, folder_b)
    needs("report", "scipy", "jinja2")
    if output is not None:
        needs("report", "vl_convert")
    from dover_eval.evaluation.compare import compare_results
    from dover_eval.results import read_results
    from dover_eval.tables import TableError

    try:
        results = read_results(a), read_results(b)
        with progress_bar("resampling") as bar:
            comparison = compare_results(*results, seed=seed, progress=bar.reach)
    except TableError as error:
        usage(error)
    _print(comparison)
    if output is not None:
        from dover_eval.looking.compare_page import compare_page
        from dover_eval.looking.page import write_page

        with progress_bar("reading clips") as bar:
            page = compare_page(comparison, prompts=prompts, folders=(folder_a, folder_b), progress=bar.reach)
        with writing(output):
            write_page(page, output)


def _print(c: Comparison) -> None:
    from rich.console import Console

    from dover_eval.evaluation.compare import chance
    from dover_eval.evaluation.metrics import LEVEL
    from dover_eval.looking.compare_page import remarks

    console = Console()
    console.width = max(console.width, 56)  # no digit is lost: a narrower terminal breaks lines itself
    table = plain_table()
    table.add_column("score", no_wrap=True)
    for title in ("A", "B", "B - A"):
        table.add_column(title, justify="right", no_wrap=True)
    # These break between words where there is no room.
    for title, width in ((f"{LEVEL:.0%} interval", 6), ("p (Holm)", 6), ("B wins", 4)):
        table.add_column(title, justify="right", overflow="fold", min_width=width)
    for d in c.differences:
        style = "" if not d.shown else "bold cyan" if d.difference.value > 0 else "bold yellow"
        table.add_row(
            d.name,
            f"{d.mean_a:.2f}",
            f"{d.mean_b:.2f}",
            said(f"{d.difference.value:+.3f}", style),
            f"{d.difference.low:+.3f} to {d.difference.high:+.3f}",
            chance(d.p_holm),
            f"{d.win_rate.value:.0%}",
        )
    tell = lambda line, style="": console.print(said(line, style), soft_wrap=True)
    tell(f"A is {c.names[0]}, B is {c.names[1]}; {len(c.prompts)} prompts, fingerprint {c.a.fingerprint}")
    console.print(table)
    overall = len(c.differences) - 1
    rows: list[Any] = [(c.scores_b[i, overall] - c.scores_a[i, overall], c.prompts[i]) for i in c.largest(overall, 5)]
    if c.identical:
        tell("the scores of A and B are identical")
    elif rows:
        tell(f"{c.differences[overall].name} differs the most for", "dim")
    for difference, prompt in rows:
        tell(f"  {difference:+.2f}  {prompt}")
    for remark in remarks(c):
        tell(remark, "yellow")
