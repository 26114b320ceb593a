"""`dover-eval evaluate`: a benchmark's table and its clips, or their scores, in; figures with intervals out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dover_eval.cli.exits import EXIT_FAILED, check_file, check_no_input, extra, usage, writing
from dover_eval.cli.options import BatchSize, CalibrationFile, Device, Model
from dover_eval.cli.output import plain_table, write_json
from dover_eval.wording import plain, plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dover_eval.evaluation import EvaluationReport, Interval, Item
    from dover_eval.scorer import VideoScorer
    from dover_eval.scores import VideoScores


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

    from dover_eval.cli.loading import load_scorer
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
        usage(str(error))
    print_report(report)
    if output is not None:
        write_json(output, report.to_dict())
    if not report.complete:
        raise typer.Exit(EXIT_FAILED)


def score_items(
    items: Sequence[Item], folder: Path | None, scorer: VideoScorer, batch_size: int | None
) -> tuple[list[tuple[str, str]], VideoScores, list[str]]:
    """(video, prompt) as the items call them, their scores, and the names of clips that are not in the folder.

    Raises InputError where there is nothing to score, or a prompt has nothing to read in it, and TableError for names
    that fit several clips.
    """
    from dover_eval.cli.loading import score_with_progress
    from dover_eval.evaluation import ClipIndex, match_clips, wanted_clips
    from dover_eval.files import InputError
    from dover_eval.inputs import check_named_prompt, find_videos

    wanted = wanted_clips(items)
    found = match_clips(items, ClipIndex(map(str, find_videos([str(folder)])), str(folder)))
    if not found:
        raise InputError(f"{folder}: none of the {len(wanted)} clips of the table is there")
    for video, prompt in found:
        check_named_prompt(video, prompt)
    files, texts = [Path(place) for place in found.values()], [prompt for _, prompt in found]
    missing = list(dict.fromkeys(key[0] for key in wanted if key not in found))
    return list(found), score_with_progress(scorer, files, texts, batch_size), missing


def print_report(report: EvaluationReport) -> None:
    from rich.console import Console
    from rich.text import Text

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
        console.print(Text(line), soft_wrap=True)
    for name, reason in report.left_out.items():
        console.print(f"{name}: {reason}", markup=False)


def lost_clips(missing: Sequence[str], failed: Mapping[str, str]) -> list[str]:
    """Lines on clips that were not found, and on those that failed, by name with the reason: the first five of each."""
    lines = []
    if missing:
        more = " ..." if len(missing) > 5 else ""
        lines.append(f"{plural(len(missing), 'clip')} not found: {plain(', '.join(missing[:5]))}{more}")
    if failed:
        lines.append(f"{plural(len(failed), 'clip')} failed:")
        told = [reason if f"{name}:" in reason else f"{name}: {reason}" for name, reason in list(failed.items())[:5]]
        lines += [f"  {plain(line)}" for line in told]
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
