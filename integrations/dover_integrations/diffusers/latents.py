"""`latents_to_frames`: any moment's latents as frames, decoded as the pipeline itself would decode them.

>>> frames = latents_to_frames(pipe, latents)                        # within a callback
>>> frames = latents_to_frames(pipe, latents, frames=4)              # the first four latent frames
>>> frames = latents_to_frames(pipe, latents, decode=tiny_vae)       # a cheap decoder of your own

The pipelines' own recipes are in `decoders`; `register_latent_decoder` adds one.
"""

from __future__ import annotations

import operator
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dover_integrations.diffusers.running import running_call

Call: TypeAlias = Mapping[str, Any]
FrameSelection: TypeAlias = int | slice | Sequence[int]


def _as_they_are(pipe: Any, tensor: Tensor, call: Call) -> Tensor:
    return tensor


def _decode(pipe: Any, z: Tensor, call: Call, rows: slice) -> Tensor:
    return pipe.vae.decode(z, return_dict=False)[0]


def _any_call(pipe: Any, call: Call) -> None:
    pass


@dataclass(frozen=True)
class LatentDecoder:
    """How one kind of pipeline turns latents into pixels, in the order in which it does it.

    `call` holds the variables of the pipeline's running call, or what the user passed instead.

    unpack: the callback's latents as (B,C,F,H,W), still in the denoiser's scale.
    to_vae: these in the scale and dtype that the VAE decodes.
    decode: rows `rows` of these as pixels (b,3,T,H,W) in [-1,1].
    finish: the crop or resize that comes last, on (B,3,T,H,W).
    model_output: the name, in the pipeline's call, of what it hands to `scheduler.step`; None if there is none that
        a clean estimate could use.
    predicts_clean: whether that output is the clean estimate itself.
    check: raises ValueError for a running call whose video is not in its callbacks' latents.
    """

    unpack: Callable[[Any, Tensor, Call], Tensor] = _as_they_are
    to_vae: Callable[[Any, Tensor, Call], Tensor] = _as_they_are
    decode: Callable[[Any, Tensor, Call, slice], Tensor] = _decode
    finish: Callable[[Any, Tensor, Call], Tensor] = _as_they_are
    model_output: str | None = "noise_pred"
    predicts_clean: bool = False
    check: Callable[[Any, Call], None] = _any_call


_REGISTRY: dict[str, LatentDecoder] = {}


def register_latent_decoder(
    pipeline: type | str, decoder: LatentDecoder | Callable[[Any, Tensor, Call], Tensor]
) -> LatentDecoder:
    """Teach `latents_to_frames` a pipeline class, given itself or by name; its subclasses inherit the decoder.

    Args:
        decoder: a `LatentDecoder`; or a function `(pipe, latents, call) -> z` that makes of a callback's latents the
            (B,C,F,H,W) that `pipe.vae.decode` takes.
    """
    if not isinstance(decoder, LatentDecoder):
        decoder = LatentDecoder(unpack=decoder, model_output=None)
    _REGISTRY[pipeline if isinstance(pipeline, str) else pipeline.__name__] = decoder
    return decoder


def latent_decoder(pipe: Any) -> LatentDecoder:
    """The decoder of `pipe`'s class, or of the nearest class that it derives from.

    Raises:
        NotImplementedError: none is registered.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in _REGISTRY:
            return _REGISTRY[cls.__name__]
    raise NotImplementedError(
        f"no latent decoder for {type(pipe).__name__}; known are {', '.join(sorted(_REGISTRY))}. Register one with "
        "dover_integrations.diffusers.register_latent_decoder(type(pipe), function), where "
        "function(pipe, latents, call) gives the (B,C,F,H,W) that pipe.vae.decode takes"
    )


def check_decodes(pipe: Any, decode: Callable[[Tensor], Tensor] | None, call: Call) -> None:
    """Raises NotImplementedError as `latent_decoder` does, and ValueError where `pipe` lacks what decodes latents, or
    the latents of `call` are not the video."""
    decoder = latent_decoder(pipe)
    decoder.check(pipe, call)
    needs = ("vae",) * (decoder.decode is _decode) + ("video_processor",)
    if decode is None and (lacking := [name for name in needs if getattr(pipe, name, None) is None]):
        raise ValueError(f"{type(pipe).__name__} has no {lacking[0]} to decode latents with: add it, or pass decode=")


@torch.no_grad()
def latents_to_frames(
    pipe: Any,
    latents: Tensor,
    *,
    frames: FrameSelection | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    batch_size: int | None = None,
    call: Call | None = None,
) -> Tensor:
    """Latents, as a callback gets them, as frames (B,T,3,H,W), float in [0,1].

    Args:
        latents: clean ones, or a clean estimate (`predict_x0`); noisy latents decode to static. Never written to.
        frames: decode some latent frames alone: the first so many (int), a slice, or indices. They are decoded as if
            they were the whole clip: exact for a start of the clip where no part of the VAE looks ahead in time (Wan's
            and Mochi's), and for any choice where it decodes each frame alone; near, elsewhere. CogVideoX's decodes
            two latent frames at a time behind an odd one, so take an odd number there.
        decode: a decoder of your own instead of the pipeline's VAE: it gets (B,C,F,H,W) in the denoiser's scale and
            returns (B,T,3,H,W), float in [0,1].
        batch_size: videos that go through the VAE together; by default all, as in the pipeline.
        call: arguments of the pipeline's call that its latents do not tell, such as num_frames, height and width for
            LTX. Within a callback they are read from the running call.

    Raises:
        NotImplementedError: a pipeline that is not registered.
        ValueError: an argument is missing or cannot be, or `decode` returned something else than frames.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
    call = running_call(pipe) if call is None else call
    decoder = latent_decoder(pipe)
    z = decoder.unpack(pipe, latents, call)
    if z.ndim != 5:
        raise ValueError(f"expected latents (B,C,F,H,W) of {type(pipe).__name__}, got {tuple(z.shape)}")
    if decode is None:
        z = decoder.to_vae(pipe, z, call)
    if frames is not None:
        z = _select(z, frames)
        call = ChainMap({"num_frames": None}, dict(call))  # the whole clip's length says nothing about a part
    size = batch_size or len(z)
    parts = [slice(start, min(start + size, len(z))) for start in range(0, len(z), size)]
    if decode is not None:
        return torch.cat([_own_frames(decode(z[rows].clone()), rows) for rows in parts])
    pixels = torch.cat([decoder.decode(pipe, z[rows], call, rows) for rows in parts])
    return pipe.video_processor.postprocess_video(decoder.finish(pipe, pixels, call), output_type="pt")


def _select(z: Tensor, frames: FrameSelection) -> Tensor:
    if hasattr(frames, "__index__"):
        count = operator.index(frames)
        if count < 1:
            raise ValueError(f"expected frames of at least 1, got {count}")
        frames = slice(count)
    chosen = z[:, :, frames if isinstance(frames, slice) else list(frames)]
    if chosen.shape[2] == 0:
        raise ValueError(f"frames={frames} leaves none of {z.shape[2]} latent frames")
    return chosen


def _own_frames(video: Any, rows: slice) -> Tensor:
    """What the user's decoder gave, after a look at its shape; the scorer looks at the range."""
    if not isinstance(video, Tensor) or video.ndim != 5 or len(video) != rows.stop - rows.start or video.shape[2] != 3:
        found = tuple(video.shape) if isinstance(video, Tensor) else type(video).__name__
        raise ValueError(f"expected decode to return ({rows.stop - rows.start},T,3,H,W), got {found}")
    return video
