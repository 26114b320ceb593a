"""`dover-eval score`: files, folders and patterns in, a table or a results file out."""

from __future__ import annotations

import csv
import glob
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from dover_eval.scores import VideoScores

VIDEO_SUFFIXES = {
    ".mp4",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".gif",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".wmv",
    ".flv",
    ".ogv",
}
OUTPUT_SUFFIXES = (".jsonl", ".csv", ".json")
NAME_COLUMN, PROMPT_COLUMN = "video_name", "Prompt"
EXIT_FAILED, EXIT_USAGE = 1, 2


def score(
    paths: Annotated[list[str], typer.Argument(help="Video files, folders or quoted patterns such as 'out/**/*.mp4'.")],
    prompt: Annotated[str | None, typer.Option(help="One prompt for every clip.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A CSV with the columns video_name and Prompt.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write .jsonl, .csv or .json as well.")] = None,
    model: Annotated[str | None, typer.Option(help="A checkpoint folder or hub repository.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="What `dover-eval calibrate` wrote.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips that go through the model together.")] = 8,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Neither table nor progress.")] = False,
) -> None:
    """Score clips against their prompts.

    A clip that cannot be scored is a row with its error; the others go on. Exit status: 0 when every clip has its
    scores, 1 when some have not, 2 when the command was not understood.
    """
    if (prompt is None) == (prompts is None):
        _usage("give either --prompt TEXT or --prompts FILE.csv")
    if prompt is not None and not prompt.strip():
        _usage("--prompt is empty; an alignment score needs words")
    if output is not None and output.suffix not in OUTPUT_SUFFIXES:
        _usage(f"--output {output}: expected a name that ends in {', '.join(OUTPUT_SUFFIXES)}")
    if output is not None and not output.parent.is_dir():
        _usage(f"--output {output}: there is no folder {output.parent}")
    files = find_videos(paths)
    texts = [prompt] * len(files) if prompt is not None else match_prompts(files, read_prompts(prompts))

    from dover_eval.cli.loading import load_scorer, score_with_progress

    scores = score_with_progress(load_scorer(model, device, calibration), files, texts, batch_size, show=not quiet)
    if output is not None:
        write_scores(scores, output)
    if not quiet:
        _print_table(scores)
    if not scores.ok:
        raise typer.Exit(EXIT_FAILED)


def find_videos(paths: list[str]) -> list[Path]:
    """Files as they are named, the videos of folders (with their subfolders) and of patterns, sorted, each once."""
    found: dict[Path, None] = {}
    for name in paths:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
            if not inside:
                _usage(f"{name}: a folder without videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
            found |= dict.fromkeys(inside)
        elif not path.exists() and glob.has_magic(name):
            matched = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
            if not matched:
                _usage(f"{name}: no file matches this pattern")
            found |= dict.fromkeys(matched)
        else:
            found[path] = None  # a missing file becomes a row with its error
    return list(found)


def read_prompts(path: Path | None) -> dict[str, str]:
    """Prompts by file name, from a CSV with `video_name` and `Prompt`; further columns are allowed."""
    assert path is not None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if NAME_COLUMN not in columns or PROMPT_COLUMN not in columns:
                found = ", ".join(columns) or "none"
                _usage(f"{path}: expected the columns {NAME_COLUMN} and {PROMPT_COLUMN}, found {found}")
            texts: dict[str, str] = {}
            for line, row in enumerate(reader, start=2):
                name, text = (row[NAME_COLUMN] or "").strip(), (row[PROMPT_COLUMN] or "").strip()
                if not name or not text:
                    _usage(f"{path}, line {line}: an empty {NAME_COLUMN if not name else PROMPT_COLUMN}")
                if texts.setdefault(name, text) != text:
                    _usage(f"{path}, line {line}: a second prompt for {name}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        _usage(f"{path}: cannot be read ({error})")
    return texts


def match_prompts(files: list[Path], texts: dict[str, str]) -> list[str]:
    """Each file's prompt, by its path, its name, or its name without the suffix."""
    matched, lacking = [], []
    for file in files:
        keys = (str(file), file.as_posix(), file.name, file.stem)
        text = next((texts[key] for key in keys if key in texts), None)
        if text is None:
            lacking.append(file.name)
        else:
            matched.append(text)
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        _usage(f"no prompt for {', '.join(lacking[:5])}{more}")
    return matched


def write_scores(scores: VideoScores, output: Path) -> None:
    """The rows as .jsonl, .csv or .json; the file appears whole or not at all."""
    rows = scores.to_dicts()
    with tempfile.NamedTemporaryFile(
        "w", dir=output.parent, prefix=f".{output.name}.", newline="", encoding="utf-8", delete=False
    ) as file:
        try:
            if output.suffix == ".csv":
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            elif output.suffix == ".json":
                json.dump(rows, file, indent=1, ensure_ascii=False)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o666 & ~_umask())
    os.replace(file.name, output)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _print_table(scores: VideoScores) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=f"from 1 (bad) to 5 (excellent); fingerprint {scores.fingerprint}",
        caption_justify="left",
    )
    table.add_column("clip and prompt", overflow="fold")
    for name in scores.names:
        table.add_column(name, justify="right", style="bold" if name == "Overall" else "", no_wrap=True)
    for i, source in enumerate(scores.sources):
        # Text, not str: brackets in a file name or a prompt are no markup.
        error = scores.errors[i]
        below = Text(scores.prompts[i], style="dim") if error is None else Text(error, style="red")
        cells: list[Any] = [Text("\n").join([Text(Path(source).name), below])]
        cells += ["-" if error else f"{value:.2f}" for value in scores.values[i].tolist()]
        table.add_row(*cells)
    Console().print(table)


def _usage(message: str) -> NoReturn:
    typer.echo(f"dover-eval: {message}", err=True)
    raise typer.Exit(EXIT_USAGE)
