"""`dover-eval train`: ratings, preferences and a YAML file in, a checkpoint with its card out."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dover_eval.cli.exits import extra, failure, usage
from dover_eval.cli.loading import show_warnings
from dover_eval.cli.output import print_report, say

if TYPE_CHECKING:
    from dover_eval.training.corpus import Corpus
    from dover_eval.training.run import TrainResult


def train(
    config: Annotated[Path, typer.Argument(help="The run's settings, in YAML; docs/training.md has an example.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read and decode everything, print the split and stop.")
    ] = False,
) -> None:
    """Turn ratings and preferences into a checkpoint.

    Several GPUs: torchrun --nproc-per-node 8 -m dover_eval train CONFIG. Exit status: 0 when the checkpoint is there,
    1 when the weights to start from or the training failed, 2 when the settings or the data cannot be used.
    """
    show_warnings()
    with extra("train"):
        import_module("accelerate")  # Trainer's own import of it is far from here

        from dover_eval.evaluation import TableError
        from dover_eval.models.semantic import SemanticEncoderError
        from dover_eval.models.text import TextEncoderError
        from dover_eval.training import run
        from dover_eval.training.settings import SettingsError, TrainSettings
        from dover_eval.training.splits import SplitError
        from dover_eval.video.decode import VideoError
        from dover_eval.weights import WeightsError
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        settings = TrainSettings.load(config)
        if check:
            _print_corpus(run.check(settings))
            return
        result = run.train(settings, resume=resume)
    except (WeightsError, TextEncoderError, SemanticEncoderError, VideoError, OSError, FloatingPointError) as error:
        failure(error)
    except (SettingsError, TableError, SplitError) as error:
        usage(error)
    if result is not None:
        _print_result(result)


def _print_corpus(corpus: Corpus) -> None:
    for side in ("training", "validation"):
        counts = corpus.counts(side)
        told = [f"{counts['rows']} rows, {counts['clips']} clips, {counts['prompts']} prompts"]
        for kind in ("ratings", "verdicts"):
            told += [f"{count} {kind} of {name}" for name, count in counts[kind].items()]
        say(f"{side}: {'; '.join(told)}")


def _print_result(result: TrainResult) -> None:
    record = result.record
    best = f", the best at step {record['best_step']}" if record["best_step"] else ""
    say(f"{result.folder}: {record['steps']} steps{best}, {record['minutes']} minutes")
    if result.report is not None:
        print_report(result.report)
