"""What the kernel's tests share: how to make operands, compare gradients, and poison memory that nobody wrote."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from dover_kernels.dwconv3d_layernorm.reference import dwconv3d_layernorm_reference
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NAMES = ("x", "weight", "bias", "ln_weight", "ln_bias")


@dataclass
class Operands:
    """The five operands, each asking for a gradient, and the gradient dz of the output."""

    tensors: tuple[Tensor, ...]
    dz: Tensor

    def run(self, function: Callable[..., Tensor], eps: float = 1e-6) -> dict[str, Tensor]:
        """The output z, and the gradient of every operand."""
        leaves = [tensor.detach().clone().requires_grad_() for tensor in self.tensors]
        z = function(*leaves, eps)
        gradients = torch.autograd.grad(z, leaves, self.dz)
        return {"z": z.detach(), **{f"d{name}": g for name, g in zip(NAMES, gradients, strict=True)}}

    def oracle(self, eps: float = 1e-6, device: str = "cpu") -> dict[str, Tensor]:
        """The same by the reference in fp64, on the operands as they are rounded; on `device`, a GPU for large ones."""
        double = Operands(
            tuple(t.detach().to(device, torch.float64) for t in self.tensors), self.dz.to(device).double()
        )
        return {name: tensor.cpu() for name, tensor in double.run(dwconv3d_layernorm_reference, eps).items()}


def make_operands(
    shape: tuple[int, int, int, int, int], kernel: tuple[int, int, int], device: str = "cpu",
    dtype: torch.dtype = torch.float32, parameters: torch.dtype | None = None, seed: int = 0,
) -> Operands:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int, as_dtype: torch.dtype | None = dtype, shift: float = 0.0) -> Tensor:
        values = torch.randn(*size, generator=generator, dtype=torch.float64) + shift
        return values.to(device=device, dtype=as_dtype or dtype)

    C = shape[1]
    sizes = ((C, 1, *kernel), (C,), (C,), (C,))
    return Operands((draw(*shape), *(draw(*size, as_dtype=parameters) for size in sizes)), draw(*shape))


def relative_errors(got: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, float]:
    """||got - want|| / ||want|| of each; where `want` is zero throughout, ||got||. NaN counts as infinite."""
    errors = {}
    for name, expected in want.items():
        difference = (got[name].double().cpu() - expected).norm().item()
        error = difference / (expected.norm().item() or 1.0)
        errors[name] = error if error == error else float("inf")
    return errors


@contextmanager
def poison() -> Iterator[None]:
    """Memory that is allocated but not written holds NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def poisoned() -> Iterator[None]:
    with poison():
        yield
