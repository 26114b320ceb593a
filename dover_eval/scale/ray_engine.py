"""The engine of a cluster: Ray Data decodes in tasks wherever there are CPUs, and scores in one actor a GPU.

Frames cross as uint8 through Ray's object store, which is shared memory within a machine; Ray Data holds decoders back
where scorers cannot follow, and gives the work of a lost process to another. A batch is made of the same clips as in
the local engine, by the same functions, so its rows are the same to the last bit on the same kind of device.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data
import ray.exceptions
import torch

from dover_eval.files import Clip, Shard, batch_span
from dover_eval.hub import local_folder
from dover_eval.scale.decoding import Decoded, decode_apart, decode_file, known_identity
from dover_eval.scale.local import score_decoded
from dover_eval.scale.run import Claim, Engine
from dover_eval.scale.runlog import RunError, Scored
from dover_eval.scorer import VideoScorer, decode_for

if TYPE_CHECKING:
    import pyarrow

CLIPS_A_LEG = 50_000  # that the driver has on its list at a time
CLIPS_A_BLOCK = 64  # decoded by one task
DECODE_RETRIES = 1


class RayEngine:
    """A connection to a cluster, and how many scorers it is to have.

    Args:
        threads: of a scorer without a GPU; it takes as many CPUs.
        address: of a running cluster, "auto" for one on this machine; None starts one for this process alone.
        num_gpus: scorers, one a GPU; None takes all GPUs, 0 scores on CPUs, on half of them.

    Raises RunError where the cluster cannot be reached or is too small.
    """

    def __init__(
        self,
        model: str | None,
        calibration: Path | None,
        *,
        threads: int = 1,
        address: str | None = None,
        num_gpus: int | None = None,
    ) -> None:
        # The cluster's processes run in folders of their own.
        folder = model and local_folder(model)
        self.model = str(folder.absolute()) if folder else model
        self.calibration = calibration and calibration.absolute()
        self.threads = threads
        try:
            if not ray.is_initialized():
                _reach(address)
                local: dict[str, Any] = {} if address else {"include_dashboard": False}
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RunError(f"no Ray cluster at {address or 'this machine'}: {_short(error)}") from error
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        found = ray.cluster_resources()
        cpus, gpus = int(found.get("CPU", 0)), int(found.get("GPU", 0))
        if (num_gpus or 0) > gpus:
            raise RunError(f"--num-gpus {num_gpus}: the Ray cluster has {gpus}")
        self.gpus = gpus if num_gpus is None else num_gpus
        self.scorers = self.gpus or max(1, cpus // (2 * threads))
        self.cpus_a_scorer = 1 if self.gpus else threads
        if self.scorers * self.cpus_a_scorer >= cpus:
            raise RunError(
                f"the Ray cluster has {cpus} CPUs; {self.scorers} scorers of {self.cpus_a_scorer} leave none to decode"
            )

    def on(self, clips: Sequence[Clip], batch_size: int) -> Engine:
        """The engine for these clips."""

        def run(batches: Sequence[int], claim: Claim) -> Iterator[Scored]:
            try:
                made_with, digest, config = ray.get(self._remote(_describe).remote(**self._scorer()))
                claim(made_with, digest)
                for leg in _cut(batches, max(CLIPS_A_LEG // batch_size, 1)):
                    done: set[int] = set()
                    for found in self._score(clips, leg, batch_size, config, {}):
                        done.add(found.first // batch_size)
                        yield found
                    # What is missing was in blocks that were given up: a file in them ends whatever decodes it.
                    lost = [batch for batch in leg if batch not in done]
                    indices = [i for batch in lost for i in batch_span(batch, batch_size, len(clips))]
                    failed = {i: error for i in indices if (error := _decode_apart(clips, i, config))}
                    for found in self._score(clips, lost, batch_size, config, failed) if lost else ():
                        lost.remove(found.first // batch_size)
                        yield found
                    if lost:
                        raise RunError(f"Ray lost the work on {len(lost)} batches twice; go on with --resume")
            except ray.exceptions.RayError as error:
                raise RunError(f"Ray: {_short(error)}; go on with --resume") from error

        return run

    def _score(
        self, clips: Sequence[Clip], batches: Sequence[int], batch_size: int, config: Any, failed: Mapping[int, str]
    ) -> Iterator[Scored]:
        """Rows of batches, in any order; those of `failed` clips with that error, and without touching their file."""
        folder = os.getcwd()
        items = [
            {
                "first": (span := batch_span(batch, batch_size, len(clips))).start,
                "clips": json.dumps([clips[i]._replace(folder=folder) for i in span]),
                "failed": json.dumps([failed.get(i) for i in span]),
            }
            for batch in batches
        ]
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1
        blocks = max(len(items) * batch_size // CLIPS_A_BLOCK, min(len(items), 4 * self.scorers))
        decode: Any = _decode  # Ray's types know no further arguments
        rows = (
            ray.data.from_items(items, override_num_blocks=blocks)
            .map_batches(
                decode,
                batch_size=1,
                batch_format="pyarrow",
                zero_copy_batch=True,
                fn_kwargs={"config": config},
                num_cpus=1,
                ray_remote_args_fn=lambda: {"max_retries": DECODE_RETRIES},
            )
            .map_batches(
                _Scorer,
                batch_size=1,
                batch_format="pyarrow",
                zero_copy_batch=True,
                fn_constructor_kwargs=self._scorer(),
                compute=ray.data.ActorPoolStrategy(size=self.scorers),
                num_gpus=1 if self.gpus else 0,
                num_cpus=self.cpus_a_scorer,
            )
        )
        for row in rows.iter_rows():
            if row["failure"]:
                raise RunError(row["failure"])
            yield Scored(row["first"], json.loads(row["rows"]), json.loads(row["files"]))

    def _remote(self, function: Any) -> Any:
        return ray.remote(num_gpus=1 if self.gpus else 0, num_cpus=self.cpus_a_scorer)(function)

    def _scorer(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "calibration": self.calibration,
            "device": "cuda" if self.gpus else "cpu",
            "threads": self.threads,
        }


def _describe(**scorer: Any) -> tuple[dict[str, Any], str, Any]:
    """The fingerprint, its digest, and the configuration, from where scorers run."""
    made = _load(**scorer)
    return asdict(made.fingerprint), str(made.fingerprint), made.config


def _decode(table: pyarrow.Table, config: Any) -> pyarrow.Table:
    """A batch's clips to their frames: a list of bytes, and what they are in JSON; or a failure of this machine."""
    import pyarrow

    clips = _clips(table)
    failed = json.loads(table["failed"][0].as_py())
    failure, decoded = "", []
    try:
        decoded = [
            Decoded(None, error, known_identity(clip)) if error else decode_file(clip, partial(decode_for, config))
            for clip, error in zip(clips, failed, strict=True)
        ]
    except RunError as error:
        failure = str(error)
    frames = [None if found.frames is None else found.frames.numpy() for found in decoded]
    told = [
        (None if pixels is None else pixels.shape, found.error, found.file)
        for pixels, found in zip(frames, decoded, strict=True)
    ]
    pixels = pyarrow.array(
        [[None if one is None else one.tobytes() for one in frames]], pyarrow.list_(pyarrow.large_binary())
    )
    return pyarrow.table(
        {
            "first": table["first"],
            "clips": table["clips"],
            "told": [json.dumps(told)],
            "frames": pixels,
            "failure": [failure],
        }
    )


