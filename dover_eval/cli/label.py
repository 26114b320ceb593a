"""`dover-eval label`: clips and prompts in, a rating table with a teacher's verdicts out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dover_eval.cli.exits import EXIT_FAILED, check_file, check_no_input, check_prompt, failure, usage, writing
from dover_eval.cli.options import Prompts
from dover_eval.cli.output import say
from dover_eval.cli.progress import progress_bar
from dover_eval.inputs import find_videos, match_prompts, read_prompts
from dover_eval.opinion import SCORE_NAMES
from dover_eval.tables import TableError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dover_eval.distillation import Labels, Scale

SHOWN_ERRORS = 10


def label(
    teacher: Annotated[str | None, typer.Option(help="module:callable; --list tells those that come along.")] = None,
    videos: Annotated[list[str] | None, typer.Option(help="A file, a folder or a quoted pattern; repeatable.")] = None,
    prompts: Prompts = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt for every clip.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The table, .csv or .parquet.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for a teacher's class; repeatable.")] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option(help="SCORE=WORST:BEST or SCORE=logistic:CENTER:WIDTH, where the teacher declares none."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a teacher of its own.")] = 1,
    device: Annotated[list[str] | None, typer.Option(help="Given to the workers in turn; repeatable.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a clip may take; unlimited by default.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Neither summary nor progress.")] = False,
    list_teachers: Annotated[bool, typer.Option("--list", help="Tell the teachers that come along.")] = False,
) -> None:
    """Fill a rating table with any scorer's verdicts, for `dover-eval train` to learn.

    Run again, it continues: after a kill, with new clips, with those that failed or have changed. A clip that the
    teacher cannot judge is a row with its error; the others go on. Exit status: 0 when every clip has its verdict, 1
    when some have not or the teacher cannot be loaded, 2 when the command was not understood or the table is another
    teacher's.
    """
    if list_teachers:
        from dover_eval.teachers import TEACHERS

        for name, known in TEACHERS.items():
            say(f"{name}\n    {known.judges}. Needs {known.needs}. {known.licence}")
        return
    if teacher is None or not videos or output is None:
        usage("--teacher, --videos and --output are needed; --list tells the teachers")
    if not all(teacher.partition(":")):
        usage(f"--teacher {teacher}: expected module:callable; --list tells those that come along")
    if (prompt is None) == (prompts is None):
        usage("give either --prompt TEXT or --prompts FILE.csv")
    check_prompt(prompt)

    from dover_eval.distillation import LabelsError, TeacherError
    from dover_eval.distillation import label as run
    from dover_eval.distillation.label import SUFFIXES

    check_file("--output", output, SUFFIXES)
    check_no_input("--output", output, [prompts, *videos])

    options = _named("--option", map(_option, option or []))
    scales = _named("--scale", map(_scale, scale or []))
    try:
        files = find_videos(videos)
        if prompt is not None:
            texts = [prompt] * len(files)
        else:
            assert prompts is not None
            texts = match_prompts(files, read_prompts(prompts))
        clips = list(zip(_names(files, videos), files, texts, strict=True))
        with writing(output), progress_bar("labelling", len(clips), show=not quiet) as bar:
            done = run(
                teacher,
                clips,
                output,
                options=options,
                scales=scales,
                workers=workers,
                devices=device or (),
                timeout=timeout,
                progress=bar.advance,
            )
    except (LabelsError, TableError) as error:
        usage(error)
    except TeacherError as error:
        failure(error)
    except KeyboardInterrupt:
        failure("interrupted; run it again to continue")
    if not quiet:
        _report(done, output)
    if done.errors:
        raise typer.Exit(EXIT_FAILED)


def _names(files: list[Path], videos: list[str]) -> list[str]:
    """Names in the table: within the folder where one was given, else as the files were named."""
    folder = Path(videos[0]) if len(videos) == 1 and Path(videos[0]).is_dir() else None
    return [(file.relative_to(folder) if folder else file).as_posix() for file in files]


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        usage(f"--option {text}: expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _scale(text: str) -> tuple[str, Scale]:
    from dover_eval.distillation.teacher import parse_scale

    aspect, equals, value = text.partition("=")
    if not equals:
        usage(f"--scale {text}: expected SCORE=WORST:BEST or SCORE=logistic:CENTER:WIDTH")
    if aspect not in SCORE_NAMES:
        usage(f"--scale {text}: expected a score of {', '.join(SCORE_NAMES)}")
    try:
        return aspect, parse_scale(value)
    except ValueError as error:
        usage(f"--scale {text}: {error}")


def _named(option: str, given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in given:
        if name in values:
            usage(f"{option} {name} is given twice")
        values[name] = value
    return values


def _report(done: Labels, output: Path) -> None:
    for aspect, given in done.teacher.scales.items():
        told = ", ".join(f"{name} {value:g}" for name, value in given.items() if name != "kind")
        say(f"{aspect}: {given['kind'].lower()}, {told}")
    untold = f", {done.untold} that the teacher could not judge" if done.untold else ""
    say(
        f"{output}: {done.judged + done.kept} clips, {done.kept} of them from before, {len(done.errors)} failed"
        f"{untold}; teacher {done.teacher.fingerprint}"
    )
    if done.earlier:
        say(f"and {done.earlier} rows of earlier runs, which this one did not ask for")
    for (name, _), error in list(done.errors.items())[:SHOWN_ERRORS]:
        say(f"{name}: {error}", err=True)
    if len(done.errors) > SHOWN_ERRORS:
        say(f"and {len(done.errors) - SHOWN_ERRORS} more, in the table's column error", err=True)
