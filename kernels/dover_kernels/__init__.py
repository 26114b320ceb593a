"""Kernels of dover-eval. Imports neither `dover_eval` nor `dover_integrations`."""

from dover_kernels.dwconv3d_layernorm import Explanation, dwconv3d_layernorm, explain

__all__ = ["Explanation", "dwconv3d_layernorm", "explain"]
