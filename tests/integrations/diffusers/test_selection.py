"""`best_of` finds the best seed, saves what it says it saves, and changes nobody's frames."""

from __future__ import annotations

import contextlib
import json
import threading
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from dover_integrations.diffusers import best_of
from dover_integrations.diffusers.suspended import SuspendedCall

from dover_eval import VideoScorer
from dover_eval.opinion import SCORE_NAMES
from tests.integrations.diffusers.test_callback import _state
from tests.integrations.diffusers.test_latents import EIGHT
from tests.integrations.diffusers.tiny import Tiny, wan
from tests.integrations.diffusers.tiny_rest import text_to_video_sd

PROMPT = "a red bicycle in the rain"
STEPS = 10


def score(value: Any) -> Any:
    return SimpleNamespace(values=torch.full((1, 5), float(value)), names=SCORE_NAMES)


class Knowing:
    """Knows each seed's finished video, and gives a video the worth of the seed whose it is nearest to."""

    def __init__(self, tiny: Tiny, worth: dict[int, float], **changes: Any) -> None:
        self.finished = {seed: alone(tiny, seed, **changes) for seed in worth}
        self.worth = worth

    def score(self, videos: Any, prompts: Any, *, layout: str) -> Any:
        return score(self.worth[self.nearest(torch.as_tensor(videos))])

    def nearest(self, video: torch.Tensor) -> int:
        return min(self.finished, key=lambda seed: (self.finished[seed] - video).square().sum().item())


def alone(tiny: Tiny, seed: int, **changes: Any) -> torch.Tensor:
    """The frames that a seed gives by itself."""
    generator = torch.Generator().manual_seed(seed)
    return tiny(generator=generator, **{"num_inference_steps": STEPS} | changes)


def arguments(tiny: Tiny, **changes: Any) -> dict[str, Any]:
    kwargs = tiny.kwargs(**{"num_inference_steps": STEPS} | changes)
    del kwargs["generator"]
    kwargs.pop("prompt", None)
    return kwargs


@pytest.mark.parametrize("name", ["wan_unipc", "cogvideox", "hunyuan"])
@pytest.mark.parametrize("winner", [0, 3])
def test_a_scorer_that_knows_the_answer_finds_it(tiny: Any, name: str, winner: int) -> None:
    pipeline = tiny(name)
    worth = {seed: 5.0 if seed == winner else 1.0 + seed / 10 for seed in range(4)}
    best = best_of(pipeline.pipe, Knowing(pipeline, worth), PROMPT, 4, **arguments(pipeline))
    assert best.seed == winner
    assert best.scores.values[0, 4] == 5.0
    assert torch.equal(best.output.frames, alone(pipeline, winner))


@pytest.mark.parametrize(
    "name", [*EIGHT, "wan_unipc", "wan_dpm", "ltx_timestep", "ltx2", "kandinsky5", "cogvideox_dpm"]
)
def test_the_survivors_frames_are_those_of_its_seed_alone(tiny: Any, name: str) -> None:
    """Multistep schedulers, noise drawn on the way, and in-place latents included."""
    pipeline = tiny(name)
    by_mean = SimpleNamespace(score=lambda videos, prompts, layout: score(torch.as_tensor(videos).mean()))
    best = best_of(pipeline.pipe, by_mean, PROMPT, 3, keep=(2, 1), **arguments(pipeline))
    assert torch.equal(best.output.frames, alone(pipeline, best.seed))
    others = [seed for seed in range(3) if seed != best.seed]
    assert not any(torch.equal(best.output.frames, alone(pipeline, seed)) for seed in others)


