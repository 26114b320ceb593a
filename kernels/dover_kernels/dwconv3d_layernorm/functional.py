"""The operator's front door: it validates, follows autocast, and runs the path that this machine can run."""

import importlib.util
import operator
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from dover_kernels.dwconv3d_layernorm.reference import dwconv3d_layernorm_reference

#: What DOVER_KERNELS may say. Unset, Triton runs wherever it can.
CHOICES = ("reference", "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: Spatial kernel sizes, and the most channels, that the Triton kernels take.
TRITON_KERNEL_SIZES = (3, 5, 7)
TRITON_MAX_CHANNELS = 8192
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class KernelPath:
    """Which path runs, why, and on which device: "triton", "reference", or "refused" where neither may."""

    path: str
    reason: str
    device: str

    def __str__(self) -> str:
        return f"{self.path} on {self.device}: {self.reason}"


def dwconv3d_layernorm(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float = 1e-6
) -> Tensor:
    """Depthwise conv3d with "same" zero padding, then LayerNorm over channels, as one operator.

    `x` (B,C,T,H,W) in any memory format (channels_last_3d is read in place), fp32, fp16, bf16, or fp64 on the
    reference path; `weight` (C,1,k_t,k_h,k_w) with odd sizes; `bias`, `ln_weight`, `ln_bias` (C,). Parameters may have
    another of these dtypes. Returns (B,C,T,H,W) in channels_last_3d and in x's dtype; under autocast, x is cast
    to autocast's dtype first, and that is the dtype of the result (an fp64 x stays as it is). Sums and statistics are
    fp32 at least; on tensor cores, which `explain` tells, `weight` is rounded to the dtype of x first.

    Raises ValueError for shapes, TypeError for dtypes, and RuntimeError where `DOVER_KERNELS=triton` asks for what
    cannot run here. On the Triton path the gradient has no gradient of its own, and NotImplementedError is raised for
    forward mode and for gradients by `torch.func`; the reference path has them, forward mode in `torch.no_grad()`.
    """
    _check(x, weight, bias, ln_weight, ln_bias)
    device, choice = x.device, os.environ.get("DOVER_KERNELS")
    autocast_to = _autocast_dtype(x.dtype, device.type)
    if autocast_to is not None:
        x = x.to(autocast_to)
    elif choice is None and device.type == "cpu":  # what `_select` and the lines below come to, sooner
        return dwconv3d_layernorm_reference(x, weight, bias, ln_weight, ln_bias, eps)
    # A compiler that has met two sizes makes a symbol of them, which `_select` cannot take; `index` has it be a number.
    channels, k_t, k_h, k_w = (operator.index(size) for size in (x.shape[1], *weight.shape[2:]))
    path, reason = _select(choice, device.type, device.index, x.dtype, channels, (k_t, k_h, k_w))
    if path == "refused":
        raise RuntimeError(reason)
    if path == "triton":
        from dover_kernels.dwconv3d_layernorm.op import forward_op, refuse_transforms

        refuse_transforms(x, weight, bias, ln_weight, ln_bias)
        parameters = (weight, bias, ln_weight, ln_bias)
        save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters))
        return forward_op(x, *parameters, eps, save)[0]
    with torch.autocast(device.type, enabled=False) if autocast_to else nullcontext():
        return dwconv3d_layernorm_reference(x, weight, bias, ln_weight, ln_bias, eps)


def explain(x: Tensor | None = None, weight: Tensor | None = None) -> KernelPath:
    """Which path `dwconv3d_layernorm` takes for `x` and `weight`, here and now (autocast), and why; computes nothing.

    Without `x`: for bf16 on this machine's GPU, or fp32 on its CPU, with as many channels as fit. Without `weight`:
    for a spatial kernel of 7 x 7. Raises ValueError where `DOVER_KERNELS` says something unknown.
    """
    if x is None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        dtype, channels = (torch.bfloat16 if device.type == "cuda" else torch.float32), 96
    else:
        device, channels = x.device, x.shape[1]
        dtype = _autocast_dtype(x.dtype, device.type) or x.dtype
    kernel = (1, 7, 7) if weight is None else tuple(weight.shape[2:])
    path, reason = _select(os.environ.get("DOVER_KERNELS"), device.type, device.index, dtype, channels, kernel)
    if path == "triton" and device.type == "cuda":
        from dover_kernels.dwconv3d_layernorm import tensor_cores

        k_t = 1 if x is not None and x.shape[2] == 1 else kernel[0]  # a single frame meets but the middle
        obstacle = tensor_cores.obstacle(tensor_cores.Layer(device, dtype, channels, k_t, kernel[1]))
        reason += "; on tensor cores" if obstacle is None else f"; without tensor cores: {obstacle}"
    return KernelPath(path, reason, str(device))


