"""The operator's front door: it validates, then runs the path that this machine can run."""

from torch import Tensor

from dover_kernels.dwconv3d_layernorm.reference import dwconv3d_layernorm_reference


def dwconv3d_layernorm(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float = 1e-6
) -> Tensor:
    """Depthwise conv3d with "same" zero padding, then LayerNorm over channels.

    `x` (B,C,T,H,W), `weight` (C,1,k_t,7,7), `bias`, `ln_weight` and `ln_bias` (C,). Returns (B,C,T,H,W).
    """
    if x.ndim != 5 or weight.ndim != 5 or weight.shape[:2] != (x.shape[1], 1):
        raise ValueError(
            f"expected x (B,C,T,H,W) and weight (C,1,k_t,k_h,k_w), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    return dwconv3d_layernorm_reference(x, weight, bias, ln_weight, ln_bias, eps)


def explain(x: Tensor | None = None) -> str:
    """Which path runs for `x` (or for this machine) and why."""
    return "reference: plain PyTorch, the only path built so far"
