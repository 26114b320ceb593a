"""Kernels of dover-eval. Imports neither `dover_eval` nor `dover_integrations`."""

from dover_kernels.dwconv3d_layernorm import KernelPath, dwconv3d_layernorm, explain

__all__ = ["KernelPath", "dwconv3d_layernorm", "explain"]
