"""Loading a scorer for a command, quietly and with a failure that reads like one; and scoring with a bar."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dover_eval.cli.exits import failure, usage
from dover_eval.cli.output import say
from dover_eval.cli.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dover_eval.evaluation import Item
    from dover_eval.scorer import VideoScorer
    from dover_eval.scores import VideoScores


class _StandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), err=True)


def show_warnings() -> None:
    """Only our own loggers: other packages have handlers and would print everything twice."""
    for name in ("dover_eval", "dover_integrations"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            handler = _StandardError(logging.WARNING)
            handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            logger.addHandler(handler)


def load_scorer(model: str | None, device: str | None, calibration: Path | None = None) -> VideoScorer:
    """The scorer of a checkpoint, or an exit with its reason. Warnings (fallbacks) still go to standard error."""
    show_warnings()
    from dover_eval.calibration import Calibration, CalibrationError
    from dover_eval.scorer import VideoScorer

    try:
        fitted = None if calibration is None else Calibration.load(calibration)
    except CalibrationError as error:
        failure(error)
    with loading(model, device):
        return VideoScorer.from_pretrained(model, device=device, calibration=fitted)


def check_device(device: str | None) -> None:
    import torch

    try:
        kind = torch.device(device or "cpu").type
    except RuntimeError as error:
        usage(f"--device {device}: {str(error).splitlines()[0]}")
    if kind == "meta":
        usage(f"--device {device}: expected one that computes, and meta holds no data")


@contextmanager
def loading(model: str | None, device: str | None) -> Iterator[None]:
    """Around what loads a checkpoint onto a device: an exit that says why it cannot."""
    from transformers.utils import logging as transformers_logging

    check_device(device)
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        failure(f"{model or 'the embedded model'} cannot be loaded{f' on {device}' if device else ''}: {error}")


def score_with_progress(
    scorer: VideoScorer, files: Sequence[Path], texts: Sequence[str], batch_size: int | None
) -> VideoScores:
    with progress_bar("scoring", len(files)) as bar:
        return scorer.score(list(files), texts, batch_size=batch_size, progress=bar.advance)


def score_items(
    items: Sequence[Item], folder: Path, scorer: VideoScorer, batch_size: int | None
) -> tuple[list[tuple[str, str]], VideoScores, list[str]]:
    """(video, prompt) as the items call them, their scores, and the names of clips that are not in the folder.

    Raises InputError where there is nothing to score, or a prompt has nothing to read in it, and TableError for names
    that fit several clips.
    """
    from dover_eval.evaluation import ClipIndex, match_clips, wanted_clips
    from dover_eval.files import InputError
    from dover_eval.inputs import check_named_prompt, find_videos

    wanted = wanted_clips(items)
    found = match_clips(items, ClipIndex(map(str, find_videos([str(folder)])), str(folder)))
    if not found:
        raise InputError(f"{folder}: none of the {len(wanted)} clips of the table is there")
    for video, prompt in found:
        check_named_prompt(video, prompt)
    files, texts = [Path(place) for place in found.values()], [prompt for _, prompt in found]
    missing = list(dict.fromkeys(key[0] for key in wanted if key not in found))
    return list(found), score_with_progress(scorer, files, texts, batch_size), missing
