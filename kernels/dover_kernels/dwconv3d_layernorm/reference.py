"""The operator in plain PyTorch: the path on CPU and the oracle of the kernel's tests."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dwconv3d_layernorm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float = 1e-6
) -> Tensor:
    """Depthwise conv3d with "same" zero padding, then LayerNorm over channels.

    `x` (B,C,T,H,W), `weight` (C,1,k_t,k_h,k_w), the rest (C,). Returns (B,C,T,H,W) in channels_last_3d, in
    which oneDNN's depthwise convolution runs 1.3 to 4 times as fast on a CPU as in the contiguous format.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    padding = [size // 2 for size in weight.shape[2:]]
    y = F.conv3d(x, weight, bias, padding=padding, groups=weight.shape[0])
    y = y.permute(0, 2, 3, 4, 1)
    return F.layer_norm(y, (y.shape[-1],), ln_weight, ln_bias, eps).permute(0, 4, 1, 2, 3)