@pytest.mark.parametrize(
    ("prune_at", "keep", "steps_done"),
    [
        ((0.3, 0.6), (0.5, 0.5), [10, 6, 3, 3]),
        ((0.5,), (1,), [10, 5, 5, 5]),
        ((0.2,), (0.7,), [10, 10, 10, 2]),
        ((0.1, 0.2, 0.9), (3, 2, 1), [10, 9, 2, 1]),
        ((), (), [10, 10, 10, 10]),
    ],
)
def test_the_count_of_saved_evaluations_is_right(
    tiny: Any, prune_at: Any, keep: Any, steps_done: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny("wan")
    knowing = Knowing(pipeline, {0: 4.0, 1: 3.0, 2: 2.0, 3: 1.0})
    calls, forward = [], pipeline.pipe.transformer.forward
    monkeypatch.setattr(pipeline.pipe.transformer, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    best = best_of(pipeline.pipe, knowing, PROMPT, 4, prune_at=prune_at, keep=keep, **arguments(pipeline))
    assert [candidate.evaluations for candidate in best.ledger] == [2 * steps for steps in steps_done]  # guided
    assert best.evaluations == len(calls) == 2 * sum(steps_done)
    assert best.saved == 4 * 2 * STEPS - len(calls)


def test_the_ledger_says_who_was_dropped_when_and_why(tiny: Any) -> None:
    pipeline = tiny("wan")
    knowing = Knowing(pipeline, {7: 1.0, 5: 4.0, 9: 3.0, 2: 2.0})
    best = best_of(pipeline.pipe, knowing, PROMPT, 4, seeds=[7, 5, 9, 2], **arguments(pipeline))
    assert [(candidate.seed, candidate.fate) for candidate in best.ledger] == [
        (7, "dropped"), (5, "won"), (9, "dropped"), (2, "dropped"),
    ]  # fmt: skip
    by_seed = {candidate.seed: candidate for candidate in best.ledger}
    assert by_seed[7].reason == "Overall 1.000 of the clean estimate after step 3 of 10: rank 4 of 4, 2 kept"
    assert by_seed[9].reason == "Overall 3.000 of the clean estimate after step 6 of 10: rank 2 of 2, 1 kept"
    assert by_seed[5].reason == "Overall 4.000 of the finished video: rank 1 of 1"
    assert [(j.steps_done, j.rank, j.of, j.kept) for j in by_seed[9].judgements] == [(3, 2, 4, True), (6, 2, 2, False)]
    assert [j.obtained for j in by_seed[5].judgements] == ["model output", "model output", "pipeline output"]
    assert by_seed[5].judgements[0].scores == dict.fromkeys(SCORE_NAMES, 4.0)
    rows = best.to_dicts()
    assert json.loads(json.dumps(rows)) == [json.loads(json.dumps(row)) for row in rows]
    assert "4 seeds, winner 5, 44 of 80 evaluations, 36 saved" in repr(best)
    assert "seed 7: dropped" in repr(best)


def test_a_finished_video_may_overturn_its_estimate(tiny: Any) -> None:
    pipeline = tiny("wan")
    knowing = Knowing(pipeline, {0: 2.0, 1: 1.0})
    estimates = knowing.score

    def changing(videos: Any, prompts: Any, *, layout: str) -> Any:
        finished = any(torch.equal(torch.as_tensor(videos), frames) for frames in knowing.finished.values())
        return score(knowing.nearest(videos)) if finished else estimates(videos, prompts, layout=layout)

    scorer = SimpleNamespace(score=changing)
    best = best_of(pipeline.pipe, scorer, PROMPT, 2, prune_at=(0.5,), keep=(2,), **arguments(pipeline))
    assert best.seed == 1
    assert [candidate.fate for candidate in best.ledger] == ["finished", "won"]
    assert torch.equal(best.output.frames, alone(pipeline, 1))


def test_ties_go_to_the_earlier_seed_and_what_is_no_number_comes_last(tiny: Any) -> None:
    pipeline = tiny("wan")
    tied = Knowing(pipeline, {0: float("nan"), 1: 2.0, 2: 2.0})
    assert best_of(pipeline.pipe, tied, PROMPT, 3, **arguments(pipeline)).seed == 1


def test_a_real_scorer_and_another_rank(tiny: Any, small_scorer: VideoScorer) -> None:
    pipeline = tiny("animatediff")
    best = best_of(
        pipeline.pipe, small_scorer, PROMPT, 2, rank_by="Aesthetic", prune_at=(), keep=(), **arguments(pipeline)
    )
    finished = [
        small_scorer.score(alone(pipeline, seed), PROMPT, layout="BTCHW").values[0, 2].item() for seed in (0, 1)
    ]
    assert best.seed == finished.index(max(finished))
    assert best.scores.values[0, 2].item() == pytest.approx(max(finished))


def test_the_users_pipeline_stays_as_it_was(tiny: Any) -> None:
    pipeline = tiny("wan_unipc")
    plain, before = pipeline(), _state(pipeline.pipe)
    scheduler, steps = pipeline.pipe.scheduler, pipeline.pipe.scheduler.timesteps.clone()
    best_of(pipeline.pipe, Knowing(pipeline, {0: 1.0, 1: 2.0}), PROMPT, 2, **arguments(pipeline))
    pipeline()
    assert pipeline.pipe.scheduler is scheduler
    assert torch.equal(scheduler.timesteps, steps)
    assert _state(pipeline.pipe) == before
    assert torch.equal(pipeline(), plain)


def test_models_that_are_offloaded_are_shared_all_the_same() -> None:
    """A seed that ends renews the offload hooks, under the feet of those that are suspended and of the user's pipe."""
    torch.manual_seed(0)
    pipeline = wan()
    knowing = Knowing(pipeline, {0: 1.0, 1: 3.0, 2: 2.0})
    plain = pipeline()
    pipeline.pipe.enable_model_cpu_offload(device="cpu")  # real hooks, on the only device that each machine has
    best = best_of(pipeline.pipe, knowing, PROMPT, 3, keep=(3, 2), **arguments(pipeline))
    assert best.seed == 1
    assert torch.equal(best.output.frames, knowing.finished[1])
    assert torch.equal(plain, pipeline())
    assert all(hasattr(model, "_hf_hook") for model in (pipeline.pipe.transformer, pipeline.pipe.vae))


def test_the_legacy_callback_serves_too(tiny: Any) -> None:
    pipeline = tiny("text_to_video_sd")
    best = best_of(pipeline.pipe, Knowing(pipeline, {0: 1.0, 1: 2.0}), PROMPT, 2, **arguments(pipeline))
    assert best.seed == 1
    assert torch.equal(best.output.frames, alone(pipeline, 1))
    assert best.saved > 0


def test_an_error_ends_every_suspended_call(tiny: Any) -> None:
    pipeline = tiny("wan")
    pipeline()  # a first call leaves its own things behind, and the thread of a progress bar
    before, threads, seen = _state(pipeline.pipe), threading.active_count(), []

    def fails_at_the_third(videos: Any, prompts: Any, *, layout: str) -> Any:
        seen.append(videos)
        if len(seen) == 3:
            raise RuntimeError("out of ideas")
        return score(1.0)

    with pytest.raises(RuntimeError, match="out of ideas"):
        best_of(pipeline.pipe, SimpleNamespace(score=fails_at_the_third), PROMPT, 4, **arguments(pipeline))
    assert threading.active_count() == threads
    assert _state(pipeline.pipe) == before


def test_without_a_clean_estimate_there_is_nothing_to_judge_by(tiny: Any) -> None:
    pipeline = tiny("skyreels_forcing")
    scorer = SimpleNamespace(score=lambda *a, **k: score(1.0))
    with (
        pytest.warns(UserWarning, match="not scored"),
        pytest.raises(RuntimeError, match=r"cannot judge after step 2: the pipeline's own UniPC.* has not stepped"),
    ):
        best_of(pipeline.pipe, scorer, PROMPT, 2, **arguments(pipeline))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n of at least 1"),
        ({"seeds": [1, 1]}, "n different seeds"),
        ({"prune_at": (0.5,)}, "as many keep as prune_at"),
        ({"prune_at": (0.6, 0.3)}, "to rise"),
        ({"prune_at": (0.5, 1.0)}, "within"),
        ({"keep": (0.5, 0)}, "expected keep"),
        ({"keep": (1.5, 1)}, "expected keep"),
        ({"latents": torch.zeros(1)}, "leave latents out"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "leave callback_on_step_end_tensor_inputs out"),
        ({"prompt_embeds": torch.zeros(2, 8, 32), "negative_prompt_embeds": torch.zeros(2, 8, 32)}, "call samples 2"),
        ({"generator": torch.Generator()}, "best_of sets generator itself"),
        ({"callback_on_step_end": print}, "best_of sets callback_on_step_end itself"),
        ({"num_videos_per_prompt": 2}, "one video a seed"),
        ({"output_type": "latent"}, "has no frames"),
        ({"num_inference_steps": 2}, "2 steps are too few to prune at"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_do_not_fit_are_refused(tiny: Any, changes: dict[str, Any], message: str) -> None:
    pipeline = tiny("wan")
    kwargs = {"n": 2} | arguments(pipeline) | changes
    with pytest.raises(ValueError, match=message):
        best_of(pipeline.pipe, SimpleNamespace(score=None), PROMPT, **kwargs)


def test_state_that_seeds_would_share_is_refused(tiny: Any) -> None:
    pipeline = tiny("hunyuan")
    pipeline.pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    try:
        with pytest.raises(ValueError, match="caches activations"):
            best_of(pipeline.pipe, SimpleNamespace(score=None), PROMPT, 2, **arguments(pipeline))
    finally:
        pipeline.pipe.transformer.disable_cache()
    pipeline = tiny("animatediff")
    pipeline.pipe.enable_free_init()
    try:
        with pytest.raises(ValueError, match="FreeInit"):
            best_of(pipeline.pipe, SimpleNamespace(score=None), PROMPT, 2, **arguments(pipeline))
    finally:
        pipeline.pipe.disable_free_init()


def test_autocast_reaches_the_suspended_call(tiny: Any) -> None:
    """torch keeps it by thread."""
    pipeline = tiny("wan")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = alone(pipeline, 1)
        best = best_of(
            pipeline.pipe, SimpleNamespace(score=lambda *a, **k: score(1)), PROMPT, 1, seeds=[1], **arguments(pipeline)
        )
    assert torch.equal(best.output.frames, cast)
    assert not torch.equal(cast, alone(pipeline, 1))


def test_a_dropped_call_ends_in_a_pipeline_that_catches_exceptions_too() -> None:
    class Catching:
        components: dict[str, Any] = {}  # noqa: RUF012
        _progress_bar_config = {"desc": "mine"}  # noqa: RUF012

        def set_progress_bar_config(self, **config: Any) -> None:
            self._progress_bar_config = config

        def __call__(self, callback_on_step_end: Any) -> str:
            for step in range(3):
                with contextlib.suppress(Exception):
                    callback_on_step_end(self, step, 0, {"latents": torch.zeros(1)})
            return "the end"

    call = SuspendedCall(Catching(), lambda *a: True, {})
    assert call.pipe._progress_bar_config == {"desc": "mine", "disable": True}
    call.advance()
    call.drop()
    assert call.output is None


def test_a_call_that_is_over_cannot_go_on(tiny: Any) -> None:
    pipeline = tiny("wan")
    call = SuspendedCall(pipeline.pipe, lambda *a: False, pipeline.kwargs())
    call.advance()
    assert call.done
    assert torch.equal(call.output.frames, pipeline())
    with pytest.raises(RuntimeError, match="this call is over"):
        call.advance()
    call.drop()


@pytest.mark.parametrize("name", ["PNDMScheduler", "HeunDiscreteScheduler"])
def test_a_scheduler_after_whose_timesteps_no_old_callback_is_called_is_refused_by_name(name: str) -> None:
    pipe = text_to_video_sd(getattr(diffusers, name)()).pipe
    message = f"TextToVideoSDPipeline does not call back after each timestep of {name}"
    with pytest.raises(ValueError, match=message):
        SuspendedCall(pipe, lambda *a: False, {})


def test_a_pipeline_without_callbacks_cannot_be_suspended() -> None:
    class Deaf:
        def __call__(self, prompt: str) -> None: ...

    with pytest.raises(ValueError, match="Deaf takes no callback"):
        SuspendedCall(Deaf(), lambda *a: False, {})


def test_a_seed_whose_frames_are_no_numbers_loses_and_the_others_go_on(tiny: Any, small_scorer: VideoScorer) -> None:
    pipeline = tiny("wan")
    decoded: list[int] = []

    def decode(latents: torch.Tensor) -> torch.Tensor:
        decoded.append(1)
        frames = latents.mean(1, keepdim=True).sigmoid().repeat(1, 3, 1, 1, 1).transpose(1, 2)
        return frames * torch.nan if len(decoded) == 2 else frames

    best = best_of(
        pipeline.pipe, small_scorer, PROMPT, 3, prune_at=(0.5,), keep=(2,), seeds=np.arange(3), decode=decode,
        **arguments(pipeline),
    )  # fmt: skip
    assert [candidate.fate == "dropped" for candidate in best.ledger] == [False, True, False]
    assert best.ledger[1].judgements[0].scores["Overall"] != best.ledger[1].judgements[0].scores["Overall"]
    assert json.loads(json.dumps(best.to_dicts(), allow_nan=False))[1]["judgements"][0]["scores"] == {"Overall": None}


def test_a_seed_whose_pictures_were_no_numbers_loses_too(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL has no NaN: its frames are black, and a scorer may like them."""
    pipeline, calls = tiny("wan"), []
    scheduler = type(pipeline.pipe.scheduler)
    step = scheduler.step

    def breaks_at_the_first_seed_s_end(self: Any, *given: Any, **named: Any) -> Any:
        calls.append(1)
        stepped = step(self, *given, **named)
        return (stepped[0] * torch.nan, *stepped[1:]) if len(calls) == STEPS else stepped

    monkeypatch.setattr(scheduler, "step", breaks_at_the_first_seed_s_end)
    dark = SimpleNamespace(score=lambda videos, *_, **__: score(-float(np.asarray(torch.as_tensor(videos[0])).mean())))
    best = best_of(pipeline.pipe, dark, PROMPT, 2, prune_at=(), keep=(), **arguments(pipeline) | {"output_type": "pil"})
    assert best.seed == 1
    assert np.isnan(best.ledger[0].judgements[-1].scores["Overall"])


def test_several_prompts_are_refused_and_numpy_fractions_are_fractions(tiny: Any) -> None:
    pipeline = tiny("wan")
    with pytest.raises(ValueError, match="the videos of one prompt, got a list"):
        best_of(pipeline.pipe, SimpleNamespace(score=None), [PROMPT, PROMPT], 2, **arguments(pipeline))
    judge = SimpleNamespace(score=lambda *_, **__: score(1))
    best = best_of(pipeline.pipe, judge, PROMPT, 4, prune_at=(0.5,), keep=np.float32([0.5]), **arguments(pipeline))
    assert [candidate.fate for candidate in best.ledger].count("dropped") == 2


def test_a_score_that_does_not_exist_is_refused_before_anything_is_sampled(small_scorer: VideoScorer) -> None:
    with pytest.raises(ValueError, match=r"expected rank_by of Traditional, .*got 'overall'"):
        best_of(wan().pipe, small_scorer, PROMPT, 2, rank_by="overall")


@pytest.mark.parametrize("prune_at", [(), (0.5,)])
def test_a_score_that_a_scorer_of_ones_own_does_not_give_is_refused_by_name(tiny: Any, prune_at: Any) -> None:
    pipeline = tiny("wan")
    scorer = SimpleNamespace(score=lambda *a, **k: score(1))
    settings = {"rank_by": "overall", "prune_at": prune_at, "keep": [1] * len(prune_at)}
    with pytest.raises(ValueError, match=r"expected one of Traditional, .*got 'overall'"):
        best_of(pipeline.pipe, scorer, PROMPT, 2, **settings, **arguments(pipeline))
