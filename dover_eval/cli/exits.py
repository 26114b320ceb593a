"""How a command exits early: with a line on standard error that says why, and a status."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

from dover_eval.cli.output import say
from dover_eval.files import InputError
from dover_eval.inputs import check_name
from dover_eval.prompts import prompt_fault
from dover_eval.replacing import replacing

#: Something that was asked for failed; the command was not understood.
EXIT_FAILED, EXIT_USAGE = 1, 2


def usage(message: object) -> NoReturn:
    """The command, or a table that it names, was not understood."""
    say(f"dover-eval: {message}", err=True)
    raise typer.Exit(EXIT_USAGE)


def failure(message: object) -> NoReturn:
    """What was asked for failed."""
    say(f"dover-eval: {message}", err=True)
    raise typer.Exit(EXIT_FAILED)


def check_file(option: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Whether `path` can be a result's: before minutes of work, and not after them."""
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        usage(f"{option} {path}: expected a name that ends in {', '.join(suffixes)}")
    if os.path.isdir(path):
        usage(f"{option} {path}: expected a file, found a folder")
    if not os.path.isdir(path.parent):
        usage(f"{option} {path}: there is no folder {path.parent}")
    if path.suffix == ".parquet" and path.suffix in suffixes:
        needs("parquet", "pyarrow")


def needs(extra: str, *packages: str) -> None:
    """Whether packages are installed that only an extra brings: before minutes of work, and not after them."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            failure(f"{package} is not installed: pip install 'dover-eval[{extra}]'")


def check_prompt(prompt: str | None) -> None:
    """Whether a prompt, where one is given, has something to read in it."""
    if prompt is not None and (fault := prompt_fault(prompt)):
        usage(f"--prompt {prompt!r}: {fault}, expected words")


def check_names(*paths: Path | None) -> None:
    """Whether these names, which a page or a terminal will show, are text."""
    try:
        for path in paths:
            check_name(str(path))
    except InputError as error:
        usage(error)


def check_no_input(option: str, path: Path | None, inputs: Iterable[str | Path | None]) -> None:
    """Whether a result would take the place of something that was read for it."""
    if path is None or not os.path.exists(path):
        return
    different = dict.fromkeys(inputs)  # a table may name one file a million times
    if any(name is not None and os.path.exists(name) and os.path.samefile(path, name) for name in different):
        usage(f"{option} {path} is one of the inputs, and would be replaced")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a result: a full disk, or a folder that takes no files."""
    try:
        yield
    except OSError as error:
        failure(f"{path} cannot be written: {error.strerror or error}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """The file appears whole or not at all; one that cannot be written ends the command."""
    with writing(path), replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around the imports of a command that needs an extra: the exit says how to install what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        failure(f"{error.name} is not installed: pip install 'dover-eval[{name}]'")
