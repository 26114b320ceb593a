"""What a `DoverCallback` is asked for: prompts and steps; what does not fit is said before it costs anything."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from dover_integrations.diffusers import DoverCallback
from dover_integrations.diffusers.callback import step_at_fraction
from dover_integrations.diffusers.latents import _REGISTRY

from dover_eval import VideoScorer
from examples.tiny_wan import tiny_wan
from tests.integrations.diffusers.test_callback import PROMPT, Judge, _count_evaluations

TWO = ["a cat on a roof", "waves at night"]


def _sample(prompt: Any, callback: DoverCallback, **call: Any) -> Any:
    """On a Wan pipeline that reads prompts."""
    size = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 1, "output_type": "latent"}
    return tiny_wan()(prompt, callback_on_step_end=callback, **size, **call)


def test_a_prompt_for_all_of_a_call_s_is_an_error_as_is_one_of_many_for_its_only_one() -> None:
    with pytest.raises(ValueError, match="expected 2 prompts, as in the pipeline's call, or one a sample, got 1"):
        _sample(TWO, DoverCallback(Judge(), TWO[0]))
    with pytest.raises(ValueError, match="expected 1 prompts, as in the pipeline's call, or one a sample, got 2"):
        _sample(TWO[0], DoverCallback(Judge(), TWO), num_videos_per_prompt=4)


def test_a_prompt_that_is_not_the_call_s_is_warned_of() -> None:
    callback = DoverCallback(Judge(), TWO[0])
    with pytest.warns(UserWarning, match="scored against 'a cat on a roof', while .* called with 'waves at night'"):
        _sample(TWO[1], callback)
    with pytest.warns(UserWarning, match="scored against 'a cat on a roof', while .* called with 'waves at night'"):
        _sample([TWO[0], TWO[1]], DoverCallback(Judge(), [TWO[0]] * 2))


def test_the_call_s_prompts_or_one_a_sample_raise_no_doubt() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _sample(TWO[0], DoverCallback(Judge(), TWO[0]), num_videos_per_prompt=2)
        _sample(TWO[0], DoverCallback(Judge(), [TWO[0]] * 2), num_videos_per_prompt=2)
        _sample(TWO, DoverCallback(Judge(), TWO))


def _evaluations_until_an_error(
    pipeline: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch, **call: Any
) -> int:
    calls = _count_evaluations(pipeline.pipe, monkeypatch)
    with pytest.raises(error, match=message):
        pipeline(**call)
    return len(calls)


def test_prompts_that_do_not_fit_the_batch_are_an_error_at_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"num_videos_per_prompt": 3, "callback_on_step_end": DoverCallback(Judge(), ["a", "b"])}
    assert _evaluations_until_an_error(tiny("wan"), ValueError, "prompts for 3 samples", monkeypatch, **call) == 2


def test_a_video_that_is_sampled_in_pieces_is_an_error_at_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"callback_on_step_end": DoverCallback(Judge(), PROMPT), "overlap_history": 5}
    message = r"17 frames are sampled in pieces of 9 \(base_num_frames\)"
    pipeline, long = tiny("skyreels_forcing"), {"num_frames": 17, "base_num_frames": 9}
    assert _evaluations_until_an_error(pipeline, ValueError, message, monkeypatch, **call, **long) == 2
    assert tiny("skyreels_forcing")(**call, num_frames=9, base_num_frames=9).shape[1] == 9


def test_an_unknown_pipeline_is_an_error_at_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_REGISTRY, "WanPipeline")
    call = {"callback_on_step_end": DoverCallback(Judge(), PROMPT)}
    assert _evaluations_until_an_error(tiny("wan"), NotImplementedError, "WanPipeline", monkeypatch, **call) == 2


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({}, [9]),
        ({"every": 3}, [2, 5, 8, 9]),
        ({"every": 3, "last_step": False}, [2, 5, 8]),
        ({"steps": [1, -2]}, [1, 8, 9]),
        ({"steps": [0.3, 0.5, 1.0]}, [2, 4, 9]),
        ({"steps": [4], "every": 5}, [4, 9]),
        ({"steps": [99], "last_step": False}, []),
    ],
    ids=lambda value: str(value),
)
def test_which_steps_are_scored(tiny: Any, when: dict[str, Any], expected: list[int]) -> None:
    callback = DoverCallback(Judge(), PROMPT, **when)
    tiny("wan")(num_inference_steps=10, callback_on_step_end=callback)
    assert [step.step for step in callback.history] == expected


@pytest.mark.parametrize(
    ("fraction", "count", "step"), [(0.3, 10, 2), (0.1, 10, 0), (0.001, 10, 0), (1.0, 7, 6), (0.5, 5, 2)]
)
def test_a_fraction_is_the_first_step_with_which_it_is_reached(fraction: float, count: int, step: int) -> None:
    assert step_at_fraction(fraction, count) == step


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_fraction_outside_of_the_call_is_an_error(tiny: Any, fraction: float) -> None:
    with pytest.raises(ValueError, match=r"fraction of the steps in \(0,1\]"):
        tiny("wan")(callback_on_step_end=DoverCallback(Judge(), PROMPT, steps=[fraction]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every to be at least 1"),
        ({"every": 2.5}, "every to be at least 1"),
        ({"target": "noise"}, "target"),
        ({"on_error": "ignore"}, "on_error"),
        ({"stop_after": 3}, "needs stop_below"),
        ({"stop_below": 2.0}, "stop_below needs every or steps"),
        ({"stop_below": 2.0, "every": 1, "stop_after": 2.0}, "fraction in"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DoverCallback(Judge(), PROMPT, **arguments)


def test_an_empty_prompt_is_refused_before_anything_is_sampled() -> None:
    with pytest.raises(ValueError, match="expected a text for prompt 1, got ''"):
        DoverCallback(Judge(), ["a cat", ""])


def test_a_prompt_that_the_scorer_cannot_read_is_refused_before_anything_is_sampled(small_scorer: VideoScorer) -> None:
    with pytest.raises(ValueError, match="knows no word of the prompt 'แมวสีแดง'"):
        DoverCallback(small_scorer, ["a cat", "แมวสีแดง"])


def test_steps_beyond_the_call_are_warned_of_and_an_array_of_steps_will_do(tiny: Any) -> None:
    callback = DoverCallback(Judge(), PROMPT, steps=np.array([0, 100]), last_step=False)
    with pytest.warns(UserWarning, match=r"never scored, since there are \d+ steps: \[100\]"):
        tiny("wan")(callback_on_step_end=callback)
    assert [step.step for step in callback.history] == [0]


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ({"every": 10, "last_step": False}, "nothing is scored: of 4 steps none is due with every=10"),
        ({"every": 10, "stop_below": 2.0}, "never stopped, since before the last of 4 steps none is scored"),
        (
            {"every": 2, "stop_below": 2.0, "stop_after": 3},
            "never stopped, since before the last of 4 steps none that stop_after=3 allows is scored",
        ),
    ],
)
def test_a_call_too_short_for_what_is_asked_is_warned_of(tiny: Any, when: dict[str, Any], words: str) -> None:
    with pytest.warns(UserWarning, match=words):
        tiny("wan")(callback_on_step_end=DoverCallback(Judge(), PROMPT, **when))


def test_latents_must_be_among_the_tensors_that_a_function_passes_on(tiny: Any) -> None:
    callback = DoverCallback(Judge(), PROMPT)
    with pytest.raises(ValueError, match="expected 'latents' among callback_on_step_end_tensor_inputs, got prompt_em"):
        tiny("wan")(
            callback_on_step_end=lambda *given: callback(*given), callback_on_step_end_tensor_inputs=["prompt_embeds"]
        )
