"""Clips and prompts as the body of a request: safetensors, which holds numbers and text and runs nothing.

Tensors `video.0`, `video.1`, ... uint8 (T,C,H,W), or one tensor `videos` (B,T,C,H,W); the prompts are a JSON list under
`prompts` in the file's metadata.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence

import safetensors
import torch
from safetensors.numpy import save
from torch import Tensor

SAFETENSORS = "application/x-safetensors"
REWARD_NAME = "dover"


class BadRequest(ValueError):
    """A body that cannot be read; the message says what was found and what was expected."""


def encode_clips(clips: Sequence[Tensor], prompts: Sequence[str]) -> bytes:
    """Clips, uint8 (T,C,H,W), and their prompts as a safetensors body."""
    tensors = {f"video.{i}": clip.cpu().contiguous().numpy() for i, clip in enumerate(clips)}
    return save(tensors, metadata={"prompts": json.dumps(list(prompts))})


def decode_clips(body: bytes) -> tuple[list[Tensor], list[str]]:
    """The clips and prompts of a safetensors body; raises BadRequest for anything else."""
    try:
        tensors = dict(safetensors.deserialize(body))
    except safetensors.SafetensorError as error:
        raise BadRequest(f"not a safetensors body: {error}") from error
    prompts = _prompts(body)
    for name, tensor in tensors.items():
        if tensor["dtype"] != "U8":
            raise BadRequest(f"expected uint8 (U8) for {name!r}, got {tensor['dtype']}")
    if set(tensors) == {"videos"}:
        batch = _tensor(tensors["videos"], 5, "videos")
        return list(batch), prompts
    if not all(re.fullmatch(r"video\.\d{1,6}", name) for name in tensors) or not tensors:
        raise BadRequest(f"expected a tensor 'videos', or 'video.0', 'video.1' and so on, got {sorted(tensors)[:8]}")
    names = sorted(tensors, key=lambda name: int(name.removeprefix("video.")))
    return [_tensor(tensors[name], 4, name) for name in names], prompts


def _tensor(entry: dict, dimensions: int, name: str) -> Tensor:
    shape = tuple(entry["shape"])
    if len(shape) != dimensions or 0 in shape:
        raise BadRequest(f"expected {name!r} of {dimensions} dimensions, none of them 0, got shape {shape}")
    if shape[-3] != 3:
        raise BadRequest(f"expected {name!r} of layout {'BTCHW'[-dimensions:]} with 3 channels, got shape {shape}")
    return torch.frombuffer(entry["data"], dtype=torch.uint8).view(shape)


def _prompts(body: bytes) -> list[str]:
    # The reader hands out no metadata; it has checked the header, whose length comes first.
    (length,) = struct.unpack_from("<Q", body)
    try:
        prompts = json.loads(json.loads(body[8 : 8 + length]).get("__metadata__", {})["prompts"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:  # TypeError: the metadata may be null
        raise BadRequest('expected a JSON list of prompts under "prompts" in the metadata') from error
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise BadRequest(f"expected a list of texts as prompts, got {str(prompts)[:80]}")
    return prompts
