"""Nothing is timed that has not just been checked against the reference in fp64."""

from functools import lru_cache

import torch
from dover_kernels.dwconv3d_layernorm.reference import dwconv3d_layernorm_reference
from torch import Tensor

from bench.registry import COPY, EPS, OPERATOR, Candidate, Problem

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
GRADIENTS = ("dx", "dweight", "dbias", "dln_weight", "dln_bias")


class WrongResult(Exception):
    """A candidate disagrees with the reference."""


def verify(candidate: Candidate, problem: Problem, device: str) -> dict[str, float]:
    """The relative norm errors of z, of z without gradients (which may take another kernel) and of every gradient, on
    the problem's first 8 frames.

    Raises WrongResult if an error of z is over the tolerance, or that of a gradient of the operator: a baseline's
    half-precision gradients are recorded only, because PyTorch's own sum in half precision.
    """
    if candidate is COPY:
        return {}
    problem = problem.shorter(8)
    tensors, dz = problem.operands(device)
    if candidate.channels_last:
        tensors[0] = tensors[0].detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    function = candidate.build()
    with candidate.settings():
        z = function(*tensors)
        with torch.no_grad():
            got = {"z": z.detach(), "inference": function(*tensors)}
        got |= zip(GRADIENTS, torch.autograd.grad(z, tensors, dz), strict=True)
    want = oracle(problem, device)
    errors = {name: ((a.double() - want[name]).norm() / want[name].norm()).item() for name, a in got.items()}
    limits = dict.fromkeys(errors, GRADIENT_TOLERANCE[problem.dtype] if candidate is OPERATOR else float("inf"))
    limits["z"] = limits["inference"] = TOLERANCE[problem.dtype]
    wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
    if wrong:
        raise WrongResult(f"{candidate.name} on {problem}: relative errors {wrong}")
    return errors


@lru_cache(maxsize=1)
def oracle(problem: Problem, device: str) -> dict[str, Tensor]:
    """What `verify` compares with, in fp64; kept for the problem's next candidate."""
    tensors, dz = problem.operands(device)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    z = dwconv3d_layernorm_reference(*doubles, EPS)
    gradients = torch.autograd.grad(z, doubles, dz.double())
    return {"z": z.detach(), "inference": z.detach(), **dict(zip(GRADIENTS, gradients, strict=True))}
