"""`predict_x0`: what the denoiser takes the clean latents to be, in the midst of sampling.

Noisy latents decode to static for the first half of the steps, and static scores as static. After each step there is
a clean estimate of the same shape, and there are four ways to it, tried in this order:

1. *scheduler*: UniPC and DPM-Solver++ keep it (`model_outputs[-1]`), and CogVideoX's DPM hands it to the pipeline.
2. *model output*: from what the denoiser said in this step and the latents after it.
3. *finite difference*: from the latents before and after the step, where the step was deterministic:
   `x' = x + (sigma' - sigma) v` tells v. It loses digits where steps are short, above all in half precision: see
   `CleanEstimate.error`.
4. none: `NoCleanEstimate`, with its reason. Nothing else is passed off as one.

With v the velocity, noise e, and a the cumulative alpha:
flow matching, Euler, EDM   x0 = x' + (sigma_clean - sigma') v         sigma_clean = 0, but 1 where sigmas are inverted
DDIM, e predicted           x0 = (x' - sqrt(1-a') e) / sqrt(a')
DDIM, v predicted           x0 = (sqrt(a) x' - sqrt(1-a') v) / (sqrt(a a') + sqrt((1-a)(1-a')))
DDIM, from a difference     x0 = (x' - r x) / (sqrt(a') - r sqrt(a))   r = sqrt((1-a') / (1-a))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from dover_integrations.diffusers.latents import Call, latent_decoder
from dover_integrations.diffusers.running import running_call


class NoCleanEstimate(RuntimeError):
    """At this step, with this scheduler, nothing tells the clean estimate."""


@dataclass(frozen=True, eq=False)
class CleanEstimate:
    """latents: of the callback's layout and dtype. method: how they were obtained.

    error: how far rounding of the latents' dtype can have moved an element, by its order of magnitude; 0 where the
    scheduler kept the estimate.
    """

    latents: Tensor
    method: str
    error: float


@torch.no_grad()
def predict_x0(
    pipe: Any,
    latents: Tensor,
    *,
    previous: Tensor | None = None,
    timestep: Any = None,
    call: Call | None = None,
) -> CleanEstimate:
    """The clean estimate of a step that has just been done.

    Args:
        latents: after the step, as a callback gets them.
        previous: before the step, that is what the callback got one step earlier; a copy, as some pipelines write
            their latents in place. Stochastic steps and finite differences need it.
        timestep: as the callback gets it; DDIM needs it.
        call: holds the denoiser's output under the name that the pipeline uses; by default the running call.

    Raises:
        NoCleanEstimate: with the reason.
    """
    call = running_call(pipe) if call is None else call
    decoder = latent_decoder(pipe)
    scheduler = pipe.scheduler
    if isinstance(scheduler, CogVideoXDPMScheduler):
        if (kept := call.get("old_pred_original_sample")) is None:
            raise NoCleanEstimate("CogVideoXDPMScheduler adds noise, and its estimate is seen within the call alone")
        return CleanEstimate(kept.to(latents.dtype), "scheduler", 0.0)
    if hasattr(scheduler, "step_index") and scheduler.step_index is None:
        raise NoCleanEstimate(f"the pipeline's own {type(scheduler).__name__} has not stepped: it steps copies of it")
    if isinstance(scheduler, UniPCMultistepScheduler | DPMSolverMultistepScheduler):
        return _from_slot(scheduler, latents, previous)
    output = None if decoder.model_output is None else call.get(decoder.model_output)
    if output is None and previous is None:
        raise NoCleanEstimate(
            f"{type(scheduler).__name__} keeps no estimate, and neither the denoiser's output nor the latents before "
            "this step are known"
        )
    if output is not None and output.shape[-1] < latents.shape[-1]:  # Kandinsky 5 steps the first channels alone
        latents = latents[..., : output.shape[-1]]
        previous = None if previous is None else previous[..., : output.shape[-1]]
    if output is not None:
        output = _in_layout_of(latents, output).float()
        if decoder.predicts_clean:
            return CleanEstimate(output.to(latents.dtype), "model output", 0.0)
    if isinstance(scheduler, DDIMScheduler | CogVideoXDDIMScheduler):
        return _from_ddim(scheduler, latents, previous, output, timestep, call)
    if isinstance(scheduler, _SIGMA_SCHEDULERS):
        return _from_sigmas(scheduler, latents, previous, output)
    raise NoCleanEstimate(f"no formula for {type(scheduler).__name__}")


_SIGMA_SCHEDULERS = (
    FlowMatchEulerDiscreteScheduler | EDMEulerScheduler | EulerDiscreteScheduler | EulerAncestralDiscreteScheduler
)


def _from_slot(scheduler: Any, latents: Tensor, previous: Tensor | None) -> CleanEstimate:
    name = type(scheduler).__name__
    slot = _in_layout_of(latents, scheduler.model_outputs[-1])
    by_unipc = isinstance(scheduler, UniPCMultistepScheduler)
    is_clean = scheduler.config.predict_x0 if by_unipc else scheduler.config.algorithm_type.endswith("++")
    if is_clean:
        return CleanEstimate(slot.to(latents.dtype), "scheduler", 0.0)
    if previous is None:
        raise NoCleanEstimate(f"{name} keeps the noise here, and the latents before this step are not known")
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index - 1].double())
    clean = (previous.float() - float(sigma) * slot.float()) / float(alpha)
    return CleanEstimate(clean.to(latents.dtype), "scheduler", _rounding(previous) / float(alpha))


def _from_sigmas(scheduler: Any, latents: Tensor, previous: Tensor | None, output: Tensor | None) -> CleanEstimate:
    """Schedulers on which a step moves the latents along a direction by a difference of sigmas."""
    config = scheduler.config
    sigma, sigma_next = (float(scheduler.sigmas[scheduler.step_index + k]) for k in (-1, 0))
    clean_sigma = 1.0 if config.get("invert_sigmas") else 0.0
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    stochastic = isinstance(scheduler, EulerAncestralDiscreteScheduler) or config.get("stochastic_sampling", False)
    kind = "epsilon" if flow else config.prediction_type  # a flow's velocity leads to x0 as noise does
    straight = kind == "epsilon" and not isinstance(scheduler, EDMEulerScheduler)
    if output is not None and straight and not stochastic:
        clean = latents.float() + (clean_sigma - sigma_next) * output
        before = latents - ((sigma_next - sigma) * output).to(latents.dtype)  # the step was rounded at this scale
        return CleanEstimate(clean.to(latents.dtype), "model output", max(_rounding(latents), _rounding(before)))
    if output is not None and previous is not None and not isinstance(scheduler, EDMEulerScheduler):
        if kind == "epsilon":
            clean = previous.float() + (clean_sigma - sigma) * output
        elif kind == "v_prediction":
            clean = previous.float() / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
        else:
            clean = output
        return CleanEstimate(clean.to(latents.dtype), "model output", _rounding(previous))
    if stochastic:
        raise NoCleanEstimate(
            f"{type(scheduler).__name__} adds noise in each step: the latents before it and the denoiser's output "
            "must both be known"
        )
    if previous is None:
        raise NoCleanEstimate(f"{type(scheduler).__name__} needs the latents before this step")
    if sigma == sigma_next:
        raise NoCleanEstimate(f"this step moves nothing: sigma stays at {sigma:.4g}")
    direction = (latents.float() - previous.float()) / (sigma_next - sigma)
    clean = latents.float() + (clean_sigma - sigma_next) * direction
    lever = (abs(clean_sigma - sigma) + abs(clean_sigma - sigma_next)) / abs(sigma - sigma_next)
    error = lever * max(_rounding(latents), _rounding(previous))
    return CleanEstimate(clean.to(latents.dtype), "finite difference", error)


def _from_ddim(
    scheduler: Any, latents: Tensor, previous: Tensor | None, output: Tensor | None, timestep: Any, call: Call
) -> CleanEstimate:
    if timestep is None:
        raise ValueError(f"{type(scheduler).__name__} needs timestep=, as the callback gets it")
    config = scheduler.config
    now = int(timestep)
    then = now - config.num_train_timesteps // scheduler.num_inference_steps
    alphas = scheduler.alphas_cumprod.double()
    a = float(alphas[now])
    a_next = float(alphas[then] if then >= 0 else scheduler.final_alpha_cumprod)
    root, noise, root_next, noise_next = a**0.5, (1 - a) ** 0.5, a_next**0.5, (1 - a_next) ** 0.5
    stochastic = isinstance(scheduler, DDIMScheduler) and bool(call.get("eta"))
    clips = isinstance(scheduler, DDIMScheduler) and (config.clip_sample or config.thresholding)
    kind = config.prediction_type
    if output is not None and previous is not None and (stochastic or clips) and not config.get("thresholding"):
        if kind == "epsilon":
            clean = (previous.float() - noise * output) / root
        else:
            clean = root * previous.float() - noise * output if kind == "v_prediction" else output
        if clips:
            clean = clean.clamp(-config.clip_sample_range, config.clip_sample_range)
        return CleanEstimate(clean.to(latents.dtype), "model output", _rounding(previous) / root)
    if output is not None and kind == "sample" and not clips:
        return CleanEstimate(output.to(latents.dtype), "model output", 0.0)
    if output is not None and kind == "epsilon" and not stochastic:  # as clipped as the step's own estimate was
        clean = (latents.float() - noise_next * output) / root_next
        return CleanEstimate(clean.to(latents.dtype), "model output", _rounding(latents) / root_next)
    if output is not None and kind == "v_prediction" and not stochastic and not clips:
        scale = root * root_next + noise * noise_next
        clean = (root * latents.float() - noise_next * output) / scale
        return CleanEstimate(clean.to(latents.dtype), "model output", _rounding(latents) * root / scale)
    if stochastic or clips:
        why = f"adds noise (eta={call['eta']})" if stochastic else "clips its estimate"
        raise NoCleanEstimate(
            f"{type(scheduler).__name__} {why}: the latents before it and the denoiser's output must be known"
        )
    if previous is None:
        raise NoCleanEstimate(f"{type(scheduler).__name__} needs the latents before this step")
    if a == a_next:
        raise NoCleanEstimate(f"this step moves nothing: alpha stays at {a:.4g}")
    ratio = noise_next / noise
    scale = root_next - ratio * root
    clean = (latents.float() - ratio * previous.float()) / scale
    error = (1 + ratio) / scale * max(_rounding(latents), _rounding(previous))
    return CleanEstimate(clean.to(latents.dtype), "finite difference", error)


def _in_layout_of(latents: Tensor, tensor: Tensor) -> Tensor:
    """What the scheduler saw, in the layout of the callback's latents.

    TextToVideoSD steps the frames of (B,C,F,H,W) as images (BF,C,H,W).
    """
    if tensor.ndim == 4 and latents.ndim == 5:
        batch, _, frames = latents.shape[:3]
        tensor = tensor.unflatten(0, (batch, frames)).transpose(1, 2)
    if tensor.shape != latents.shape:
        raise NoCleanEstimate(f"the step was done on {tuple(tensor.shape)} and the callback got {tuple(latents.shape)}")
    return tensor


def _rounding(latents: Tensor) -> float:
    """Half a unit in the last place of the largest element."""
    return float(latents.abs().max()) * torch.finfo(latents.dtype).eps / 2
