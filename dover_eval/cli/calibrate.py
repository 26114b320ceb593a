"""`dover-eval calibrate`: one's own ratings or preferences in, `calibration.json` out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dover_eval.cli.exits import EXIT_FAILED, check_file, check_no_input, extra, usage, writing
from dover_eval.cli.options import BatchSize, Device, Model, Prompts
from dover_eval.cli.output import lost_clips, plain_table, say

if TYPE_CHECKING:
    from dover_eval.calibration import Calibration


def calibrate(
    videos: Annotated[Path, typer.Option(help="The folder with the rated or judged clips.")],
    ratings: Annotated[Path | None, typer.Option(help="video_name, Prompt and <score>_MOS columns.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="prompt, video_a, video_b, aspect, label (A, B, tie).")] = None,
    rating_range: Annotated[tuple[float, float], typer.Option(help="The ratings that become 1 and 5.")] = (1.0, 5.0),
    reference: Annotated[Path | None, typer.Option(help="A folder of clips that percentiles are among.")] = None,
    reference_prompts: Prompts = None,
    method: Annotated[Literal["logistic", "isotonic"], typer.Option(help="Of the map from ratings.")] = "logistic",
    level: Annotated[float, typer.Option(min=0.5, max=0.99, help="Of the conformal intervals.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Draws the half of the ratings that fits the map.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="By default beside the checkpoint.")] = None,
    model: Model = None,
    device: Device = None,
    batch_size: BatchSize = None,
) -> None:
    """Fit monotone maps from scores to your raters' opinions on 1-5, tie thresholds, intervals and percentiles.

    Use the result with `dover-eval score --calibration` or `VideoScorer.from_pretrained(..., calibration=...)`. Exit
    status: 0 when every rated aspect has its map, 1 when one has not or clips are missing or failed, 2 when the command
    or a table was not understood.
    """
    from dover_eval.calibration import CalibrationError
    from dover_eval.cli.loading import load_scorer, score_items, score_with_progress
    from dover_eval.inputs import find_videos, match_prompts, read_prompts
    from dover_eval.tables import TableError

    with extra("evaluation"):
        from dover_eval.evaluation import BENCHMARKS
        from dover_eval.evaluation.calibrate import calibrate as fit

    if ratings is None and pairs is None:
        usage("give --ratings TABLE, --pairs TABLE or both")
    if (reference is None) != (reference_prompts is None):
        usage("--reference and --reference-prompts go together")
    if output is None:
        if model is None or not Path(model).is_dir():
            usage("give --output FILE: only a checkpoint folder (--model) has a place of its own for a calibration")
        output = Path(model)
    if not output.is_dir():
        check_file("--output", output)
        check_no_input("--output", output, [ratings, pairs, reference_prompts])
    try:
        tables = (("ratings", ratings), ("pairs", pairs))
        items = [item for name, path in tables if path is not None for item in BENCHMARKS[name].read(path)]
        scorer = load_scorer(model, device)
        keys, scores, missing = score_items(items, videos, scorer, batch_size)
        among = None
        if reference is not None and reference_prompts is not None:
            files = find_videos([str(reference)])
            texts = match_prompts(files, read_prompts(reference_prompts))
            among = score_with_progress(scorer, files, texts, batch_size)
        calibration, left_out = fit(
            items,
            keys,
            scores,
            reference=among,
            rating_range=rating_range,
            method=method,
            level=level,
            seed=seed,
        )
    except (TableError, CalibrationError) as error:
        usage(error)
    _print(calibration)
    with writing(output):
        place = calibration.save(output)
    say(f"written to {place}")
    sets = [scores] if among is None else [scores, among]
    failed = {clip: error for own in sets for clip, error in zip(own.sources, own.errors, strict=True) if error}
    for line in lost_clips(missing, failed):
        say(line, err=True)
    for name, reason in left_out.items():
        say(f"{name} stays as scored: {reason}", err=True)
    if missing or failed or left_out:
        raise typer.Exit(EXIT_FAILED)


def _print(calibration: Calibration) -> None:
    from rich.console import Console

    table = plain_table()
    for title in ("score", "map from", "n", "1 becomes", "3 becomes", "5 becomes", "interval", "tie up to"):
        table.add_column(title, justify="left" if title in ("score", "map from") else "right")
    for name, aspect in calibration.aspects.items():
        ends = (f"{value:.2f}" for value in aspect([1, 3, 5]))
        margin = "-" if aspect.margin is None else f"±{aspect.margin:.2f} at {aspect.level:.0%}"
        tie = "-" if aspect.tie_threshold is None else f"{aspect.tie_threshold:.3f}"
        table.add_row(name, aspect.source, str(aspect.count), *ends, margin, tie)
    Console().print(table)