def _autocast_dtype(dtype: torch.dtype, device: str) -> torch.dtype | None:
    """What autocast makes of x in `dtype`; None where there is no autocast."""
    if not (_has_autocast(device) and torch.is_autocast_enabled(device)):
        return None
    return dtype if dtype == torch.float64 else torch.get_autocast_dtype(device)


def _constant(function: F) -> F:
    """`torch.compiler.assume_constant_result`, which would import the whole compiler: two seconds of every process."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant  # torch 2.7 cannot trace it
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


@_constant
def _select(
    choice: str | None, device: str, index: int | None, dtype: torch.dtype, channels: int, kernel: tuple[int, ...]
) -> tuple[str, str]:
    """The path, "refused" included, and the reason. A compiler takes the answer for a constant."""
    if choice is not None and choice not in CHOICES:
        raise ValueError(f"DOVER_KERNELS is {choice!r}; expected {' or '.join(map(repr, CHOICES))}, or unset")
    if choice == "reference":
        return "reference", "DOVER_KERNELS=reference"
    obstacle = _obstacle(device, index, dtype, channels, kernel)
    if choice == "triton":
        if obstacle is not None:
            return "refused", f"DOVER_KERNELS=triton, but the Triton kernels cannot run: {obstacle}"
        return "triton", "DOVER_KERNELS=triton"
    if obstacle is not None:
        return "reference", obstacle
    if device == "cpu":
        return "reference", "the Triton interpreter is for tests; DOVER_KERNELS=triton runs it"
    return "triton", "a GPU that Triton compiles for"


def _obstacle(device: str, index: int | None, dtype: torch.dtype, channels: int, kernel: tuple[int, ...]) -> str | None:
    """Why the Triton kernels cannot run, or None where they can."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not TRITON_INSTALLED:
        return "Triton is not installed"
    if device != "cuda" and not (device == "cpu" and interpreted):
        return f"the tensor is on {device}, and Triton needs a GPU"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"x is {dtype}; they take float32, float16 and bfloat16"
    if channels % 8 or not 0 < channels <= TRITON_MAX_CHANNELS:
        return f"x has {channels} channels; they take multiples of 8 up to {TRITON_MAX_CHANNELS}"
    k_t, k_h, k_w = kernel
    if k_h != k_w or k_h not in TRITON_KERNEL_SIZES:
        sizes = ", ".join(f"(k_t,{k},{k})" for k in TRITON_KERNEL_SIZES)
        return f"the kernel is ({k_t},{k_h},{k_w}); they take {sizes}"
    if device == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(index)
        if capability < (8, 0):
            return f"the GPU has compute capability {capability[0]}.{capability[1]}; they are built for 8.0 and later"
    return None


def _check(x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor) -> None:
    if x.ndim != 5:
        raise ValueError(f"expected x (B,C,T,H,W), got shape {tuple(x.shape)}")
    C = x.shape[1]
    if weight.ndim != 5 or weight.shape[:2] != (C, 1) or any(size % 2 == 0 for size in weight.shape[2:]):
        raise ValueError(
            f"expected weight (C,1,k_t,k_h,k_w) with C = {C} as in x {tuple(x.shape)} and odd sizes, "
            f"got shape {tuple(weight.shape)}"
        )
    for name, tensor in (("bias", bias), ("ln_weight", ln_weight), ("ln_bias", ln_bias)):
        if tensor.shape != (C,):
            raise ValueError(f"expected {name} ({C},), got shape {tuple(tensor.shape)}")
    operands = (("x", x), ("weight", weight), ("bias", bias), ("ln_weight", ln_weight), ("ln_bias", ln_bias))
    for name, tensor in operands:
        if tensor.device != x.device:
            raise ValueError(f"x is on {x.device}, but {name} is on {tensor.device}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"expected {name} in float32, float16, bfloat16 or float64, got {tensor.dtype}")
