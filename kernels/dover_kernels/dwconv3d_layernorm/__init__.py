"""Depthwise conv3d and channel LayerNorm as one operator."""

from dover_kernels.dwconv3d_layernorm.functional import KernelPath, dwconv3d_layernorm, explain

__all__ = ["KernelPath", "dwconv3d_layernorm", "explain"]
