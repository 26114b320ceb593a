"""`DoverCallback`: quality scores of a video while it is being sampled.

>>> callback = DoverCallback(scorer, prompt, every=10)
>>> video = pipe(prompt, callback_on_step_end=callback).frames
>>> callback.scores.overall, callback.to_dicts()

It decodes the clean estimate of the steps that it is told to score, and the final latents after the last one. It
changes nothing that the pipeline makes: frames with it are bit-equal to frames without it.
"""

from __future__ import annotations

import math
import operator
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from diffusers.callbacks import PipelineCallback
from torch import Tensor

from dover_eval.models.text import check_prompts
from dover_eval.opinion import SCORE_NAMES
from dover_integrations.diffusers.history import StepScores, plot_history
from dover_integrations.diffusers.latents import FrameSelection, check_decodes, latents_to_frames
from dover_integrations.diffusers.running import legacy_step, number_of_steps, running_call
from dover_integrations.diffusers.x0 import CleanEstimate, NoCleanEstimate, predict_x0


class Scorer(Protocol):
    """A `VideoScorer`, or anything else that scores frames.

    `score` gets (B,T,3,H,W), float in [0,1], a prompt for each, and layout="BTCHW"; its result has `values` (B,N) and
    `names`, N of them. `check_prompts`, where there is one, gets the prompts before the first step.
    """

    def score(self, videos: Any, prompts: Sequence[str], *, layout: str) -> Any: ...


