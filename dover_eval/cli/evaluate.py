"""`dover-eval evaluate`: a benchmark's table and its clips, or their scores, in; figures with intervals out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dover_eval.cli.exits import EXIT_FAILED, check_file, check_no_input, extra, usage, write_json, writing
from dover_eval.cli.options import BatchSize, CalibrationFile, Device, Model
from dover_eval.cli.output import print_report


def evaluate(
    table: Annotated[Path | None, typer.Argument(help="The benchmark's own file with ratings or preferences.")] = None,
    benchmark: Annotated[str, typer.Option(help="How the file is laid out; --list tells.")] = "ratings",
    videos: Annotated[Path | None, typer.Option(help="The folder with the benchmark's clips, to score now.")] = None,
    scores: Annotated[Path | None, typer.Option(help="What `dover-eval score --output` wrote, instead.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report as JSON as well.")] = None,
    save_scores: Annotated[Path | None, typer.Option(help="Keep the scores: .parquet, .jsonl, .csv or .json.")] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Of the bootstrap; 0 leaves the intervals out.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    model: Model = None,
    device: Device = None,
    calibration: CalibrationFile = None,
    batch_size: BatchSize = None,
    list_benchmarks: Annotated[bool, typer.Option("--list", help="Tell the benchmarks and where to get them.")] = False,
) -> None:
    """Compare scores with what people said.

    Ratings give SROCC, PLCC (as scored and after the four-parameter logistic), KRCC, RMSE and the challenge's
    (SROCC + PLCC) / 2; preferences give the accuracy without and with ties. Exit status: 0 when the figures are of the
    whole benchmark, 1 when clips are missing or failed, 2 when the command or the table was not understood.
    """
    from rich.console import Console

    from dover_eval.cli.loading import load_scorer, score_items
    from dover_eval.results import write_results
    from dover_eval.tables import SUFFIXES, TableError

    with extra("evaluation"):
        from dover_eval.evaluation import BENCHMARKS, read_scores
        from dover_eval.evaluation import evaluate as compare

    if list_benchmarks:
        for name, known in BENCHMARKS.items():
            typer.echo(f"{name:22}{known.title} ({known.holds}): {known.where}")
        return
    if table is None:
        usage("a TABLE is missing; --list tells the benchmarks")
    if benchmark not in BENCHMARKS:
        usage(f"--benchmark {benchmark}: expected one of {', '.join(BENCHMARKS)}")
    if (videos is None) == (scores is None):
        usage("give either --videos FOLDER or --scores FILE")
    if scores is not None and (calibration is not None or save_scores is not None):
        usage("--calibration and --save-scores go with --videos: the scores of a file are what they are")
    check_file("--output", output)
    check_file("--save-scores", save_scores, SUFFIXES)
    if output is not None and save_scores is not None and output.resolve() == save_scores.resolve():
        usage(f"--output and --save-scores are both {output}")
    for option, path in (("--output", output), ("--save-scores", save_scores)):
        check_no_input(option, path, [table, scores, calibration])
    try:
        items, thresholds = BENCHMARKS[benchmark].read(table), None
        if scores is not None:
            values, errors, fingerprint = read_scores(scores, items)
        else:
            assert videos is not None
            scorer = load_scorer(model, device, calibration)
            if scorer.calibration is not None:
                limits = {name: aspect.tie_threshold for name, aspect in scorer.calibration.aspects.items()}
                thresholds = {name: limit for name, limit in limits.items() if limit is not None}
            keys, scored, _ = score_items(items, videos, scorer, batch_size)
            if save_scores is not None:
                with writing(save_scores):
                    write_results(scored.to_dicts(), save_scores)
            rows = (dict(zip(scored.names, row, strict=True)) for row in scored.values.tolist())
            values, fingerprint = dict(zip(keys, rows, strict=True)), str(scored.fingerprint)
            errors = {key: error for key, error in zip(keys, scored.errors, strict=True) if error}
        with Console(stderr=True).status(f"{resamples} resamples of each figure"):
            report = compare(
                items,
                values,
                errors=errors,
                benchmark=benchmark,
                fingerprint=fingerprint,
                tie_thresholds=thresholds,
                resamples=resamples,
                seed=seed,
            )
    except TableError as error:
        usage(error)
    print_report(report)
    if output is not None:
        write_json(output, report.to_dict())
    if not report.complete:
        raise typer.Exit(EXIT_FAILED)
