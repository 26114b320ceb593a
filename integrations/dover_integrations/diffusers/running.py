"""What a pipeline's own call knows and tells no callback: its arguments and the output of its denoiser.

A callback on step end gets the pipeline, the step, the timestep and the latents. Packed latents do not tell their own
height and width, padding frames do not tell that they are padding, and no pipeline hands out the denoiser's output.
All of it stands in the frame of the pipeline's `__call__`, which is still running while its callback runs. Reading
it leaves nothing behind on the pipeline: no hook, no wrapped method, nothing to undo after an exception.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def running_call(pipe: Any) -> Mapping[str, Any]:
    """The variables of `pipe.__call__`, where this is called from within it, and an empty mapping elsewhere.

    They are references to the pipeline's tensors: use them at once, do not keep or write them.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            return frame.f_locals
        frame = frame.f_back  # type: ignore[assignment]
    return {}


def needed(call: Mapping[str, Any], name: str, pipe: Any) -> Any:
    """`call[name]`, or a ValueError that says how to pass it."""
    if call.get(name) is None:
        raise ValueError(
            f"{type(pipe).__name__}'s latents need the {name} of the pipeline's call: outside of a callback, "
            f"pass call={{{name!r}: ...}}"
        )
    return call[name]


def legacy_step(pipe: Any, step: int) -> tuple[int, int]:
    """What an old callback is told as `step`, counted from 0; and the number of steps.

    It hears nothing of the timesteps with which PNDM warms up, and once of each two that Heun's method takes.
    """
    call = running_call(pipe)
    warmup = max(needed(call, "num_warmup_steps", pipe), 0) // pipe.scheduler.order
    return step - warmup, needed(call, "num_inference_steps", pipe)


def number_of_steps(pipe: Any) -> int:
    """The number of denoising steps of the running call."""
    return getattr(pipe, "_num_timesteps", None) or len(pipe.scheduler.timesteps)
