"""`dover-eval`: one file a command. A command's imports are its own, so that `--help` answers at once."""

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
app.command()(score)
app.command()(info)
app.command()(evaluate)
app.command()(calibrate)
app.command()(label)
app.command()(sanity)
app.command()(report)
app.command()(compare)
app.command()(explain)
app.command("app")(app_command)
app.command()(serve)
app.command()(train)


def main() -> None:
    """The console script."""
    app()
