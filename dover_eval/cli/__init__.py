"""`dover-eval`: one file a command. A command's imports are its own, so that `--help` answers at once."""

import io
import sys
from collections.abc import Callable

import typer

from dover_eval.cli.app import app as app_command
from dover_eval.cli.calibrate import calibrate
from dover_eval.cli.compare import compare
from dover_eval.cli.evaluate import evaluate
from dover_eval.cli.explain import explain
from dover_eval.cli.info import info
from dover_eval.cli.label import label
from dover_eval.cli.report import report
from dover_eval.cli.sanity import sanity
from dover_eval.cli.score import score
from dover_eval.cli.serve import serve
from dover_eval.cli.train import train

app = typer.Typer(
    name="dover-eval",
    help="Scores generated videos against their prompts: five mean-opinion scores on the 1-5 scale.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "score": score,
    "info": info,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "label": label,
    "sanity": sanity,
    "report": report,
    "compare": compare,
    "explain": explain,
    "app": app_command,
    "serve": serve,
    "train": train,
}
for name, command in COMMANDS.items():
    # Line breaks in the source must not appear in the help.
    paragraphs = [" ".join(part.split()) for part in (command.__doc__ or "").split("\n\n")]
    app.command(name, help="\n\n".join(paragraphs))(command)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a finished run must not end on a letter that its terminal lacks
            stream.reconfigure(errors="backslashreplace")
    app()
