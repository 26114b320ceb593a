"""`best_of`: the best of n videos of a prompt, without sampling all n to the end.

>>> best = best_of(pipe, scorer, prompt, n=8, prune_at=(0.3, 0.6), keep=(0.5, 0.5), num_inference_steps=50)
>>> best.output.frames, best.seed, best.saved
>>> print(best)

Successive halving: all seeds are sampled up to the first fraction of the steps, their clean estimates are scored, the
worse ones dropped, and so on; whoever is left is sampled to the end, and the best of the finished videos wins.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dover_eval.opinion import SCORE_NAMES
from dover_eval.scorer import VideoScorer
from dover_eval.wording import without_nan
from dover_integrations.diffusers.callback import DoverCallback, Scorer, python_number, step_at_fraction
from dover_integrations.diffusers.latents import FrameSelection
from dover_integrations.diffusers.output import score_pipeline_output
from dover_integrations.diffusers.running import number_of_steps
from dover_integrations.diffusers.suspended import SuspendedCall


@dataclass(frozen=True)
class Judgement:
    """A seed's standing at one moment: `steps_done` of `steps`, its scores by name, and how they were obtained."""

    steps_done: int
    steps: int
    scores: dict[str, float]
    obtained: str
    rank: int
    of: int
    kept: bool


