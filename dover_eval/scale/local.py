"""The engine of one process: it scores what its workers decode, with one batch on its way to the device meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from dover_eval.files import Clip, batch_span
from dover_eval.results import COLUMNS, Row
from dover_eval.scale.decoding import Decoded, decode_ahead
from dover_eval.scale.runlog import RunError, Scored
from dover_eval.wording import one_line

if TYPE_CHECKING:
    from dover_eval.scorer import VideoScorer


def score_batches(
    scorer: VideoScorer, clips: Sequence[Clip], batches: Sequence[int], batch_size: int, workers: int
) -> Iterator[Scored]:
    """The rows of `batches`, in order; batch i are the clips from i * batch_size on.

    The rate is that of the slower of decoding and scoring. Memory holds the frames of `workers * AHEAD` clips and of
    two batches, whatever the number of clips.
    """
    spans = [batch_span(i, batch_size, len(clips)) for i in batches]
    gpu = scorer.device.type == "cuda"
    decoded = decode_ahead(clips, [i for span in spans for i in span], scorer.decode, workers, pin=gpu)
    copying = torch.cuda.Stream(scorer.device) if gpu else None

    def fetch(span: range) -> list[Decoded]:
        found = [next(decoded) for _ in span]
        if copying is None:
            return found
        with torch.cuda.stream(copying):
            found = [one._replace(frames=_send(one.frames, scorer.device)) for one in found]
        copying.synchronize()
        return found

    # The worker processes start, and end, in this thread: only there a lost one is told as an error to whoever waits,
    # and not thrown into whatever the main thread is doing.
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(fetch, spans[0]) if spans else None
        for i, span in enumerate(spans):
            assert coming is not None
            found = coming.result()
            coming = ahead.submit(fetch, spans[i + 1]) if i + 1 < len(spans) else None
            yield score_decoded(scorer, span.start, [clips[j] for j in span], found)


def _send(frames: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if frames is None else frames.to(device, non_blocking=True)


def score_decoded(scorer: VideoScorer, first: int, clips: Sequence[Clip], decoded: Sequence[Decoded]) -> Scored:
    """One batch through the model; the same batch gives the same bits, whoever decoded it.

    Raises RunError, which names the clips, where the model fails: such a fault may not be theirs, and is no row.
    """
    good = [i for i, found in enumerate(decoded) if found.frames is not None]
    frames = [found.frames for found in decoded if found.frames is not None]
    prompts = [clips[i].prompt for i in good]
    try:
        scores = scorer.score(frames, prompts, layout="TCHW", batch_size=max(len(good), 1))
    except (RuntimeError, MemoryError) as error:
        names = ", ".join(clips[i].video for i in good)
        raise RunError(
            f"{names}: the model failed ({one_line(error, kind=True)}); rows in --output are "
            "safe: go on with --resume when the device is free, or score the others into another --output"
        ) from error
    digest = str(scores.fingerprint)
    rows = [failed_row(clip, found.error, digest) for clip, found in zip(clips, decoded, strict=True)]
    for i, row in zip(good, scores.to_dicts(), strict=True):
        rows[i] = row | {"video_name": clips[i].video}
    return Scored(first, rows, [found.file for found in decoded])


def failed_row(clip: Clip, error: str | None, digest: str) -> Row:
    told = {"video_name": clip.video, "Prompt": clip.prompt, "error": error, "fingerprint": digest}
    return dict.fromkeys(COLUMNS) | told
