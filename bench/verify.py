"""Nothing is timed that has not just been checked against the reference in fp64."""

import torch
from dover_kernels.dwconv3d_layernorm.reference import dwconv3d_layernorm_reference

from bench.registry import COPY, EPS, OPERATOR, Candidate, Problem

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
NAMES = ("dx", "dweight", "dbias", "dln_weight", "dln_bias")


class WrongResult(Exception):
    """A candidate disagrees with the reference."""


def verify(candidate: Candidate, problem: Problem, device: str) -> dict[str, float]:
    """The relative norm errors of z and of every gradient, on the problem's first 8 frames.

    Raises WrongResult if the error of z is over the tolerance, or that of a gradient of the operator: a baseline's
    half-precision gradients are recorded only, because PyTorch's own sum in half precision.
    """
    if candidate is COPY:
        return {}
    problem = problem.shorter(8)
    tensors, dz = problem.operands(device)
    if candidate.channels_last:
        tensors[0] = tensors[0].detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    z = candidate.build()(*tensors)
    got = [z, *torch.autograd.grad(z, tensors, dz)]
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    oracle = dwconv3d_layernorm_reference(*doubles, EPS)
    want = [oracle, *torch.autograd.grad(oracle, doubles, dz.double())]
    errors = {}
    for name, a, b in zip(("z", *NAMES), got, want, strict=True):
        errors[name] = ((a.double() - b).norm() / b.norm()).item()
    limits = dict.fromkeys(errors, GRADIENT_TOLERANCE[problem.dtype] if candidate is OPERATOR else float("inf"))
    limits["z"] = TOLERANCE[problem.dtype]
    wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
    if wrong:
        raise WrongResult(f"{candidate.name} on {problem}: relative errors {wrong}")
    return errors