class DoverCallback(PipelineCallback):
    """Scores a pipeline's samples during sampling; alone or within `MultiPipelineCallbacks`.

    Args:
        scorer: a `VideoScorer`.
        prompt: one text, or one for each prompt of the call; `num_videos_per_prompt` repeats them as the pipeline
            does. Another number of prompts than the call's is an error, other texts are warned of.
        every: score each so many steps.
        steps: score these steps besides: indices from 0 (negative ones from the end), or fractions of all steps.
        target: "x0", the clean estimate; or "latents", the latents as they are, noise and all.
        last_step: score the final latents.
        stop_below: stop sampling when the Overall score of every sample is below this.
        stop_after: but not before so many steps are done: a number (int) or a fraction of all (float).
        decode, frames, batch_size: see `latents_to_frames`.
        on_error: "raise" lets an error of decoding or scoring out of the pipeline; "warn" records and warns, and
            sampling goes on.
        keep_frames: keep the last decoded frames in `last_frames`: with `output_type="latent"` they are the pipeline's
            frames, and nothing is decoded twice.

    Attributes:
        history: `StepScores` of each scored step of the latest call. A step without a clean estimate (`predict_x0`)
            has its reason there instead of scores.
        scores: what the scorer gave for the latest step that was due; None before, and where that step has an error.
        stopped_at: the step after which sampling was stopped, or None.
        last_frames: (B,T,3,H,W) of the latest scored step, with `keep_frames`.
    """

    tensor_inputs = ["latents"]  # noqa: RUF012  the base class has it a property; AnimateDiff knows no other input

    def __init__(
        self,
        scorer: Scorer,
        prompt: str | Sequence[str],
        *,
        every: int | None = None,
        steps: Iterable[int | float] | None = None,
        target: Literal["x0", "latents"] = "x0",
        last_step: bool = True,
        stop_below: float | None = None,
        stop_after: int | float | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        frames: FrameSelection | None = None,
        batch_size: int | None = None,
        on_error: Literal["raise", "warn"] = "raise",
        keep_frames: bool = False,
    ) -> None:
        super().__init__()
        if every is not None and (not hasattr(every, "__index__") or every < 1):
            raise ValueError(f"expected every to be at least 1, a whole number, got {every}")
        if target not in ("x0", "latents"):
            raise ValueError(f'expected target to be "x0" or "latents", got {target!r}')
        if on_error not in ("raise", "warn"):
            raise ValueError(f'expected on_error to be "raise" or "warn", got {on_error!r}')
        if stop_after is not None and stop_below is None:
            raise ValueError("stop_after says when stop_below begins to hold: it needs stop_below")
        if isinstance(stop_after, float) and not 0 <= stop_after <= 1:
            raise ValueError(f"expected stop_after to be a fraction in [0,1] or a number of steps, got {stop_after}")
        self.steps = () if steps is None else tuple(map(python_number, steps))
        if stop_below is not None and every is None and not self.steps:
            raise ValueError("stop_below needs every or steps: after the last step there is nothing to stop")
        self.scorer = scorer
        self.prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        getattr(scorer, "check_prompts", check_prompts)(self.prompts)
        self.every = None if every is None else operator.index(every)
        self.target = target
        self.last_step = last_step
        self.stop_below = stop_below
        self.stop_after = stop_after
        self.on_error = on_error
        self.keep_frames = keep_frames
        self._how_to_decode = {"decode": decode, "frames": frames, "batch_size": batch_size}
        self.reset()

    def reset(self) -> None:
        """Forget the latest call; each call of a pipeline begins with this."""
        self.history: list[StepScores] = []
        self.scores: Any = None
        self.stopped_at: int | None = None
        self.last_frames: Tensor | None = None
        self._previous: Tensor | None = None
        self._seen = -1  # the latest step that came
        self._pipe = 0  # the id of the pipeline that it came from

    def callback_fn(
        self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        if "latents" not in callback_kwargs:
            raise ValueError(
                "expected 'latents' among callback_on_step_end_tensor_inputs, got "
                f"{', '.join(callback_kwargs) or 'none'}"
            )
        self.observe(pipeline, step_index, timesteps, callback_kwargs["latents"])
        return callback_kwargs

    def legacy(self, pipeline: Any) -> Callable[[int, Any, Tensor], None]:
        """For pipelines with the old argument: `pipe(prompt, callback=dover_callback.legacy(pipe))`."""
        if self.stop_below is not None:
            raise ValueError(f"{type(pipeline).__name__} cannot be stopped: leave stop_below out")

        def observe(step: int, timestep: Any, latents: Tensor) -> None:
            step, count = legacy_step(pipeline, step)
            self.observe(pipeline, step, timestep, latents, step_count=count)

        return observe

    def to_dicts(self) -> list[dict[str, Any]]:
        """The history as a dictionary a step and sample, fit for JSON."""
        return [row for step in self.history for row in step.to_dicts()]

    def plot(self, ax: Any = None, names: Sequence[str] | None = None) -> Any:
        """Scores over steps, a line a score and sample; needs matplotlib. Returns its axes.

        Args:
            ax: axes to draw into; by default those of a new figure.
            names: the scores to draw; by default all.

        Raises:
            ValueError: no step has been scored.
        """
        return plot_history(self.history, ax, names)

    @torch.no_grad()
    def observe(
        self,
        pipe: Any,
        step: int,
        timestep: Any,
        latents: Tensor,
        *,
        call: Mapping[str, Any] | None = None,
        step_count: int | None = None,
    ) -> None:
        """Take in what a step left; score it where it is due. Loops of your own may call it, too, after every step.

        Args:
            step: from 0; step 0 begins a new history. Where steps are left out, a clean estimate that needs the
                latents before the step is not to be had, and a warning names those that were due.
            call: see `predict_x0` and `latents_to_frames`.
            step_count: the number of all steps, where the pipeline does not know it.

        Raises:
            ValueError: the step is not of the pipeline whose call began last, or what cannot work.
        """
        if step == 0:
            self.reset()
            self._pipe = id(pipe)
            call = running_call(pipe) if call is None else call
            # What cannot work fails now, and not when the first score is due.
            check_decodes(pipe, self._how_to_decode["decode"], call)  # type: ignore[arg-type]
            check_prompts_of_call(self.prompts, call, len(latents))
        count = step_count or number_of_steps(pipe)
        due = self._due_steps(count)
        if step == 0:
            self._warn_of_what_is_never_due(due, count)
        elif id(pipe) != self._pipe:
            raise ValueError("expected one call at a time, got steps of two pipelines: give each a callback of its own")
        elif step != self._seen + 1:
            self._previous = None
            if missed := sorted(due & set(range(self._seen + 1, step))):
                warnings.warn(f"never scored, since the callback was not called after them: {missed}", stacklevel=2)
        self._seen = step
        if self.last_step and step < count - 1 and getattr(pipe, "interrupt", False):
            told = f"interrupted after step {step} of {count}: what the pipeline decodes now is not scored"
            warnings.warn(told, stacklevel=2)
        if step in due:
            call = running_call(pipe) if call is None else call
            # A scorer, or a VAE, that draws random numbers must not shift those of the pipeline.
            with torch.random.fork_rng(devices=[latents.device] if latents.is_cuda else []):
                self._score(pipe, step, timestep, latents, call, is_last=step == count - 1)
            self._stop_where_bad(pipe, step, count)
        # A copy, since some pipelines write their latents in place; and only where the next step may need it.
        self._previous = latents.detach().clone() if step + 1 in due and self.target == "x0" else None

    def _warn_of_what_is_never_due(self, due: set[int], count: int) -> None:
        steps = set(range(count))
        if never := sorted(due - steps):
            warnings.warn(f"never scored, since there are {count} steps: {never}", stacklevel=3)
        elif not due and self.every is not None:
            warnings.warn(f"nothing is scored: of {count} steps none is due with every={self.every}", stacklevel=3)
        if self.stop_below is not None and not any(self._may_stop_after(step, count) for step in due & steps):
            late = "" if self.stop_after is None else f" that stop_after={self.stop_after} allows"
            warnings.warn(f"never stopped, since before the last of {count} steps none{late} is scored", stacklevel=3)

    def _due_steps(self, count: int) -> set[int]:
        due = set() if self.every is None else set(range(self.every - 1, count, self.every))
        for step in self.steps:
            if isinstance(step, float):
                due.add(step_at_fraction(step, count))
            else:
                due.add(step + count if step < 0 else step)
        return due | {count - 1} if self.last_step else due

    def _score(
        self, pipe: Any, step: int, timestep: Any, latents: Tensor, call: Mapping[str, Any], *, is_last: bool
    ) -> None:
        prompts = repeat_prompts(self.prompts, len(latents))
        record: dict[str, Any] = {"step": step, "timestep": float(torch.as_tensor(timestep).float().max())}
        record |= {"sigma": _sigma(pipe.scheduler), "prompts": prompts, "seconds": {}, "obtained": "none"}
        record |= {"names": SCORE_NAMES, "values": torch.full((len(prompts), len(SCORE_NAMES)), torch.nan)}
        clock = _Clock(latents.device, record["seconds"])
        self.scores = None
        try:
            with clock("estimate"):
                clean = self._clean(pipe, timestep, latents, call, is_last)
            record |= {"obtained": clean.method, "rounding_error": clean.error}
            with clock("decode"):
                frames = latents_to_frames(pipe, clean.latents, call=call, **self._how_to_decode)  # type: ignore[arg-type]
            if self.keep_frames:
                self.last_frames = frames
            with clock("score"):
                scores = self.scorer.score(frames, list(prompts), layout="BTCHW")
            record |= {"names": tuple(scores.names), "values": torch.as_tensor(scores.values).detach().float().cpu()}
            if reasons := [reason for reason in getattr(scores, "errors", None) or () if reason]:
                raise RuntimeError(reasons[0])
        except NoCleanEstimate as reason:  # no fault of anyone's, and no reason to lose the video
            record["error"] = str(reason)
            warnings.warn(f"step {step} is not scored: {reason}", stacklevel=2)
        except Exception as error:
            if self.on_error == "raise":
                self._previous = None
                raise
            record["error"] = f"{type(error).__name__}: {error}"
            warnings.warn(f"step {step} is not scored: {record['error']}", stacklevel=2)
        else:
            self.scores = scores
        self.history.append(StepScores(**record))

    def _clean(
        self, pipe: Any, timestep: Any, latents: Tensor, call: Mapping[str, Any], is_last: bool
    ) -> CleanEstimate:
        if is_last:  # what the pipeline itself is about to decode
            return CleanEstimate(latents, "final latents", 0.0)
        if self.target == "latents":
            return CleanEstimate(latents, "noisy latents", 0.0)
        return predict_x0(pipe, latents, previous=self._previous, timestep=timestep, call=call)

    def _stop_where_bad(self, pipe: Any, step: int, count: int) -> None:
        if self.stop_below is None or not self._may_stop_after(step, count) or self.history[-1].error is not None:
            return
        if bool((self.history[-1].column("Overall") < self.stop_below).all()):
            pipe._interrupt = True  # diffusers' own way; the next call of the pipeline sets it back
            self.stopped_at = step

    def _may_stop_after(self, step: int, count: int) -> bool:
        after = self.stop_after or 0
        return step < count - 1 and step + 1 >= (after * count if isinstance(after, float) else after)


def repeat_prompts(prompts: Sequence[str], batch: int) -> tuple[str, ...]:
    """Prompts of a batch, each repeated as `num_videos_per_prompt` has it: p0, p0, p1, p1."""
    if not prompts or batch % len(prompts):
        raise ValueError(f"expected prompts for {batch} samples, one each or as many for each, got {len(prompts)}")
    return tuple(prompt for prompt in prompts for _ in range(batch // len(prompts)))


def check_prompts_of_call(prompts: Sequence[str], call: Mapping[str, Any], batch: int) -> None:
    """Raises ValueError where `prompts` are not as many as the running call's, nor one for each of `batch` samples.

    Warns where they are others: who scores the text that an enhanced prompt was made from means it, and who forgot a
    callback of an earlier prompt does not. A call with embeddings does not tell.
    """
    own = repeat_prompts(prompts, batch)
    given = call.get("prompt")
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list | tuple):  # AnimateDiff also takes prompts by frame
        return
    if len(prompts) not in (len(given), batch):
        raise ValueError(
            f"expected {len(given)} prompts, as in the pipeline's call, or one a sample, got {len(prompts)}"
        )
    for mine, theirs in zip(own, repeat_prompts(given, batch), strict=True):
        if mine != theirs:
            told = f"scored against {mine[:60]!r}, while the pipeline was called with {theirs[:60]!r}"
            warnings.warn(told, stacklevel=3)
            return


def python_number(value: Any) -> Any:
    """A number of Python's of one of numpy's or torch's: whether it is a float decides what it means."""
    return value.item() if hasattr(value, "item") else value


def step_at_fraction(fraction: float, count: int) -> int:
    """The first of `count` steps with which at least `fraction` of them are done."""
    if not 0 < fraction <= 1:
        raise ValueError(f"expected a fraction of the steps in (0,1], got {fraction}")
    return math.ceil(round(fraction * count, 9)) - 1  # 0.3 * 10 is a little more than 3


def _sigma(scheduler: Any) -> float | None:
    index = getattr(scheduler, "step_index", None)
    sigmas = getattr(scheduler, "sigmas", None)
    return None if index is None or sigmas is None or index >= len(sigmas) else float(sigmas[index])


class _Clock:
    """Adds up wall-clock seconds by name, with the device's queue run empty at both ends."""

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        self._device = device
        self._seconds = seconds
        self._name = ""

    def __call__(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._name] = self._now() - self._start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
