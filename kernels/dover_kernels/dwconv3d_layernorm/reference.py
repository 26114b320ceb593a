"""The operator in plain PyTorch: the path on CPU, and the oracle of the kernels' tests."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv3d_weight


def dwconv3d_layernorm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float = 1e-6
) -> Tensor:
    """Depthwise conv3d with "same" zero padding, then LayerNorm over channels.

    `x` (B,C,T,H,W), `weight` (C,1,k_t,k_h,k_w) with odd sizes, the rest (C,), all floating. Computes in fp32, or in
    fp64 where x is; returns (B,C,T,H,W) in channels_last_3d and x's dtype. Differentiable any number of times. On
    a GPU, what torch.compile compiles, clips beyond 2^31 elements and second derivatives may be cuDNN's, which follows
    the process's own setting of TF32.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, bias, ln_weight, ln_bias = weight.to(dtype), bias.to(dtype), ln_weight.to(dtype), ln_bias.to(dtype)
    if x.numel() == 0:  # conv3d refuses an empty frame; an empty result still depends on every operand
        scale = weight.flatten(1).sum(1) + bias + ln_weight + ln_bias
        return (x * scale.view(1, -1, 1, 1, 1)).to(x.dtype)
    # A half-precision convolution gains nothing on a CPU, and its gradients are summed in half precision.
    y = _laid_out(x.to(dtype))
    convolve = _DepthwiseConv3d.apply if torch.is_grad_enabled() else _convolve
    y = convolve(y, weight, bias).permute(0, 2, 3, 4, 1)
    y = F.layer_norm(y, (y.shape[-1],), ln_weight, ln_bias, eps)
    return y.permute(0, 4, 1, 2, 3).to(x.dtype)


def _laid_out(x: Tensor) -> Tensor:
    """`x` in channels_last_3d, or canonically on a GPU, in words that vmap knows."""
    return _canonical(x) if x.is_cuda else x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)


def _canonical(tensor: Tensor) -> Tensor:
    """Strides that follow from the shape, as `contiguous()` does not promise for dimensions of size 1.

    On a GPU these go to PyTorch's own depthwise kernels, which multiply fp32 in fp32; channels_last_3d, of x or of the
    weight, goes to cuDNN, whose default is TF32. Those kernels find their first address by strides and go on by sizes,
    so that other strides of a dimension of size 1 have them read memory beside x
    (aten/src/ATen/native/cuda/DepthwiseConv3d.cu)."""
    return tensor.flatten().view(tensor.shape)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding = [size // 2 for size in weight.shape[2:]]
    weight = _canonical(weight) if x.is_cuda else weight
    return F.conv3d(x, weight, bias, padding=padding, groups=weight.shape[0])


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """`backward` may be called in an autocast that the forward pass was not in. Meta tensors have none."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class _DepthwiseConv3d(torch.autograd.Function):
    """Depthwise conv3d whose input gradient is the same convolution with the kernel turned around: oneDNN's own
    takes 8 to 170 times as long on a CPU (NOTES.md)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        dy = _laid_out(dy)
        with _without_autocast(dy.device.type):
            if ctx.needs_input_grad[0]:
                dx = _DepthwiseConv3d.apply(dy, weight.flip((2, 3, 4)), None)
            if ctx.needs_input_grad[1]:
                gradient = _weight_gradient_op if torch.compiler.is_compiling() else _weight_gradient
                dweight = gradient(x, dy, weight.shape[2:])
            if ctx.needs_input_grad[2]:
                dbias = dy.sum(dim=(0, 2, 3, 4))
        return dx, dweight, dbias


def _weight_gradient(x: Tensor, dy: Tensor, kernel: Sequence[int]) -> Tensor:
    """The gradient (C,1,k_t,k_h,k_w) of a depthwise kernel of size `kernel`.

    In fp32 on a CPU each frame of dy is the kernel of a convolution over the k_t frames of x around it, whose outputs
    are the taps: oneDNN's own weight gradient takes 1.5 to 36 times as long (NOTES.md). A frame at a time, so that
    fp32 sums stay short.
    """
    k_t, k_h, k_w = kernel
    C, T = x.shape[1:3]
    if x.device.type != "cpu" or x.dtype != torch.float32:
        padding = [size // 2 for size in kernel]
        return conv3d_weight(x, (C, 1, *kernel), dy, padding=padding, groups=C)
    half = k_t // 2
    gradient = x.new_zeros((C, 1, *kernel))
    for clip, d_clip in zip(x, dy, strict=True):
        for t in range(T):
            first, end = max(t - half, 0), min(t + half + 1, T)
            frame = d_clip[:, None, t : t + 1]  # (C,1,1,H,W)
            taps = F.conv3d(clip[None, :, first:end], frame, padding=(0, k_h // 2, k_w // 2), groups=C)
            at = first - t + half
            within = F.pad(taps[0], (0, 0, 0, 0, at, k_t - at - (end - first)))
            gradient = gradient + within[:, None]  # not in place, for vmap may batch dy and not x
    return gradient


#: To a compiler one node: the loop would be another graph for every batch size and length.
_weight_gradient_op = torch.library.custom_op(
    "dover_kernels::dwconv3d_weight_gradient_reference", _weight_gradient, mutates_args=()
)


@_weight_gradient_op.register_fake
def _(x: Tensor, dy: Tensor, kernel: Sequence[int]) -> Tensor:
    return x.new_empty((x.shape[1], 1, *kernel))
