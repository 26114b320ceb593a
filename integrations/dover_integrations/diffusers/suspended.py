"""A pipeline's call that can be suspended after a step, and gone on with or dropped later.

A pipeline has no way to be left in the middle and gone back to: what it needs lives in the variables of its call.
So the call runs in a thread of its own that hands back control at a suspended step; of all threads one runs at a
time, in an order that the caller decides. Everything is kept, multistep schedulers, audio latents and generators
included, and so the frames are those of an undisturbed call.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from diffusers.schedulers import PNDMScheduler, SchedulerMixin


class _Dropped(BaseException):
    """Unwinds a dropped call; no `except Exception` in a pipeline may catch it."""


class SuspendedCall:
    """One call of `pipe`, on a shallow copy of it with schedulers of its own: models are shared, state is not.

    Args:
        on_step: called as a callback on step end would be, with (pipe, step, timestep, latents); where it returns
            true the call is suspended.
        kwargs: of the pipeline's call.
    """

    def __init__(
        self, pipe: Any, on_step: Callable[[Any, int, Any, torch.Tensor], bool], kwargs: dict[str, Any]
    ) -> None:
        self._kwargs = kwargs | self._hook(pipe)
        self.pipe = copy.copy(pipe)
        for name, component in pipe.components.items():
            if isinstance(component, SchedulerMixin):
                setattr(self.pipe, name, copy.deepcopy(component))
        self.pipe.set_progress_bar_config(**{**getattr(pipe, "_progress_bar_config", {}), "disable": True})
        self.output: Any = None
        self.done = False
        self._on_step = on_step
        self._error: BaseException | None = None
        self._dropped = False
        self._go_on = threading.Semaphore(0)
        self._suspended = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def advance(self) -> None:
        """Run to the next suspended step, or to the end, when `done` is true and `output` is there.

        Raises what the call raised.
        """
        if self.done:
            raise RuntimeError("this call is over")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(_state_of_this_thread(),), daemon=True)
            self._thread.start()
        else:
            self._go_on.release()
        self._suspended.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def drop(self) -> None:
        """End the call where it stands, without its last decoding. A call that is over stays over."""
        if self._thread is not None and not self.done:
            self._dropped = True
            self._go_on.release()
            self._thread.join()
        self.done = True

    def _hook(self, pipe: Any) -> dict[str, Any]:
        parameters = inspect.signature(type(pipe).__call__).parameters
        if "callback_on_step_end" in parameters:
            return {"callback_on_step_end": self._step}
        if "callback" in parameters:
            if type(pipe.scheduler) is PNDMScheduler or pipe.scheduler.order != 1:
                name = type(pipe.scheduler).__name__
                raise ValueError(
                    f"{type(pipe).__name__} does not call back after each timestep of {name}: take another"
                )
            return {"callback": self._stand}
        raise ValueError(f"{type(pipe).__name__} takes no callback: its call cannot be suspended")

    def _step(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._stand(step, timestep, tensors["latents"])
        return tensors

    def _stand(self, step: int, timestep: Any, latents: torch.Tensor) -> None:
        if self._on_step(self.pipe, step, timestep, latents):
            self._suspended.release()
            self._go_on.acquire()
        if self._dropped:
            raise _Dropped

    def _run(self, state: AbstractContextManager[None]) -> None:
        try:
            with state:
                self.output = self.pipe(**self._kwargs)
        except _Dropped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.done = True
            self._suspended.release()


def _state_of_this_thread() -> AbstractContextManager[None]:
    """What torch keeps by thread, to be entered in another: autocast, and the current GPU and its stream."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    stream = torch.cuda.current_stream() if cuda else None
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    @contextmanager
    def enter() -> Iterator[None]:
        with torch.cuda.stream(stream), torch.autocast(device, dtype=dtype, enabled=enabled):
            yield

    return enter()
