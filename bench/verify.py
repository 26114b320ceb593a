"""Nothing is timed that has not just been checked against a sum over all taps in fp64."""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.registry import COPY, OPERATOR, Candidate, Problem, normalize

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
GRADIENTS = ("dx", "dweight", "dbias", "dln_weight", "dln_bias")
#: Frames on which a candidate is checked.
FRAMES = 8


class WrongResult(Exception):
    """A candidate disagrees with the sum in fp64."""


def verify(candidate: Candidate, problem: Problem, device: str) -> dict[str, float]:
    """The relative norm errors of z, of z without gradients (which may take another kernel) and of every gradient, on
    the problem's first 8 frames.

    Raises WrongResult if an error of z is over the tolerance, or that of a gradient of the operator: a baseline's
    half-precision gradients are recorded only, because PyTorch's own sum in half precision.
    """
    if candidate is COPY:
        return {}
    problem = problem.shorter(FRAMES)
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
    """What `verify` compares with, in fp64 and without anybody's convolution; kept for the problem's next candidate."""
    tensors, dz = problem.operands(device)
    x, weight, bias, gamma, beta = (tensor.detach().double() for tensor in tensors)
    taps = weight[:, 0]  # (C,k_t,7,7)
    y = _correlate(x, taps) + bias.view(-1, 1, 1, 1)
    leaves = [tensor.requires_grad_() for tensor in (y, gamma, beta)]
    z = normalize(*leaves)
    dy, dgamma, dbeta = torch.autograd.grad(z, leaves, dz.double())
    gradients = (
        _correlate(dy, taps.flip((1, 2, 3))),
        _tap_gradients(x, dy, weight),
        dy.sum((0, 2, 3, 4)),
        dgamma,
        dbeta,
    )
    return {"z": z.detach(), "inference": z.detach(), **dict(zip(GRADIENTS, gradients, strict=True))}


def _shifted(x: Tensor, taps: torch.Size) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """x (B,C,T,H,W) as every tap of a kernel sees it."""
    T, H, W = x.shape[2:]
    padded = F.pad(x, [size // 2 for size in reversed(taps) for _ in range(2)])
    for tap in itertools.product(*map(range, taps)):
        t, h, w = tap
        yield tap, padded[:, :, t : t + T, h : h + H, w : w + W]


def _correlate(x: Tensor, taps: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for (t, h, w), moved in _shifted(x, taps.shape[1:]):
        y.addcmul_(moved, taps[:, t, h, w].view(-1, 1, 1, 1))
    return y


def _tap_gradients(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    gradient = torch.empty_like(weight)
    for (t, h, w), moved in _shifted(x, weight.shape[2:]):
        gradient[:, 0, t, h, w] = (moved * dy).sum((0, 2, 3, 4))
    return gradient