class _Scorer:
    """An actor: its model is loaded once. What fails in it is told as data, since Ray would try again for ever."""

    def __init__(self, **scorer: Any) -> None:
        self.scorer = _load(**scorer)

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        first, failure = table["first"][0].as_py(), table["failure"][0].as_py()
        scored = Scored(first, [], [])
        try:
            if not failure:
                scored = score_decoded(self.scorer, first, _clips(table), list(_decoded(table)))
        except Exception as error:
            failure = f"a scorer failed: {type(error).__name__}: {_short(error)}"
        return pyarrow.table(
            {
                "first": [first],
                "rows": [json.dumps(scored.rows)],
                "files": [json.dumps(scored.files)],
                "failure": [failure],
            }
        )


def _decoded(table: pyarrow.Table) -> Iterator[Decoded]:
    """What `_decode` packed; frames are views of the object store's memory."""
    told = json.loads(table["told"][0].as_py())
    for (shape, error, file), pixels in zip(told, table["frames"][0].values, strict=True):
        frames = None
        if shape is not None:
            with warnings.catch_warnings():  # it is not writable, and nobody writes
                warnings.simplefilter("ignore", UserWarning)
                frames = torch.frombuffer(pixels.as_buffer(), dtype=torch.uint8).view(shape)
        yield Decoded(frames, error, file)


def _clips(table: pyarrow.Table) -> list[Clip]:
    return [
        Clip(video, prompt, shard and Shard(*shard), folder)
        for video, prompt, shard, folder in json.loads(table["clips"][0].as_py())
    ]


def _load(*, model: str | None, calibration: Path | None, device: str, threads: int) -> VideoScorer:
    torch.set_num_threads(threads)
    return VideoScorer.from_pretrained(model, device=device, calibration=calibration)


def _decode_apart(clips: Sequence[Clip], index: int, config: Any) -> str | None:
    return decode_apart(clips, index, partial(decode_for, config)).error


def _cut(batches: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (batches[i : i + size] for i in range(0, len(batches), size))


def _reach(address: str | None) -> None:
    """Raises ConnectionError where nobody answers at HOST:PORT or ray://HOST:PORT: Ray itself would ask for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConnectionError(f"nobody answers: {error}") from error


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
