"""`DoverReward`: clips and prompts in, one reward each out, for the inside of a training loop."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dover_eval.forks import Lock
from dover_eval.models.dover import DOVERModel
from dover_eval.opinion import SCORE_NAMES
from dover_eval.scorer import VideoScorer
from dover_integrations.rewards.engine import Engine, RewardError, private_engine, shared_engine
from dover_integrations.rewards.reading import ClipReader, Failure, Item

logger = logging.getLogger(__name__)

CHECKPOINT_FRAMES = 4


class DoverReward:
    """Rewards of clips against their prompts; from any thread, any process, and with gradients if asked for.

    Args:
        model: a checkpoint's folder or repository, None for the embedded one: loaded at the first call, once a
            process, and shared by every reward with the same name, device, dtype and batch_size. Or a `DOVERModel` or
            `VideoScorer`, taken as it is, its calibration included; see there for what becomes of the model.
        weights: what the reward is made of, such as `{"Overall": 1.0}` (the default) or
            `{"Alignment": 0.5, "Temporal": 0.5}`: a plain weighted sum of scores in 1-5.
        layout: of the clips, such as "BTCHW", "BCTHW" or "TCHW"; a list of clips has the same letters without B.
        value_range: what black and white are: (0, 1) or (-1, 1) for floats, (0, 255) for uint8 and floats. Clips that
            do not fit are refused.
        mean, std: the reward is (weighted sum - mean) / std; for mixing it with rewards of another scale.
        nan_policy: what becomes of one item that fails (a file that cannot be decoded, frames that hold NaN): "raise"
            raises for the whole call, "nan" makes it NaN and logs why. A wrong shape, dtype or range always raises.
        device, dtype: as in `VideoScorer`.
        batch_size: clips that go through the model together; by default 8 on a GPU and 1 on a CPU.

    Attributes:
        reader: the `ClipReader` behind it, with `layout` and `value_range`.
    """

    def __init__(
        self,
        model: str | Path | DOVERModel | VideoScorer | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        layout: str,
        value_range: tuple[float, float],
        mean: float | None = None,
        std: float | None = None,
        nan_policy: Literal["raise", "nan"] = "raise",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
    ) -> None:
        if nan_policy not in ("raise", "nan"):
            raise ValueError(f'expected nan_policy "raise" or "nan", got "{nan_policy}"')
        if mean is not None and not math.isfinite(mean):
            raise ValueError(f"expected a finite mean, got {mean}")
        if std is not None and not 0 < std < math.inf:
            raise ValueError(f"expected a finite std above 0, got {std}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
        self.weights = check_weights(weights)
        if not self.heeds_prompt:
            logger.warning(
                "Alignment weighs nothing in %s: rewards that do not look at the prompt let a policy collapse to one "
                "clip for every prompt; give Alignment or Overall a weight above 0",
                self.weights,
            )
        self.reader = ClipReader(layout, value_range)
        self.mean = 0.0 if mean is None else float(mean)
        self.std = 1.0 if std is None else float(std)
        self.nan_policy = nan_policy
        self.batch_size = batch_size
        self.__name__ = "dover_reward"
        self._model = model
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        self._engine: Engine | None = None
        self._loading = Lock()

    def __call__(self, videos: Any, prompts: str | Sequence[str]) -> Tensor:
        """Rewards (B,) float32 on the CPU, without gradients.

        Args:
            videos: a tensor or an array in `layout`, or an iterable of clips or of video files.
            prompts: one a clip; a single text goes with every clip.

        Raises:
            ValueError: shape, dtype, range or number of prompts is not as said.
            RewardError: an item failed and `nan_policy` is "raise", or the model is offloaded.
        """
        return self.combine(self.scores(videos, prompts))

    def scores(self, videos: Any, prompts: str | Sequence[str]) -> Tensor:
        """The five scores in 1-5, (B,5) float32 on the CPU: columns `dover_eval.opinion.SCORE_NAMES`."""
        futures = self.submit(videos, prompts)
        try:
            return self._gather([future if isinstance(future, Failure) else future.result() for future in futures])
        finally:
            _cancel(futures)

    async def scores_async(self, videos: Any, prompts: str | Sequence[str]) -> Tensor:
        """`scores` for a coroutine: what others on the loop ask for meanwhile shares its batch."""
        if self._engine is None:
            await asyncio.to_thread(self.load)
        futures = self.submit(videos, prompts)
        found = asyncio.gather(*(asyncio.wrap_future(future) for future in futures if isinstance(future, Future)))
        try:
            rows = iter(await found)
        finally:
            _cancel(futures)
        return self._gather([next(rows) if isinstance(future, Future) else future for future in futures])

    def submit(self, videos: Any, prompts: str | Sequence[str]) -> list[Future[Tensor | Failure] | Failure]:
        """`scores` without waiting: a future of each row (5,), or of the reason why there is none."""
        items = self.reader.read(videos, prompts)
        futures = iter(self.load().submit([item for item in items if isinstance(item, Item)]))
        return [next(futures) if isinstance(item, Item) else item for item in items]

    def combine(self, scores: Tensor) -> Tensor:
        """The five scores (B,5) as rewards (B,): weighted, less `mean`, divided by `std`. Differentiable."""
        weights = scores.new_tensor([self.weights.get(name, 0.0) for name in SCORE_NAMES])
        # Not a matrix product, which the caller's autocast would round to half precision.
        return ((scores * weights).sum(dim=-1) - self.mean) / self.std

    def differentiable(
        self, frames: Any, prompts: str | Sequence[str], *, checkpoint_frames: int | None = CHECKPOINT_FRAMES
    ) -> Tensor:
        """Rewards (B,) on the device, with gradients to the pixels of `frames`.

        Each block of the backbone is recomputed in backward, `checkpoint_frames` frames at a time, so that backward
        holds the activations of one slice of one block; None keeps all activations, which is faster. The rewards are
        those of a plain call. Frames that hold NaN and files that cannot be decoded raise RewardError whatever
        `nan_policy` says, and so does a calibrated scorer: a calibration has no gradients.
        """
        return self.combine(self.differentiable_scores(frames, prompts, checkpoint_frames=checkpoint_frames))

    def differentiable_scores(
        self, frames: Any, prompts: str | Sequence[str], *, checkpoint_frames: int | None = CHECKPOINT_FRAMES
    ) -> Tensor:
        """The five scores (B,5) of `differentiable`."""
        if checkpoint_frames is not None and checkpoint_frames < 1:
            raise ValueError(f"expected checkpoint_frames of at least 1 or None, got {checkpoint_frames}")
        items = []
        for i, item in enumerate(self.reader.read(frames, prompts)):
            if isinstance(item, Failure):
                raise RewardError(f"videos[{i}]: {item.reason}")
            items.append(item)
        return self.load().score_with_gradient(items, checkpoint_frames)

    def load(self) -> Engine:
        """Load the model if this process has not yet."""
        with self._loading:
            if self._engine is None:
                settings = (self._device, self._dtype, self.batch_size)
                if isinstance(self._model, DOVERModel | VideoScorer):
                    self._engine = private_engine(self._model, *settings)
                else:
                    self._engine = shared_engine(self._model, *settings)
            return self._engine

    def to(self, device: str | torch.device) -> DoverReward:
        """Move the model, and with it every reward of this process that shares it; or say where to load it.

        A reward that loads later for the device that the model has left gets a model of its own there.
        """
        self._device = torch.device(device)
        if self._engine is not None:
            self._engine.to(self._device)
        return self

    def offload(self) -> None:
        """Free the device until `onload`, by this or any other reward that shares the model.

        Asking one of them for rewards meanwhile raises RewardError, also one that is made meanwhile.
        """
        self.load().offload()

    def onload(self) -> None:
        """Bring the model back after `offload`."""
        self.load().onload()

    @property
    def heeds_prompt(self) -> bool:
        """Whether the prompt weighs anything in the reward."""
        return any(self.weights.get(name, 0.0) > 0 for name in ("Overall", "Alignment"))

    @property
    def scorer(self) -> VideoScorer:
        """The scorer behind the rewards."""
        return self.load().scorer

    def _gather(self, rows: list[Tensor | Failure]) -> Tensor:
        for i, row in enumerate(rows):
            if not isinstance(row, Failure):
                continue
            if self.nan_policy == "raise":
                raise RewardError(f"videos[{i}]: {row.reason}")
            logger.warning("no reward for videos[%d]: %s", i, row.reason)
        nan = torch.full((len(SCORE_NAMES),), torch.nan, dtype=torch.float32, device="cpu")
        return torch.stack([nan if isinstance(row, Failure) else row for row in rows]) if rows else nan.new_empty(0, 5)

    def __getstate__(self) -> dict[str, Any]:
        """A checkpoint by its name travels as its name; a model that was handed in travels with its weights."""
        return self.__dict__ | {"_engine": None}

    def __repr__(self) -> str:
        model = self._model if isinstance(self._model, str | Path | None) else type(self._model).__name__
        return f"DoverReward({model or 'embedded'}, {self.weights}, {self.reader})"


def _cancel(futures: Sequence[Future[Tensor | Failure] | Failure]) -> None:
    """A call that ends early takes along all that has not begun, for which the next call would wait."""
    for future in futures:
        if isinstance(future, Future):
            future.cancel()


def check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """Weights by score name, as floats; of Overall alone by default."""
    weights = {"Overall": 1.0} if weights is None else {name: float(weight) for name, weight in weights.items()}
    unknown = sorted(set(weights) - set(SCORE_NAMES))
    if unknown or not all(math.isfinite(weight) for weight in weights.values()):
        raise ValueError(f"expected finite weights of some of {SCORE_NAMES}, got {weights}")
    if not any(weights.values()):
        raise ValueError(f"expected a weight other than 0, got {weights}")
    return weights
