"""The operator in plain PyTorch: the path on CPU, and the oracle of the kernels' tests."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dwconv3d_layernorm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float = 1e-6
) -> Tensor:
    """Depthwise conv3d with "same" zero padding, then LayerNorm over channels.

    `x` (B,C,T,H,W), `weight` (C,1,k_t,k_h,k_w) with odd sizes, the rest (C,), all floating, fp64 included. The
    parameters take x's dtype. Returns (B,C,T,H,W) in channels_last_3d and x's dtype. Differentiable any number of
    times.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    padding = [size // 2 for size in weight.shape[2:]]
    y = F.conv3d(x, weight.to(x.dtype), bias.to(x.dtype), padding=padding, groups=weight.shape[0])
    y = y.permute(0, 2, 3, 4, 1)
    y = F.layer_norm(y, (y.shape[-1],), ln_weight.to(x.dtype), ln_bias.to(x.dtype), eps)
    return y.permute(0, 4, 1, 2, 3)
