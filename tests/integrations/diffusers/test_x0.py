"""Clean estimates are what follows from the denoiser's output, and nothing is passed off as one that does not."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from dover_integrations.diffusers import CleanEstimate, NoCleanEstimate, predict_x0

from tests.integrations.diffusers.tiny import STEPS, Tiny


@dataclass
class Seen:
    """Of each step: the clean latents recomputed from what the scheduler was given, and our estimates."""

    expected: list[torch.Tensor] = field(default_factory=list)
    with_output: list[CleanEstimate | NoCleanEstimate] = field(default_factory=list)
    by_difference: list[CleanEstimate | NoCleanEstimate] = field(default_factory=list)


def recomputed(scheduler: Any, index: int, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
    """By the definitions of the parametrisations, from the noisy sample before the step."""
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if hasattr(scheduler, "sigmas"):
        sigma = scheduler.sigmas[index].double()
        if kind == "flow_prediction":
            return sample.double() + (1 - sigma if scheduler.config.get("invert_sigmas") else -sigma) * output.double()
        if kind == "epsilon" and isinstance(scheduler, diffusers.DPMSolverMultistepScheduler):
            alpha = 1 / (sigma**2 + 1) ** 0.5
            return (sample.double() - sigma * alpha * output.double()) / alpha
        if kind == "epsilon":
            return sample.double() - sigma * output.double()
        return sample.double() / (sigma**2 + 1) - output.double() * sigma / (sigma**2 + 1) ** 0.5
    alpha = scheduler.alphas_cumprod[timestep].double()
    if kind == "epsilon":
        clean = (sample.double() - (1 - alpha) ** 0.5 * output.double()) / alpha**0.5
    elif kind == "v_prediction":
        clean = alpha**0.5 * sample.double() - (1 - alpha) ** 0.5 * output.double()
    else:
        clean = output.double()
    if isinstance(scheduler, diffusers.DDIMScheduler) and scheduler.config.clip_sample:  # CogVideoX's never clips
        clean = clean.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    return clean


def watch(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, scheduler: Any = None, **changes: Any) -> Seen:
    """Run the pipeline, listening at its scheduler's step."""
    pipe, seen, steps = tiny.pipe, Seen(), []
    if scheduler is not None:
        monkeypatch.setattr(pipe, "scheduler", scheduler)
    step = type(pipe.scheduler).step

    def listening(self: Any, model_output: Any, *args: Any, **kwargs: Any) -> Any:
        index = getattr(self, "step_index", None) or 0
        result = step(self, model_output, *args, **kwargs)
        if self is pipe.scheduler:
            if isinstance(self, diffusers.CogVideoXDPMScheduler | diffusers.EDMEulerScheduler):
                steps.append(result[1])
            else:
                steps.append(recomputed(self, index, model_output, *args[:2]))
        return result

    monkeypatch.setattr(type(pipe.scheduler), "step", listening)
    previous: list[torch.Tensor | None] = [None]

    def attempt(**known: Any) -> CleanEstimate | NoCleanEstimate:
        try:
            return predict_x0(pipe, previous=previous[0], **known)
        except NoCleanEstimate as reason:
            return reason

    def on_step(pipe: Any, number: int, timestep: Any, latents: torch.Tensor) -> None:
        if steps:
            clean = steps[-1]
            if clean.ndim == 4:  # TextToVideoSD steps frames as images
                clean = clean.unflatten(0, latents.shape[0:3:2]).transpose(1, 2)
            seen.expected.append(clean)
        seen.with_output.append(attempt(latents=latents, timestep=timestep))
        seen.by_difference.append(attempt(latents=latents, timestep=timestep, call={"eta": changes.get("eta", 0)}))
        previous[0] = latents.clone()

    if "text_to_video" in type(pipe).__module__ or type(pipe).__name__ == "TextToVideoSDPipeline":
        tiny(callback=lambda number, t, latents: on_step(pipe, number, t, latents), **changes)
    else:

        def callback(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(pipe, number, timestep, tensors["latents"])
            return tensors

        tiny(callback_on_step_end=callback, **changes)
    return seen


def assert_close(estimate: CleanEstimate | NoCleanEstimate, expected: torch.Tensor, relative: float) -> None:
    assert isinstance(estimate, CleanEstimate), estimate
    assert estimate.latents.shape == expected.shape
    error = (estimate.latents.double() - expected.double()).abs().max().item()
    assert error <= relative * expected.abs().max().item() + 4 * estimate.error


FLOW = ("wan", "ltx", "ltx2", "hunyuan", "mochi", "easyanimate", "motif", "kandinsky5", "cosmos2")


@pytest.mark.parametrize("name", FLOW)
def test_flow_matching_is_exact_from_the_output_at_every_step(
    tiny: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(tiny(name), monkeypatch)
    assert len(seen.with_output) == STEPS
    for estimate, expected in zip(seen.with_output, seen.expected, strict=True):
        assert_close(estimate, expected, 2e-6)
        assert estimate.method == "model output"


@pytest.mark.parametrize("name", FLOW)
def test_flow_matching_is_exact_from_the_difference_from_the_second_step_on(
    tiny: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(tiny(name), monkeypatch)
    assert isinstance(seen.by_difference[0], NoCleanEstimate)
    assert "latents before this step" in str(seen.by_difference[0])
    if name == "cosmos2":  # its last two sigmas are the same
        assert "moves nothing" in str(seen.by_difference.pop())
        seen.expected.pop()
    for estimate, expected in zip(seen.by_difference[1:], seen.expected[1:], strict=True):
        assert isinstance(estimate, CleanEstimate)
        clean = estimate.latents[..., : expected.shape[-1]]  # Kandinsky's conditioning channels stay as they are
        assert (clean - expected).abs().max() <= 2e-5 * expected.abs().max() + 4 * estimate.error
        assert estimate.error < 1e-3
        assert estimate.method == "finite difference"


@pytest.mark.parametrize("name", ["wan_unipc", "wan_dpm", "skyreels", "sana", "cosmos25"])
def test_unipc_and_dpm_solver_keep_the_estimate_themselves(
    tiny: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(tiny(name), monkeypatch)
    for estimate, expected in zip(seen.with_output, seen.expected, strict=True):
        assert_close(estimate, expected, 2e-6)
        assert estimate.method == "scheduler"
        assert estimate.error == 0


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++", "sde-dpmsolver++"])
def test_dpm_solver_that_keeps_noise_needs_the_latents_before_the_step(
    tiny: Any, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type=algorithm, final_sigmas_type="sigma_min")
    seen = watch(tiny("animatediff"), monkeypatch, scheduler)
    if algorithm == "dpmsolver":
        assert isinstance(seen.with_output[0], NoCleanEstimate)
    else:
        assert_close(seen.with_output[0], seen.expected[0], 2e-6)
    for estimate, expected in zip(seen.with_output[1:], seen.expected[1:], strict=True):
        assert_close(estimate, expected, 2e-5)


@pytest.mark.parametrize("name", ["animatediff", "latte", "allegro", "cogvideox", "cogvideox_15", "text_to_video_sd"])
def test_the_ddim_family_is_exact_both_ways(tiny: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(tiny(name), monkeypatch)
    assert len(seen.with_output) == STEPS
    for estimate, expected in zip(seen.with_output, seen.expected, strict=True):
        assert_close(estimate, expected, 1e-5)
        assert estimate.method == "model output"
    assert isinstance(seen.by_difference[0], NoCleanEstimate)
    for estimate, expected in zip(seen.by_difference[1:], seen.expected[1:], strict=True):
        assert_close(estimate, expected, 2e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [None, 1.0, 0.5], ids=["unclipped", "clipped", "clipped narrowly"])
def test_ddim_by_what_is_predicted_and_to_what_it_is_clipped(
    tiny: Any, kind: str, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = diffusers.DDIMScheduler(
        prediction_type=kind,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        rescale_betas_zero_snr=kind != "epsilon",
    )
    seen = watch(tiny("animatediff"), monkeypatch, scheduler)
    first = 1 if clip and kind != "epsilon" else 0
    for estimate, expected in zip(seen.with_output[first:], seen.expected[first:], strict=True):
        assert_close(estimate, expected, 2e-5)
    if first:
        assert isinstance(seen.with_output[0], NoCleanEstimate)
        assert "clips" in str(seen.with_output[0])
    if clip:
        assert all(isinstance(estimate, NoCleanEstimate) for estimate in seen.by_difference)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddim_with_noise_in_its_steps_needs_both(tiny: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False)
    seen = watch(tiny("animatediff"), monkeypatch, scheduler, eta=0.5)
    assert "eta=0.5" in str(seen.with_output[0])
    for estimate, expected in zip(seen.with_output[1:], seen.expected[1:], strict=True):
        assert_close(estimate, expected, 2e-5)
    assert all(isinstance(estimate, NoCleanEstimate) for estimate in seen.by_difference)


def test_dynamic_thresholding_has_none(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False, thresholding=True)
    seen = watch(tiny("animatediff"), monkeypatch, scheduler)
    assert all(isinstance(estimate, NoCleanEstimate) for estimate in seen.with_output + seen.by_difference)


def test_a_last_step_that_moves_nothing_has_no_difference(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing="linspace", clip_sample=False, set_alpha_to_one=False)
    seen = watch(tiny("animatediff"), monkeypatch, scheduler)
    assert "moves nothing" in str(seen.by_difference[-1])


def test_cogvideox_dpm_hands_its_estimate_to_the_pipeline(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(tiny("cogvideox_dpm"), monkeypatch)
    for estimate, expected in zip(seen.with_output, seen.expected, strict=True):
        assert_close(estimate, expected, 0)
    assert all(isinstance(estimate, NoCleanEstimate) for estimate in seen.by_difference)


def test_cosmos_predicts_the_clean_latents_itself(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its steps calls the scheduler twice; the second time with the guided estimate, which is what counts."""
    seen = watch(tiny("cosmos1"), monkeypatch)
    for estimate, expected in zip(seen.with_output, seen.expected, strict=True):
        assert_close(estimate, expected, 1e-6)
    for estimate, expected in zip(seen.by_difference[1:-1], seen.expected[1:-1], strict=True):
        assert_close(estimate, expected, 1e-4)
        assert (estimate.latents - expected).abs().max() <= estimate.error + 1e-5
    assert "moves nothing" in str(seen.by_difference[-1])  # its last two sigmas are the same


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_steps_with_fresh_noise_need_both_the_output_and_the_latents_before(
    tiny: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = diffusers.EulerAncestralDiscreteScheduler(prediction_type=kind)
    seen = watch(tiny("allegro"), monkeypatch, scheduler)
    assert "adds noise" in str(seen.with_output[0])
    for estimate, expected in zip(seen.with_output[1:], seen.expected[1:], strict=True):
        assert_close(estimate, expected, 1e-5)
    assert all(isinstance(estimate, NoCleanEstimate) for estimate in seen.by_difference)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_is_exact_both_ways(tiny: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(tiny("latte"), monkeypatch, diffusers.EulerDiscreteScheduler(prediction_type=kind))
    for which in (seen.with_output, seen.by_difference):
        for estimate, expected in zip(which[1:], seen.expected[1:], strict=True):
            assert_close(estimate, expected, 5e-5)


def test_stochastic_flow_matching_needs_both_too(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    seen = watch(tiny("wan"), monkeypatch, scheduler)
    assert isinstance(seen.with_output[0], NoCleanEstimate)
    for estimate, expected in zip(seen.with_output[1:], seen.expected[1:], strict=True):
        assert_close(estimate, expected, 2e-6)
    assert all(isinstance(estimate, NoCleanEstimate) for estimate in seen.by_difference)


@pytest.mark.parametrize("name", ["skyreels_forcing", "anyflow"])
def test_pipelines_without_a_formula_say_so(tiny: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusion forcing steps copies of its scheduler, one a latent frame; AnyFlow predicts mean velocities."""
    seen = watch(tiny(name), monkeypatch)
    assert all(isinstance(estimate, NoCleanEstimate) for estimate in seen.with_output)


def test_the_error_bound_holds_in_half_precision_and_tells_the_good_way_from_the_bad(
    tiny_in_half: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HunyuanVideo keeps bfloat16 latents: over short steps their difference says nothing, the output does."""
    seen = watch(tiny_in_half("hunyuan"), monkeypatch, num_inference_steps=20)
    by_output = [estimate for estimate in seen.with_output if isinstance(estimate, CleanEstimate)]
    by_difference = [estimate for estimate in seen.by_difference if isinstance(estimate, CleanEstimate)]
    assert len(by_output) == 20
    for estimate, expected in zip(by_output, seen.expected, strict=True):
        rounding = torch.finfo(torch.bfloat16).eps * expected.abs().max()  # of the estimate itself
        assert (estimate.latents.double() - expected).abs().max() <= 2 * estimate.error + rounding
    worst = [(e.latents.double() - x).abs().max().item() for e, x in zip(by_difference, seen.expected[1:], strict=True)]
    for error, estimate, expected in zip(worst, by_difference, seen.expected[1:], strict=True):
        assert error <= estimate.error * 1.1 + torch.finfo(torch.bfloat16).eps * expected.abs().max()
    assert max(worst[:5]) > 10 * max(estimate.error for estimate in by_output[:5])


def test_latents_and_scheduler_are_not_written_to(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents, slot = tensors["latents"], pipe.scheduler.model_outputs[-1]
        before, slot_before, state = latents.clone(), slot.clone(), copy.copy(pipe.scheduler.__dict__)
        predict_x0(pipe, latents, timestep=timestep)
        assert torch.equal(latents, before)
        assert torch.equal(slot, slot_before)
        assert pipe.scheduler.__dict__ == state
        return tensors

    tiny("wan_unipc")(callback_on_step_end=callback)
