"""A scorer that serves one process: loaded once, fed through a queue, moved on and off its device."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import torch
from torch import Tensor

from dover_eval.config import usual_batch_size
from dover_eval.forks import Lock, renew_in_children
from dover_eval.models.dover import DOVERModel
from dover_eval.opinion import SCORE_NAMES
from dover_eval.scorer import VideoScorer, placement
from dover_eval.video.decode import VideoError
from dover_eval.video.sample import sample_clip
from dover_integrations.rewards.queue import MicroBatcher
from dover_integrations.rewards.reading import Failure, Item, to_unit


class RewardError(RuntimeError):
    """A reward that could not be given; the message names the item and the reason."""


class Tenancy:
    """What engines around one model share: the lock, and whether the model is offloaded. They move together."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.offloaded = False
        self.engines: WeakSet[Engine] = WeakSet()


_TENANCIES: WeakKeyDictionary[DOVERModel, Tenancy] = WeakKeyDictionary()


class Engine:
    """A `VideoScorer` behind a micro-batching queue; what every reward of one checkpoint in a process shares."""

    def __init__(self, scorer: VideoScorer, batch_size: int) -> None:
        self.scorer = scorer
        self.batch_size = batch_size
        self._tenancy = _TENANCIES.setdefault(scorer.model, Tenancy())
        self._tenancy.engines.add(self)
        if self._tenancy.offloaded:
            self.home = scorer.device
            scorer.to("cpu")
        else:
            self.to(scorer.device)
        renew_in_children(self)

    def renew(self) -> None:
        """A queue for a forked child, where the thread of its parent's is not, and what waits in it is not asked."""
        self._queue: MicroBatcher[Item, Tensor | Failure] = MicroBatcher(self.score, self.batch_size)

    def submit(self, items: Sequence[Item]) -> list[Future[Tensor | Failure]]:
        """Futures of the rows (5,), on the CPU; requests of other threads share the batches."""
        return self._queue.submit(items)

    def score(self, items: list[Item]) -> list[Tensor | Failure]:
        """Rows (5,) float32 on the CPU, without gradients, whatever modes the calling thread is in.

        `no_grad` and autocast belong to a thread; so both are set here, where the work is done.
        """
        rows: list[Tensor | Failure | None] = [None] * len(items)
        with self._tenancy.lock, torch.no_grad():
            self._check_loaded()
            frames, places = [], []
            for i, item in enumerate(items):
                if fault := self.scorer.model.text_encoder.fault(item.prompt):
                    rows[i] = Failure(fault)
                    continue
                try:
                    frames.append(self._prepare(item))
                    places.append(i)
                except VideoError as error:
                    rows[i] = Failure(str(error))
            if frames:
                mos = self.scorer.score_prepared(torch.stack(frames), [items[i].prompt for i in places])["mos"]
                for i, row in zip(places, mos, strict=True):
                    rows[i] = row if row.isfinite().all() else Failure("the model gave a score that is not finite")
        return [row for row in rows if row is not None]

    def score_with_gradient(self, items: list[Item], checkpoint_frames: int | None) -> Tensor:
        """(B,5) on the device, differentiable with respect to the clips. See `DoverReward.differentiable`."""
        if self.scorer.calibration is not None:
            raise RewardError("this scorer is calibrated, and a calibration has no gradients: use one without")
        rows = [torch.empty((0, len(SCORE_NAMES)), dtype=torch.float32, device=self.scorer.device)]
        with self._tenancy.lock:
            self._check_loaded()
            backbone = self.scorer.model.dover_model.backbone
            backbone.checkpoint_frames = checkpoint_frames
            try:
                for start in range(0, len(items), self.batch_size):
                    batch = items[start : start + self.batch_size]
                    frames = torch.stack([self._prepare_or_raise(start + i, item) for i, item in enumerate(batch)])
                    with self.scorer.computing():
                        rows.append(self.scorer.model(frames, [item.prompt for item in batch]).float())
            finally:
                backbone.checkpoint_frames = None
        return torch.cat(rows)

    def to(self, device: torch.device) -> None:
        """Make `device` the home of the model and bring it there."""
        with self._tenancy.lock:
            for engine in self._tenancy.engines:
                engine.scorer.to(device)
                engine.home = device
            self._tenancy.offloaded = False

    def offload(self) -> None:
        """Free the device: weights go to the CPU, and scoring is refused until `onload`."""
        with self._tenancy.lock:
            for engine in self._tenancy.engines:
                engine.scorer.to("cpu")
            self._tenancy.offloaded = True
            if self.home.type == "cuda":
                torch.cuda.empty_cache()

    def onload(self) -> None:
        """Back to the device."""
        self.to(self.home)

    def _check_loaded(self) -> None:
        if self._tenancy.offloaded:
            raise RewardError("the reward model is offloaded for all that share it: call onload() before asking")

    def _prepare(self, item: Item) -> Tensor:
        clip = item.clip
        if isinstance(clip, Path):
            return self.scorer.prepare(self.scorer.decode(clip))
        if item.ready is not None:
            torch.cuda.current_stream(clip.device).wait_event(item.ready)
        clip = sample_clip(clip, self.scorer.config)  # before anything is copied
        if clip.dtype != torch.uint8 and item.value_range != (0.0, 1.0):
            clip = to_unit(clip, item.value_range)
        return self.scorer.prepare(clip)

    def _prepare_or_raise(self, i: int, item: Item) -> Tensor:
        try:
            return self._prepare(item)
        except VideoError as error:
            raise RewardError(f"videos[{i}]: {error}") from error


_ENGINES: WeakValueDictionary[tuple[Any, ...], Engine] = WeakValueDictionary()
_LOADING = Lock()  # one engine at a time


def shared_engine(
    model: str | Path | None, device: torch.device | str | None, dtype: torch.dtype | None, batch_size: int | None
) -> Engine:
    """The engine of the checkpoint `model` in this process, loaded by whoever asks first."""
    device, dtype = placement(device, dtype)
    batch_size = batch_size or usual_batch_size(device.type)
    key = (model if model is None else str(model), device, dtype, batch_size)
    # Tensors made in a caller's inference mode would never give gradients, to whoever else shares the model.
    with _LOADING, torch.inference_mode(False):
        engine = _ENGINES.get(key)
        if engine is None or _place(engine.home) != _place(device):  # none yet, or it has been moved away
            scorer = VideoScorer.from_pretrained(model, device=device, dtype=dtype)
            engine = _ENGINES[key] = Engine(scorer, batch_size)
        return engine


def _place(device: torch.device) -> torch.device:
    """With its number: "cuda" and "cuda:0" are one place."""
    return torch.empty(0, device=device).device


def private_engine(
    model: DOVERModel | VideoScorer,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    batch_size: int | None,
) -> Engine:
    """An engine of a model that the caller has built."""
    if isinstance(model, VideoScorer):
        device, dtype = device or model.device, dtype or model.dtype
        scorer = VideoScorer(model.model, device=device, dtype=dtype, calibration=model.calibration)
    else:
        scorer = VideoScorer(model, device=device, dtype=dtype)
    return Engine(scorer, batch_size or usual_batch_size(scorer.device.type))
