"""`dover-eval explain`: why one clip scores as it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dover_eval.cli.exits import check_file, check_names, check_no_input, check_prompt, failure, needs, usage, writing
from dover_eval.cli.options import Device, Model
from dover_eval.cli.output import plain_table, said
from dover_eval.cli.report import SUFFIXES


def explain(
    clip: Annotated[Path, typer.Argument(help="A video file.")],
    prompt: Annotated[str, typer.Option(help="Its prompt.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a page: .html.")] = None,
    video: Annotated[Path | None, typer.Option(help="Write the clip with local quality over it: .mp4.")] = None,
    map_name: Annotated[
        Literal["technical", "aesthetic"], typer.Option("--map", help="Which quality is over that video.")
    ] = "technical",
    windows: Annotated[int, typer.Option(min=1, help="Sliding windows at most.")] = 24,
    seconds: Annotated[float | None, typer.Option(help="Length of a window; by default an eighth of the clip.")] = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Show a clip's scores over time, where its quality is low, its worst moments, and where its prompt's words look.

    Exit status: 0 when it was explained, 1 when the clip cannot be scored, 2 when the command was not understood.
    """
    from dover_eval.cli.loading import load_scorer

    check_file("--output", output, SUFFIXES)
    check_file("--video", video, (".mp4",))
    check_names(clip)
    if output is not None:
        needs("report", "jinja2", "PIL", "vl_convert")
    check_no_input("--video", video, [clip])
    if seconds is not None and not seconds > 0:
        usage(f"--seconds {seconds:g}: expected more than 0")
    check_prompt(prompt)
    scorer = load_scorer(model, device)
    if fault := scorer.model.text_encoder.fault(prompt):
        usage(f"--prompt: {fault}")
    from dover_eval.video.decode import VideoError

    try:
        found = scorer.explain(clip, prompt, windows=windows, seconds=seconds)
        _print(found)  # first: what follows reads the clip to its end, where it may be damaged
        if output is not None:
            from dover_eval.looking.explain_page import explain_page
            from dover_eval.looking.page import write_page

            page = explain_page(found)
            with writing(output):
                write_page(page, output)
        if video is not None:
            from dover_eval.looking.overlay import write_overlay

            with writing(video):
                write_overlay(found, map_name, video)
    except VideoError as error:
        failure(error)


def _print(found: Any) -> None:
    from rich.console import Console

    from dover_eval.wording import plural

    table = plain_table()
    for title in ("score", "whole clip", "lowest", "at"):
        table.add_column(title, justify="left" if title == "score" else "right", no_wrap=True)
    for column, (name, worst) in enumerate(found.worst.items()):
        low = found.values[worst, column]
        table.add_row(name, f"{found.scores[column]:.2f}", f"{low:.2f}", f"{found.times[worst]:.2f} s")
    console = Console()
    console.print(table)
    tell = lambda line, style="": console.print(said(line, style), soft_wrap=True)
    windows = f"{plural(len(found.times), 'window')} of {found.window:.2f} s in {found.duration:.2f} s"
    tell(f"{windows}; fingerprint {found.fingerprint}", "dim")
    read = sorted((word for word in found.words if word.focus is not None), key=lambda word: -word.focus)
    narrowest = ", ".join(f"{word.text} {word.focus:.2f}" for word in read[:8])
    tell(f"words that look the most narrowly: {narrowest}")
    if lost := sum(word.cut_off for word in found.words):
        tell(f"the prompt is too long: its end was not read ({plural(lost, 'word')})", "yellow")
