"""`dover-eval evaluate`: a benchmark's table and its clips, or their scores, in; figures with intervals out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from dover_eval.evaluation import EvaluationReport
    from dover_eval.evaluation.report import Items, Scores

EXIT_INCOMPLETE, EXIT_USAGE = 1, 2


def evaluate(
    table: Annotated[Path | None, typer.Argument(help="The benchmark's own file with ratings or preferences.")] = None,
    benchmark: Annotated[str, typer.Option(help="How the file is laid out; --list tells.")] = "ratings",
    videos: Annotated[Path | None, typer.Option(help="The folder with the benchmark's clips, to score now.")] = None,
    scores: Annotated[Path | None, typer.Option(help="What `dover-eval score --output` wrote, instead.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report as JSON as well.")] = None,
    save_scores: Annotated[Path | None, typer.Option(help="Keep the scores: .jsonl, .csv or .json.")] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Of the bootstrap; 0 leaves the intervals out.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    model: Annotated[str | None, typer.Option(help="A checkpoint folder or hub repository.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips that go through the model together.")] = 8,
    list_benchmarks: Annotated[bool, typer.Option("--list", help="Tell the benchmarks and where to get them.")] = False,
) -> None:
    """Compare scores with what people said.

    Ratings give SROCC, PLCC (as scored and after the four-parameter logistic), KRCC, RMSE and the challenge's
    (SROCC + PLCC) / 2; preferences give the accuracy without and with ties. Exit status: 0 when the figures are of the
    whole benchmark, 1 when clips are missing or failed, 2 when the command or the table was not understood.
    """
    from dover_eval.cli.loading import extra

    with extra("evaluation"):
        from dover_eval.evaluation import BENCHMARKS, TableError, read_scores
        from dover_eval.evaluation import evaluate as compare

    if list_benchmarks:
        for name, known in BENCHMARKS.items():
            typer.echo(f"{name:22}{known.title} ({known.holds}): {known.where}")
        return
    if table is None:
        _usage("a TABLE is missing; --list tells the benchmarks")
    if benchmark not in BENCHMARKS:
        _usage(f"--benchmark {benchmark}: expected one of {', '.join(BENCHMARKS)}")
    if (videos is None) == (scores is None):
        _usage("give either --videos FOLDER or --scores FILE")
    for path in (output, save_scores):
        if path is not None and not path.parent.is_dir():
            _usage(f"{path}: there is no folder {path.parent}")
    try:
        items = BENCHMARKS[benchmark].read(table)
        if scores is not None:
            values, fingerprint = read_scores(scores, items)
        else:
            assert videos is not None
            values, fingerprint = _score(items, videos, model, device, batch_size, save_scores)
        report = compare(items, values, benchmark=benchmark, fingerprint=fingerprint, resamples=resamples, seed=seed)
    except (TableError, ValueError) as error:
        _usage(str(error))
    if output is not None:
        output.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    _print(report)
    if not report.complete:
        raise typer.Exit(EXIT_INCOMPLETE)


def _score(
    items: Items, folder: Path, model: str | None, device: str | None, batch_size: int, keep: Path | None
) -> tuple[Scores, str]:
    """Scores by (video, prompt) as the items call them; clips that are not in the folder have none."""
    from dover_eval.cli.loading import load_scorer, score_with_progress
    from dover_eval.cli.score import find_videos, write_scores
    from dover_eval.evaluation import ClipIndex, wanted_clips

    index = ClipIndex(str(path) for path in find_videos([str(folder)]))
    found = {key: place for key in wanted_clips(items) if (place := index.find(key[0])) is not None}
    if not found:
        raise ValueError(f"{folder}: none of the {len(wanted_clips(items))} clips of the table is there")
    files, texts = [Path(place) for place in found.values()], [prompt for _, prompt in found]
    scored = score_with_progress(load_scorer(model, device), files, texts, batch_size)
    if keep is not None:
        write_scores(scored, keep)
    rows = (dict(zip(scored.names, row, strict=True)) for row in scored.values.tolist())
    return dict(zip(found, rows, strict=True)), str(scored.fingerprint)


def _print(report: EvaluationReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dover_eval.evaluation import Interval, PairMetrics

    columns = {
        "srocc": "SROCC",
        "plcc": "PLCC",
        "plcc_fit": "PLCC fitted",
        "krcc": "KRCC",
        "rmse_fit": "RMSE fitted",
        "challenge": "(S+P)/2",
    }
    pairs = any(isinstance(found, PairMetrics) for found in report.aspects.values())
    if pairs:
        columns = {"without_ties": "accuracy without ties", "with_ties": "accuracy with ties", "tie_threshold": "tie"}
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column(report.benchmark)
    out.add_column("n", justify="right")
    for title in columns.values():
        out.add_column(title, justify="right", no_wrap=True)
    for name, found in report.aspects.items():
        cells = [getattr(found, column) for column in columns]
        out.add_row(name, str(found.count), *(_cell(c) if isinstance(c, Interval) else f"{c:.3f}" for c in cells))
    console = Console()
    console.print(out)
    console.print(f"{report.used} of {report.items} {'pairs' if pairs else 'clips'}; fingerprint {report.fingerprint}")
    for words, names in (("not found", report.missing), ("failed", report.failed)):
        if names:
            console.print(f"{len(names)} clips {words}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
    for name, reason in report.left_out.items():
        console.print(f"{name} is left out: {reason}")


def _cell(interval: object) -> str:
    from dover_eval.evaluation import Interval

    assert isinstance(interval, Interval)
    return f"{interval.value:.3f}\n{interval.low:.3f}-{interval.high:.3f}"


def _usage(message: str) -> NoReturn:
    typer.echo(f"dover-eval evaluate: {message}", err=True)
    raise typer.Exit(EXIT_USAGE)