@dataclass(frozen=True)
class Candidate:
    """A line of the ledger: a seed, its judgements, its fate and why, and the denoiser's evaluations it took."""

    seed: int
    fate: str
    reason: str
    evaluations: int
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, eq=False)
class BestOf:
    """What `best_of` gives back.

    output: of the winner's pipeline call. seed: the winner's. scores: of its finished video, as the scorer gave them.
    ledger: all n candidates, in the order of their seeds. evaluations: of the denoiser, in all. saved: how many more
    finishing all n would have taken.
    """

    output: Any
    seed: int
    scores: Any
    ledger: tuple[Candidate, ...]
    evaluations: int
    saved: int

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary a candidate, fit for JSON; a score that is no number is None."""
        return without_nan([asdict(candidate) for candidate in self.ledger])

    def __repr__(self) -> str:
        total = self.evaluations + self.saved
        lines = [
            f"BestOf({len(self.ledger)} seeds, winner {self.seed}, {self.evaluations} of {total} evaluations, "
            f"{self.saved} saved)"
        ]
        lines += [f"  seed {c.seed}: {c.fate}, {c.reason}; {c.evaluations} evaluations" for c in self.ledger]
        return "\n".join(lines)


@dataclass(eq=False)
class _Run:
    seed: int
    callback: DoverCallback
    call: SuspendedCall
    evaluations: int = 0
    judgements: list[Judgement] = field(default_factory=list)
    fate: str = ""
    reason: str = ""


def best_of(
    pipe: Any,
    scorer: Scorer,
    prompt: str,
    n: int,
    *,
    prune_at: Sequence[float] = (0.3, 0.6),
    keep: Sequence[int | float] = (0.5, 0.5),
    seeds: Sequence[int] | None = None,
    rank_by: str = "Overall",
    decode: Callable[[Tensor], Tensor] | None = None,
    decode_frames: FrameSelection | None = None,
    generator_device: str | torch.device = "cpu",
    **pipe_kwargs: Any,
) -> BestOf:
    """Sample n seeds, drop the worse ones on the way by the scores of their clean estimates, and return the best.

    The winner's frames are those of `pipe(prompt, generator=torch.Generator(device).manual_seed(seed),
    **pipe_kwargs)`: each seed has a call, a generator and schedulers of its own, and `pipe` itself stays untouched.
    A suspended seed keeps its latents and embeddings in memory, not a model.

    Args:
        prune_at: rising fractions of the steps, in (0,1), after which to drop.
        keep: for each of them, what is kept of those still there: a fraction (float, rounded up) or a number (int).
        seeds: n of them; by default 0 to n-1.
        rank_by: the score that decides; greater is better. A seed whose latents or frames hold NaN has none, and comes
            last (PIL's frames cannot hold NaN: with them, the latents tell).
        decode, decode_frames: for the estimates: see decode and frames of `latents_to_frames`.
        generator_device: of the seeds' generators.
        pipe_kwargs: of the pipeline's call. With embeddings (`prompt_embeds` and the like) among them the prompt goes
            to the scorer alone.

    Raises:
        ValueError: arguments that do not fit.
        RuntimeError: at one of these steps the scheduler has no clean estimate to judge by.
    """
    seeds = list(range(n)) if seeds is None else [int(seed) for seed in seeds]
    keep = [python_number(share) for share in keep]
    _check(pipe, prompt, n, seeds, prune_at, keep, pipe_kwargs)
    if isinstance(scorer, VideoScorer):
        scorer.check_prompts([prompt])
        if rank_by not in SCORE_NAMES:
            raise ValueError(f"expected rank_by of {', '.join(SCORE_NAMES)}, got {rank_by!r}")
    scorer = _Finite(scorer, rank_by)
    embedded = any(name.startswith("prompt_embeds") for name in pipe_kwargs)
    pipe_kwargs = {"prompt": None if embedded else prompt, **pipe_kwargs}
    runs: list[_Run] = []
    broken: set[int] = set()
    for seed in seeds:
        callback = DoverCallback(
            scorer, prompt, steps=[float(at) for at in prune_at], last_step=False, decode=decode, frames=decode_frames
        )
        generator = torch.Generator(generator_device).manual_seed(seed)
        on_step = _scored_by(callback, prune_at, partial(broken.add, seed))
        call = SuspendedCall(pipe, on_step, pipe_kwargs | {"generator": generator})
        runs.append(_Run(seed, callback, call))

    evaluations = _Evaluations(pipe)
    alive = list(runs)
    try:
        for share in keep:
            for run in alive:
                evaluations.of(run)
                run.call.advance()
            alive = _prune(alive, share, rank_by)
        winner, output, scores = _finish(alive, evaluations, prompt, scorer, broken)
    finally:
        evaluations.stop()
        for run in runs:
            run.call.drop()
    total = sum(run.evaluations for run in runs)
    return BestOf(
        output=output,
        seed=winner.seed,
        scores=scores,
        ledger=tuple(Candidate(r.seed, r.fate, r.reason, r.evaluations, tuple(r.judgements)) for r in runs),
        evaluations=total,
        saved=winner.evaluations * len(runs) - total,
    )


def _check(
    pipe: Any,
    prompt: str,
    n: int,
    seeds: list[int],
    prune_at: Sequence[float],
    keep: Sequence[int | float],
    kwargs: dict[str, Any],
) -> None:
    if not isinstance(prompt, str):
        raise ValueError(f"best_of samples the videos of one prompt, got a {type(prompt).__name__}: call it for each")
    if n < 1 or len(seeds) != n or len(set(seeds)) != n:
        raise ValueError(f"expected n of at least 1 and n different seeds, got n={n} and seeds {seeds}")
    if len(prune_at) != len(keep):
        raise ValueError(f"expected as many keep as prune_at, got {len(keep)} and {len(prune_at)}")
    if list(prune_at) != sorted(set(prune_at)) or not all(0 < at < 1 for at in prune_at):
        raise ValueError(f"expected prune_at to rise within (0,1), got {tuple(prune_at)}")
    for share in keep:
        if share <= 0 or (isinstance(share, float) and share > 1):
            raise ValueError(f"expected keep of fractions in (0,1] or numbers from 1, got {tuple(keep)}")
    for name in ("prompt", "generator", "callback_on_step_end", "callback", "callback_steps"):
        if name in kwargs:
            raise ValueError(f"best_of sets {name} itself")
    for name in ("latents", "callback_on_step_end_tensor_inputs"):
        if kwargs.get(name) is not None:
            raise ValueError(f"best_of draws each seed's latents and looks at them alone: leave {name} out")
    if any(kwargs.get(name, 1) != 1 for name in ("num_videos_per_prompt", "num_images_per_prompt")):
        raise ValueError("best_of samples one video a seed: leave num_videos_per_prompt at 1")
    if kwargs.get("output_type") == "latent":
        raise ValueError('finished videos must be scored: output_type="latent" has no frames')
    if getattr(pipe, "free_init_enabled", False):
        raise ValueError("FreeInit samples a seed several times over: disable it for best_of")
    for model in denoisers(pipe):
        if getattr(model, "is_cache_enabled", False):
            raise ValueError(f"{type(model).__name__} caches activations from step to step, and seeds would share them")


def _scored_by(
    callback: DoverCallback, prune_at: Sequence[float], on_broken: Callable[[], None]
) -> Callable[[Any, int, Any, Tensor], bool]:
    """Lets the callback score its steps, and suspends the call there. on_broken: for final latents that hold NaN."""

    def on_step(pipe: Any, step: int, timestep: Any, latents: Tensor) -> bool:
        count = number_of_steps(pipe)
        if step == 0:
            if len(latents) != 1:
                raise ValueError(f"best_of samples one video a seed, and the pipeline's call samples {len(latents)}")
            pauses = {step_at_fraction(at, count) for at in prune_at}
            if len(pauses) < len(prune_at) or count - 1 in pauses:
                raise ValueError(
                    f"{count} steps are too few to prune at {tuple(prune_at)}: two coincide, or one is the last"
                )
        if step == count - 1 and not latents.isfinite().all():
            on_broken()
        before = len(callback.history) if step else 0
        callback.observe(pipe, step, timestep, latents)
        if len(callback.history) == before:
            return False
        if (reason := callback.history[-1].error) is not None:
            raise RuntimeError(f"best_of cannot judge after step {step}: {reason}")
        return True

    return on_step


def _prune(alive: list[_Run], share: int | float, rank_by: str) -> list[_Run]:
    """Judge the suspended runs; the worse ones are dropped, ties going to the earlier seed."""
    latest = [run.callback.history[-1] for run in alive]
    values = [step.column(rank_by)[0].item() for step in latest]
    count = min(len(alive), max(1, math.ceil(share * len(alive)) if isinstance(share, float) else share))
    order = sorted(range(len(alive)), key=lambda i: (math.isnan(values[i]), -values[i], i))
    kept = sorted(order[:count])
    for rank, i in enumerate(order, start=1):
        run, step = alive[i], latest[i]
        steps = number_of_steps(run.call.pipe)
        named = dict(zip(step.names, step.values[0].tolist(), strict=True))
        judgement = Judgement(step.step + 1, steps, named, step.obtained, rank, len(alive), i in kept)
        run.judgements.append(judgement)
        if i not in kept:
            run.fate = "dropped"
            run.reason = (
                f"{rank_by} {values[i]:.3f} of the clean estimate after step {step.step + 1} of {steps}: "
                f"rank {rank} of {len(alive)}, {count} kept"
            )
            run.call.drop()
    return [alive[i] for i in kept]


def _finish(
    alive: list[_Run], evaluations: _Evaluations, prompt: str, scorer: _Finite, broken: set[int]
) -> tuple[_Run, Any, Any]:
    """Run those that are left to their end: (the best of them, its output, the scores of that)."""
    finals: list[tuple[_Run, dict[str, float]]] = []
    output = scores = None
    rank_by = scorer.rank_by
    for run in alive:
        evaluations.of(run)
        run.call.advance()
        finished = scorer.none if run.seed in broken else score_pipeline_output(run.call.output, prompt, scorer)
        if rank_by not in finished.names:
            raise ValueError(f"expected one of {', '.join(finished.names)}, got {rank_by!r}")
        values = torch.as_tensor(finished.values)[0].tolist()
        finals.append((run, dict(zip(finished.names, values, strict=True))))
        if _best_first(finals, rank_by)[0][0] is run:
            output, scores = run.call.output, finished
        run.call.output = None  # a loser's frames need not stay in memory
    finals = _best_first(finals, rank_by)
    winner = finals[0][0]
    if math.isnan(finals[0][1][rank_by]):
        warnings.warn(f"no seed has a finished video with a score: {winner.seed} is returned unscored", stacklevel=3)
    for rank, (run, named) in enumerate(finals, start=1):
        steps = number_of_steps(run.call.pipe)
        run.judgements.append(Judgement(steps, steps, named, "pipeline output", rank, len(finals), run is winner))
        run.fate = "won" if run is winner else "finished"
        run.reason = f"{rank_by} {named[rank_by]:.3f} of the finished video: rank {rank} of {len(finals)}"
    return winner, output, scores


def _best_first(finals: list[tuple[_Run, dict[str, float]]], rank_by: str) -> list[tuple[_Run, dict[str, float]]]:
    """Ties go to the earlier seed, and a score that is not a number comes last."""
    return sorted(finals, key=lambda final: (math.isnan(final[1][rank_by]), -final[1][rank_by]))


class _Finite:
    """A scorer that gives NaN for frames that hold NaN or infinity, where others raise: one broken seed of many."""

    def __init__(self, scorer: Scorer, rank_by: str) -> None:
        self._scorer, self.rank_by = scorer, rank_by
        self.none = SimpleNamespace(names=(rank_by,), values=torch.full((1, 1), torch.nan))

    def score(self, videos: Any, prompts: Sequence[str], *, layout: str) -> Any:
        clips = videos if isinstance(videos, list) else [videos]
        if all(bool(torch.as_tensor(clip).isfinite().all()) for clip in clips):
            scores = self._scorer.score(videos, prompts, layout=layout)
            if torch.as_tensor(scores.values).isfinite().all():
                return scores
            return SimpleNamespace(names=scores.names, values=scores.values)  # without errors, which a callback raises
        return self.none


def denoisers(pipe: Any) -> list[nn.Module]:
    """The models that a denoising step evaluates."""
    models = [getattr(pipe, name, None) for name in ("transformer", "transformer_2", "unet")]
    return [model for model in models if isinstance(model, nn.Module)]


class _Evaluations:
    """Counts the denoiser's evaluations for the run that is going on."""

    def __init__(self, pipe: Any) -> None:
        self._run: _Run | None = None
        self._handles = [model.register_forward_pre_hook(self._count) for model in denoisers(pipe)]

    def of(self, run: _Run) -> None:
        self._run = run

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _count(self, *_: Any) -> None:
        if self._run is not None:
            self._run.evaluations += 1
