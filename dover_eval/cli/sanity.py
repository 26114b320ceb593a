"""`dover-eval sanity`: spoils one's own clips in known ways and tells whether the scores notice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dover_eval.cli.exits import EXIT_FAILED, check_file, check_no_input, failure, needs, usage, write_json, writing
from dover_eval.cli.options import Device, Model, Prompts
from dover_eval.cli.output import plain_table

if TYPE_CHECKING:
    from dover_eval.sanity import SanityReport


def sanity(
    videos: Annotated[list[str] | None, typer.Option(help="Files, folders or patterns; drawn clips if none.")] = None,
    prompts: Prompts = None,
    defect: Annotated[list[str] | None, typer.Option(help="Check only this defect; may be repeated.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many clips to use at most.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the defects' random parts, and of the drawn clips.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the scores by strength: .png, .svg or .pdf.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report as JSON as well.")] = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Spoil clips and prompts in known ways at rising strength, and see which scores move.

    Each check names the score that should fall: it must fall steadily, and further than the other aspects move. Scores
    that never change ring an alarm. Exit status: 0 when all checks pass, 1 when one fails or an alarm rings, 2 when the
    command was not understood or a clip cannot be read.
    """
    from dover_eval.cli.loading import load_scorer

    needs("evaluation", "scipy")
    if plot is not None:
        needs("evaluation", "matplotlib")
    from rich.console import Console

    from dover_eval.inputs import find_videos, match_prompts, read_prompts
    from dover_eval.replacing import replacing
    from dover_eval.sanity import check_scorer, defect_names, drawn_clips, load_clip
    from dover_eval.tables import TableError
    from dover_eval.video.decode import VideoError

    check_file("--plot", plot, (".png", ".svg", ".pdf"))
    check_file("--output", output)
    check_no_input("--output", output, [prompts, *(videos or [])])
    if unknown := set(defect or ()) - set(defect_names()):
        usage(f"--defect {', '.join(sorted(unknown))}: expected one of {', '.join(defect_names())}")
    if prompts is not None and not videos:
        usage("--prompts goes with --videos: drawn clips have their own")
    try:
        files = find_videos(videos)[:count] if videos else []
        texts = match_prompts(files, read_prompts(prompts)) if prompts is not None else None
        scorer = load_scorer(model, device)
        for file, text in zip(files, texts or (), strict=False):
            if fault := scorer.model.text_encoder.fault(text):
                usage(f"{file}: {fault}")
        if files:
            clips = [load_clip(path, scorer.decode) for path in files]
        else:
            clips, texts = drawn_clips(min(count, 4), scorer.config.num_frames, seed)
        with Console(stderr=True).status("checking") as status:
            say = lambda name: status.update(f"checking: {name}")
            report = check_scorer(scorer, clips, texts, defects=defect, seed=seed, progress=say)
    except (VideoError, TableError) as error:
        usage(error)
    _print(report, "drawn clips" if not files else "clips", texts is not None)
    if output is not None:
        write_json(output, report.to_dict())
    if plot is not None:
        try:
            with writing(plot), replacing(plot) as draft:
                draw_report(report, draft)
        except ValueError as error:
            failure(f"--plot {plot}: {error}")
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


def draw_report(report: SanityReport, path: Path) -> None:
    """A panel a check: mean scores by level, the one that should fall in bold."""
    from matplotlib.figure import Figure

    from dover_eval.opinion import SCORE_NAMES

    checks = [check for check in report.checks if check.means]
    if not checks:
        raise ValueError("nothing to draw: every check was skipped")
    columns = min(4, len(checks))
    rows = -(-len(checks) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, check in zip(axes, checks, strict=False):
        for column, name in enumerate(SCORE_NAMES):
            own = name == check.score
            axis.plot(
                check.levels,
                [row[column] for row in check.means],
                label=name,
                linewidth=3 if own else 1,
                alpha=1 if own else 0.6,
            )
        axis.set_title(f"{check.name}: {check.status}", fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in list(axes)[len(checks) :]:
        axis.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=120)


def _print(report: SanityReport, kind: str, with_prompts: bool) -> None:
    from rich.console import Console

    table = plain_table()
    for title in ("done", "should fall", "n", "steady", "falls", "next to move", "verdict"):
        table.add_column(title, justify="right" if title in ("n", "steady", "falls") else "left", no_wrap=True)
    style = {"pass": "green", "fail": "bold red", "skipped": "yellow"}
    number = lambda value: "-" if value != value else f"{value:.2f}"
    for check in report.checks:
        moved = f"{check.other} {number(check.other_move)}" if check.other else "-"
        cells = (str(check.clips), number(check.rank), number(check.fall), moved)
        table.add_row(check.name, check.score, *cells, f"[{style[check.status]}]{check.status}[/]")
    console = Console()
    console.print(table)
    for check in report.checks:
        if check.reason:
            console.print(f"{check.name}: {check.reason}")
    for alarm in report.alarms:
        console.print(f"[bold red]ALARM[/] {alarm}")
    if not with_prompts:
        console.print("Prompts were not checked: give --prompts with one for each clip.")
    console.print(
        f"{report.clips} {kind}; fingerprint {report.fingerprint}; {'all is well' if report.ok else 'NOT well'}"
    )
