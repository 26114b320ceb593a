"""`DoverCallback` scores while sampling, and the pipeline does not notice."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from dover_integrations.diffusers import DoverCallback, latents_to_frames

from dover_eval import VideoScorer
from dover_eval.opinion import SCORE_NAMES
from examples.tiny_wan import tiny_wan
from tests.integrations.diffusers.test_latents import EIGHT, REST
from tests.integrations.diffusers.tiny import STEPS, wan
from tests.integrations.diffusers.tiny_rest import text_to_video_sd

PROMPT = "a red bicycle in the rain"


class Judge:
    """A scorer that gives what it is told to, and remembers what it saw."""

    def __init__(self, give: Any = lambda frames: frames.mean((1, 2, 3, 4))) -> None:
        self.give = give
        self.seen: list[torch.Tensor] = []
        self.prompts: list[list[str]] = []

    def score(self, videos: torch.Tensor, prompts: Any, *, layout: str) -> Any:
        assert layout == "BTCHW"
        torch.rand(7)  # a scorer may draw random numbers
        self.seen.append(videos.clone())
        self.prompts.append(list(prompts))
        values = torch.as_tensor(self.give(videos)).float().reshape(-1, 1).repeat(1, 5)
        return SimpleNamespace(values=values, names=SCORE_NAMES)


@pytest.mark.parametrize("name", [name for name in EIGHT + REST if name != "sana_binned"])
@pytest.mark.parametrize("with_generator", [True, False], ids=["generator", "global-rng"])
def test_with_the_callback_on_the_output_is_bit_equal(tiny: Any, name: str, with_generator: bool) -> None:
    pipeline = tiny(name)
    source = {} if with_generator else {"generator": None}
    torch.manual_seed(3)
    plain = pipeline(**source)
    judge = Judge()
    callback = DoverCallback(judge, PROMPT, every=1, target="latents")
    torch.manual_seed(3)
    watched = pipeline(callback_on_step_end=callback, **source)
    assert torch.equal(plain, watched)
    assert len(callback.history) == STEPS
    last = judge.seen[-1]
    tolerance = 1 / 255 + 1e-5 if name in ("cosmos1", "cosmos2") else 1e-5  # their guardrail rounds
    assert (last - watched).abs().max() <= tolerance
    assert callback.history[-1].obtained == "final latents"


@pytest.mark.parametrize("name", EIGHT)
def test_clean_estimates_are_scored_on_the_way_and_leave_no_trace(tiny: Any, name: str) -> None:
    pipeline = tiny(name)
    plain, before = pipeline(), _state(pipeline.pipe)
    callback = DoverCallback(Judge(), PROMPT, every=1)
    generator = torch.Generator().manual_seed(0)
    reference = torch.Generator().manual_seed(0)
    pipeline(generator=reference)
    assert torch.equal(plain, pipeline(generator=generator, callback_on_step_end=callback))
    assert torch.equal(generator.get_state(), reference.get_state())
    assert _state(pipeline.pipe) == before
    assert [step.obtained for step in callback.history] == ["model output"] * (STEPS - 1) + ["final latents"]
    assert all(step.error is None for step in callback.history)


def _state(pipe: Any) -> dict[str, Any]:
    """What could be left behind: attributes, hooks, instance methods in front of class methods."""
    state: dict[str, Any] = {"pipe": sorted(pipe.__dict__)}
    for name, component in pipe.components.items():
        state[name] = sorted(getattr(component, "__dict__", {}))
        if isinstance(component, torch.nn.Module):
            for module in component.modules():
                hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
                state[name] += [len(hook) for hook in hooks if hook]
    return state


def test_a_real_scorer_scores_each_sample_of_each_prompt(small_scorer: VideoScorer) -> None:
    """On a Wan pipeline that reads prompts."""
    prompts = ["a cat on a roof", "waves at night"]
    callback = DoverCallback(small_scorer, prompts, every=2)
    size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": STEPS, "num_videos_per_prompt": 2}
    generator = torch.Generator().manual_seed(0)
    pipe = tiny_wan()
    frames = pipe(prompts, generator=generator, output_type="pt", callback_on_step_end=callback, **size).frames
    assert len(frames) == 4
    assert [step.step for step in callback.history] == [1, 3]
    assert callback.history[0].prompts == (prompts[0], prompts[0], prompts[1], prompts[1])
    expected = small_scorer.score(frames, callback.history[0].prompts, layout="BTCHW")
    assert torch.allclose(callback.scores.values, expected.values, atol=1e-4)
    assert callback.scores.fingerprint == small_scorer.fingerprint
    assert callback.history[-1].values.shape == (4, 5)


def test_without_guidance_the_same_holds(tiny: Any) -> None:
    judge = Judge()
    frames = tiny("cogvideox")(guidance_scale=1.0, callback_on_step_end=DoverCallback(judge, PROMPT))
    assert torch.allclose(judge.seen[-1], frames, atol=1e-5)


def test_steps_that_are_left_out_are_warned_of_and_lead_to_no_wrong_estimate(tiny: Any) -> None:
    callback = DoverCallback(Judge(), PROMPT, every=1)
    pipeline = tiny("text_to_video_sd")
    with pytest.warns(UserWarning, match=r"never scored, since the callback was not called after them: \[1\]"):
        pipeline(callback=callback.legacy(pipeline.pipe), callback_steps=2, eta=1.0)
    assert [(step.step, step.obtained) for step in callback.history] == [(0, "none"), (2, "none")]
    assert "the latents before it" in str(callback.history[1].error)


def test_a_score_that_the_scorer_itself_calls_an_error_is_one(tiny: Any) -> None:
    class Doubting(Judge):
        def score(self, videos: torch.Tensor, prompts: Any, *, layout: str) -> Any:
            scores = super().score(videos, prompts, layout=layout)
            scores.values[1:] = torch.nan
            return SimpleNamespace(**vars(scores), errors=(None, "the model gave a score that is not finite"))

    two = {"num_videos_per_prompt": 2}
    with pytest.raises(RuntimeError, match="not finite"):
        tiny("wan")(callback_on_step_end=DoverCallback(Doubting(), PROMPT), **two)
    callback = DoverCallback(Doubting(), PROMPT, on_error="warn")
    with pytest.warns(UserWarning, match="not finite"):
        tiny("wan")(callback_on_step_end=callback, **two)
    good, bad = json.loads(json.dumps(callback.to_dicts(), allow_nan=False))
    assert good["Overall"] is not None
    assert bad["Overall"] is None
    assert "not finite" in bad["error"]


def _count_evaluations(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    forward = pipe.transformer.forward
    monkeypatch.setattr(pipe.transformer, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    return calls


@pytest.mark.parametrize(
    ("when", "stopped_at"),
    [({}, 0), ({"stop_after": 3}, 2), ({"stop_after": 0.75}, 2), ({"stop_after": 4}, None)],
    ids=["at-once", "after-three-steps", "after-three-quarters", "only-at-the-end"],
)
def test_a_bad_sample_is_stopped(
    tiny: Any, when: dict[str, Any], stopped_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny("wan")
    calls = _count_evaluations(pipeline.pipe, monkeypatch)
    callback = DoverCallback(Judge(lambda frames: [1.0]), PROMPT, every=1, stop_below=2.0, **when)
    frames = pipeline(callback_on_step_end=callback)
    steps = STEPS if stopped_at is None else stopped_at + 1
    assert callback.stopped_at == stopped_at
    assert len(callback.history) == steps
    assert len(calls) == 2 * steps  # guided
    assert frames.shape == (1, 9, 3, 16, 16)
    assert torch.equal(pipeline(), pipeline())  # the next call runs to its end


def test_one_good_sample_keeps_the_batch_going(tiny: Any) -> None:
    callback = DoverCallback(Judge(lambda frames: [1.0, 3.0]), ["a", "b"], every=1, stop_below=2.0)
    tiny("wan")(2, callback_on_step_end=callback)
    assert callback.stopped_at is None
    assert len(callback.history) == STEPS


def test_no_score_is_no_reason_to_stop(tiny: Any) -> None:
    callback = DoverCallback(Judge(lambda frames: [float("nan")]), PROMPT, every=1, stop_below=2.0)
    tiny("wan")(callback_on_step_end=callback)
    assert callback.stopped_at is None


def _fails(frames: torch.Tensor) -> Any:
    raise RuntimeError("out of ideas")


def test_a_scorer_that_raises_ends_the_call_and_leaves_nothing_behind(tiny: Any) -> None:
    pipeline = tiny("wan")
    plain, before = pipeline(), _state(pipeline.pipe)
    with pytest.raises(RuntimeError, match="out of ideas"):
        pipeline(callback_on_step_end=DoverCallback(Judge(_fails), PROMPT, every=2))
    assert _state(pipeline.pipe) == before
    assert torch.equal(pipeline(), plain)


def test_a_scorer_that_raises_may_be_a_warning_and_a_record(tiny: Any) -> None:
    pipeline = tiny("wan")
    callback = DoverCallback(Judge(_fails), PROMPT, every=2, on_error="warn", stop_below=5.0)
    with pytest.warns(UserWarning, match="step 1 is not scored: RuntimeError: out of ideas"):
        frames = pipeline(callback_on_step_end=callback)
    assert torch.equal(frames, pipeline())
    assert [step.error for step in callback.history] == ["RuntimeError: out of ideas"] * 2
    assert callback.history[0].values.isnan().all()
    assert callback.scores is None
    assert callback.to_dicts()[0]["Overall"] is None
    json.dumps(callback.to_dicts(), allow_nan=False)


def test_scores_are_not_those_of_an_earlier_step_where_the_last_one_fails(tiny: Any) -> None:
    seen: list[Any] = []

    def tired(frames: Any) -> Any:
        seen.append(frames)
        return _fails(frames) if len(seen) == 2 else torch.full((len(frames), 5), 3.0)

    callback = DoverCallback(Judge(tired), PROMPT, every=2, on_error="warn")
    with pytest.warns(UserWarning, match="step 3 is not scored"):
        tiny("wan")(callback_on_step_end=callback)
    assert [step.error is None for step in callback.history] == [True, False]
    assert callback.scores is None


def test_one_callback_takes_one_call_at_a_time(tiny: Any) -> None:
    """Steps of two pipelines by turns would be read as one call's, and their clean estimates would be wrong."""
    callback, (one, other) = DoverCallback(Judge(), PROMPT, steps=[1]), (tiny("wan"), tiny("mochi"))

    def by_turns(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        callback(pipe, step, timestep, tensors)
        if step == 0:
            other(callback_on_step_end=callback)
        return tensors

    with pytest.raises(ValueError, match="one call at a time, got steps of two pipelines"):
        one(callback_on_step_end=by_turns)
    one(callback_on_step_end=callback)
    other(callback_on_step_end=callback)
    assert [step.error for step in callback.history] == [None, None]


def test_a_step_without_a_clean_estimate_is_said_and_not_scored(tiny: Any) -> None:
    judge = Judge()
    callback = DoverCallback(judge, PROMPT, every=1)
    with pytest.warns(UserWarning, match="step 0 is not scored: EulerAncestralDiscreteScheduler adds noise"):
        tiny("allegro_ancestral")(callback_on_step_end=callback)
    assert callback.history[0].error is not None
    assert [step.error for step in callback.history][1:] == [None] * (STEPS - 1)
    assert len(judge.seen) == STEPS - 1


def test_a_second_call_starts_clean(tiny: Any) -> None:
    pipeline = tiny("wan")
    callback = DoverCallback(Judge(), PROMPT, every=1, keep_frames=True)
    pipeline(callback_on_step_end=callback)
    first = callback.to_dicts()
    pipeline(callback_on_step_end=callback, num_inference_steps=2, generator=torch.Generator().manual_seed(9))
    assert [step.step for step in callback.history] == [0, 1]
    assert callback.to_dicts()[1]["Overall"] != first[1]["Overall"]


def test_a_call_after_one_that_was_stopped_or_failed_starts_clean(tiny: Any) -> None:
    pipeline = tiny("wan")
    judge = Judge(lambda frames: [1.0])
    callback = DoverCallback(judge, PROMPT, every=1, stop_below=2.0)
    pipeline(callback_on_step_end=callback)
    assert callback.stopped_at == 0
    judge.give = lambda frames: [3.0]
    pipeline(callback_on_step_end=callback)
    assert callback.stopped_at is None
    assert len(callback.history) == STEPS
    judge.give = _fails
    with pytest.raises(RuntimeError):
        pipeline(callback_on_step_end=callback)
    judge.give = lambda frames: [3.0]
    pipeline(callback_on_step_end=callback)
    assert len(callback.history) == STEPS


def test_beside_other_callbacks(tiny: Any) -> None:
    order = []

    class Other(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012

        def callback_fn(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            order.append(step)
            return tensors

    callback = DoverCallback(Judge(), PROMPT, every=1)
    frames = tiny("ltx")(callback_on_step_end=MultiPipelineCallbacks([Other(), callback]))
    assert torch.equal(frames, tiny("ltx")())
    assert order == list(range(STEPS))
    assert len(callback.history) == STEPS


def test_that_another_callback_interrupts_is_warned_of(tiny: Any) -> None:
    class Impatient(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012

        def callback_fn(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = step == 1
            return tensors

    callback = DoverCallback(Judge(), PROMPT, every=1)
    with pytest.warns(UserWarning, match="interrupted after step 1 of 4: what the pipeline decodes now is not scored"):
        tiny("wan")(callback_on_step_end=MultiPipelineCallbacks([Impatient(), callback]))
    assert [step.obtained for step in callback.history] == ["model output"] * 2


def test_the_legacy_callback_of_text_to_video_sd(tiny: Any) -> None:
    pipeline = tiny("text_to_video_sd")
    plain, judge = pipeline(), Judge()
    callback = DoverCallback(judge, PROMPT, every=2)
    assert torch.equal(plain, pipeline(callback=callback.legacy(pipeline.pipe)))
    assert [step.obtained for step in callback.history] == ["model output", "final latents"]
    assert torch.allclose(judge.seen[-1], plain, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be stopped"):
        DoverCallback(judge, PROMPT, every=1, stop_below=2.0).legacy(pipeline.pipe)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler"])
def test_the_legacy_callback_counts_steps_whatever_timesteps_the_scheduler_takes(name: str) -> None:
    pipeline = text_to_video_sd(getattr(diffusers, name)())
    judge = Judge()
    callback = DoverCallback(judge, PROMPT, every=3)
    with pytest.warns(UserWarning, match="step 2 is not scored: "):
        frames = pipeline(num_inference_steps=7, callback=callback.legacy(pipeline.pipe))
    assert [(step.step, step.obtained) for step in callback.history] == [(2, "none"), (5, "none"), (6, "final latents")]
    assert torch.allclose(judge.seen[-1], frames, atol=1e-5)


def test_each_scored_step_decodes_once_and_the_last_frames_can_be_kept(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, decoded = tiny("wan"), []
    expected = pipeline()
    decode = pipeline.pipe.vae.decode
    monkeypatch.setattr(pipeline.pipe.vae, "decode", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    callback = DoverCallback(Judge(), PROMPT, every=2, keep_frames=True)
    pipeline(callback_on_step_end=callback, output_type="latent")
    assert len(decoded) == 2
    assert torch.equal(callback.last_frames, expected)


def test_a_cheap_decoder_and_a_choice_of_frames(tiny: Any) -> None:
    judge = Judge()
    cheap = lambda z: z.mean(1, keepdim=True).sigmoid().repeat(1, 3, 1, 1, 1).transpose(1, 2)
    tiny("hunyuan")(callback_on_step_end=DoverCallback(judge, PROMPT, every=1, decode=cheap, frames=2))
    assert {tuple(frames.shape) for frames in judge.seen} == {(1, 2, 3, 2, 2)}


def test_the_record_of_a_step(tiny: Any) -> None:
    callback = DoverCallback(Judge(), PROMPT, every=2)
    tiny("wan")(callback_on_step_end=callback)
    rows = callback.to_dicts()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    first, last = rows
    assert first["step"] == 1
    assert 0 < first["sigma"] < 1
    assert last["sigma"] == 0
    assert 0 < last["timestep"] < first["timestep"] < 1000
    assert first["Prompt"] == PROMPT
    assert set(SCORE_NAMES) <= set(first)
    assert all(first[f"{name}_seconds"] > 0 for name in ("estimate", "decode", "score"))
    assert first["error"] is None
    with pytest.raises(ValueError, match=r"expected one of Traditional, .* got 'Charm'"):
        callback.history[0].column("Charm")


def test_the_plot_has_a_line_for_each_score_and_sample(tiny: Any, tmp_path: Any) -> None:
    callback = DoverCallback(Judge(), ["a", "b"], every=1)
    tiny("wan")(2, callback_on_step_end=callback)
    axes = callback.plot()
    assert len(axes.lines) == 2 * 5
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3, 4]
    axes = callback.plot(names=["Overall"])
    assert [list(line.get_ydata()) for line in axes.lines] == [
        pytest.approx([step.values[sample, 4].item() for step in callback.history]) for sample in (0, 1)
    ]
    axes.figure.savefig(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="nothing to plot"):
        DoverCallback(Judge(), PROMPT).plot()


@pytest.mark.parametrize(
    "name", ["wan_unipc", "cogvideox", "cogvideox_dpm", "mochi", "hunyuan", "animatediff", "ltx", "latte"]
)
def test_in_half_precision_every_step_is_scored_and_the_output_bit_equal(tiny_in_half: Any, name: str) -> None:
    pipeline, judge = tiny_in_half(name), Judge()
    plain = pipeline()
    callback = DoverCallback(judge, PROMPT, every=1)
    assert torch.equal(plain, pipeline(callback_on_step_end=callback))
    assert [step.error for step in callback.history] == [None] * STEPS
    assert torch.equal(judge.seen[-1], plain)


def test_free_init_begins_anew_with_each_of_its_rounds(tiny: Any) -> None:
    pipeline = tiny("animatediff")
    pipeline.pipe.enable_free_init(num_iters=2)
    try:
        plain = pipeline()
        judge = Judge()
        callback = DoverCallback(judge, PROMPT, every=2)
        assert torch.equal(plain, pipeline(callback_on_step_end=callback))
        assert [step.step for step in callback.history] == [1, 3]
        assert len(judge.seen) == 4
        assert torch.allclose(judge.seen[-1], plain, atol=1e-5)
    finally:
        pipeline.pipe.disable_free_init()


def test_offload_hooks_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    """`enable_model_cpu_offload`, with the CPU as the device to load onto: its hooks are real, its moves are not.

    On a GPU each scored step costs a round trip: decoding moves the VAE in and the transformer out, as seen here.
    """
    torch.manual_seed(0)
    pipeline = wan()
    plain, loads = pipeline(), []
    load = accelerate.hooks.CpuOffload.pre_forward

    def noting(hook: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        loads.append(type(module).__name__)
        return load(hook, module, *args, **kwargs)

    monkeypatch.setattr(accelerate.hooks.CpuOffload, "pre_forward", noting)
    pipeline.pipe.enable_model_cpu_offload(device="cpu")
    callback = DoverCallback(Judge(), PROMPT, steps=[1])
    assert torch.equal(plain, pipeline(callback_on_step_end=callback))
    transformer, vae = "WanTransformer3DModel", "AutoencoderKLWan"
    assert loads == [transformer] * 4 + [vae] + [transformer] * 4 + [vae, vae]
    assert all(hasattr(model, "_hf_hook") for model in (pipeline.pipe.transformer, pipeline.pipe.vae))
    assert torch.equal(plain, pipeline())


def test_latents_that_a_pipeline_writes_in_place_are_copied(tiny: Any) -> None:
    """Kandinsky 5 steps into one tensor: without a copy, the latents before the step would be those after it."""
    pipeline = tiny("kandinsky5")
    by_output, by_difference = Judge(), Judge()
    pipeline(callback_on_step_end=DoverCallback(by_output, PROMPT, every=1))
    callback = DoverCallback(by_difference, PROMPT, every=1)

    def blind(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        callback.observe(pipe, step, timestep, tensors["latents"], call={})
        return tensors

    with pytest.warns(UserWarning, match="step 0 is not scored"):
        pipeline(callback_on_step_end=blind)
    for ours, reference in zip(by_difference.seen, by_output.seen[1:], strict=True):
        assert torch.allclose(ours, reference, atol=1e-4)


def test_absolute_imports_still_mean_hugging_face() -> None:
    import dover_integrations.diffusers.callback as ours

    assert issubclass(ours.DoverCallback, diffusers.callbacks.PipelineCallback)
    assert diffusers.__name__ == "diffusers"
    assert latents_to_frames.__module__ == "dover_integrations.diffusers.latents"
