"""Loading a scorer for a command: quietly, and with a failure that reads like one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from dover_eval.scorer import VideoScorer

EXIT_FAILED = 1


def load_scorer(model: str | None, device: str | None) -> VideoScorer:
    """The scorer of a checkpoint, or an exit with its reason. Warnings (fallbacks) still go to standard error."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    from transformers.utils import logging as transformers_logging

    from dover_eval.models.text import TextEncoderError
    from dover_eval.scorer import VideoScorer
    from dover_eval.weights import WeightsError

    transformers_logging.disable_progress_bar()
    try:
        return VideoScorer.from_pretrained(model, device=device)
    except (OSError, WeightsError, TextEncoderError, ValueError, RuntimeError) as error:
        typer.echo(f"dover-eval: {model or 'the embedded model'} cannot be loaded: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
