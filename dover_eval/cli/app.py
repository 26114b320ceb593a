"""`dover-eval app`: clips dropped into a browser."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from dover_eval.cli.exits import failure, needs, usage
from dover_eval.cli.options import Device, Model
from dover_eval.loopback import is_loopback


def app(
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    auth: Annotated[
        str | None,
        typer.Option(envvar="DOVER_EVAL_APP_AUTH", help="NAME:PASSWORD to ask for. Better in the environment."),
    ] = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Drop a clip and type a prompt: scores, curve and maps; or compare two clips.

    Exit status: 0 when it was stopped by Ctrl-C and 143 by SIGTERM, both after the clips that were dropped into it are
    gone; 1 when it cannot listen; 2 when the command was not understood.
    """
    from dover_eval.cli.loading import load_scorer

    name, _, password = (auth or "").partition(":")
    if auth is not None and not (name and password):
        usage("--auth: expected NAME:PASSWORD")
    if auth is None and not is_loopback(host):
        usage(f"--host {host} is open to others: give --auth NAME:PASSWORD as well")
    needs("app", "gradio", "jinja2", "vl_convert")
    with _sigterm_as_exit(), tempfile.TemporaryDirectory(prefix="dover-eval-app-") as uploads:
        # Gradio's own folder is one for all users of a machine, who can look into it. It asks when it is imported, too.
        os.environ.setdefault("GRADIO_TEMP_DIR", uploads)
        from dover_eval.looking.app import launch_options, make_app

        scorer = load_scorer(model, device)
        page = make_app(scorer)
        try:
            page.launch(**launch_options(host, port, (name, password) if auth else None))
        except OSError as error:
            failure(f"nothing listens on {host} port {port}: {error}")


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Where SIGTERM ends the process as an exception does: what `with` holds is cleaned up."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
