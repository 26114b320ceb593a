"""What several commands print, in one way: file names, prompts and errors come from anywhere, and are made plain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import typer

from dover_eval.wording import plain, plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table
    from rich.text import Text

    from dover_eval.evaluation import EvaluationReport, Interval


def say(message: object, *, err: bool = False) -> None:
    """Print a message of one line or several, with its control characters spelled out."""
    typer.echo("\n".join(map(plain, str(message).split("\n"))), err=err)


def said(text: str, style: str = "") -> Text:
    """The same for a table of rich; a Text, not a str: brackets in a file name or a prompt are no markup."""
    from rich.text import Text

    return Text(plain(text), style=style)


def plain_table(**options: Any) -> Table:
    """A rich table without side borders; its options are rich's."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **options)


def print_report(report: EvaluationReport) -> None:
    from rich.console import Console

    from dover_eval.evaluation import PairMetrics, RatingMetrics

    of_kind = {
        RatingMetrics: {
            "count": "ratings",
            "srocc": "SROCC",
            "plcc": "PLCC",
            "plcc_fit": "PLCC fitted",
            "krcc": "KRCC",
            "rmse_fit": "RMSE fitted",
            "challenge": "(S+P)/2",
        },
        PairMetrics: {
            "count": "pairs",
            "without_ties": "without ties",
            "with_ties": "with ties",
            "tie_threshold": "tie up to",
        },
    }
    console = Console()
    for kind, figures in of_kind.items():
        aspects = {name: found for name, found in report.aspects.items() if isinstance(found, kind)}
        if not aspects:
            continue
        out = plain_table()
        out.add_column(report.benchmark)
        for name in aspects:
            out.add_column(name, justify="right", no_wrap=True)
        for field, title in figures.items():
            out.add_row(title, *(_cell(getattr(found, field)) for found in aspects.values()))
        console.print(out)
    console.print(f"{report.used} of {report.items} rows; fingerprint {report.fingerprint}")
    for line in lost_clips(report.missing, report.failed):
        console.print(said(line), soft_wrap=True)
    for name, reason in report.left_out.items():
        console.print(said(f"{name}: {reason}"))


def lost_clips(missing: Sequence[str], failed: Mapping[str, str]) -> list[str]:
    """Lines on clips that were not found, and on those that failed, by name with the reason: the first five of each."""
    lines = []
    if missing:
        more = " ..." if len(missing) > 5 else ""
        lines.append(f"{plural(len(missing), 'clip')} not found: {', '.join(missing[:5])}{more}")
    if failed:
        lines.append(f"{plural(len(failed), 'clip')} failed:")
        told = [reason if f"{name}:" in reason else f"{name}: {reason}" for name, reason in list(failed.items())[:5]]
        lines += [f"  {line}" for line in told]
        lines += ["  ..."] if len(failed) > 5 else []
    return lines


def _cell(figure: Interval | float) -> str:
    if isinstance(figure, int):
        return str(figure)
    if isinstance(figure, float):
        return f"{figure:.3f}"
    if math.isnan(figure.low):  # without resamples, or of too few
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f}\n{figure.low:.3f}-{figure.high:.3f}"
