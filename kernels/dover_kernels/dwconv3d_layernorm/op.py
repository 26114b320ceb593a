"""The Triton path as PyTorch operators: schema, fake and gradient, so that compilers and autograd see through them.

`dover_kernels::dwconv3d_layernorm` has a gradient made of three operators, each of which runs only where its result
is asked for. A second derivative is refused, and so are forward mode and the gradients of `torch.func`.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad


def refuse_transforms(*operands: Tensor) -> None:
    """Raises NotImplementedError for an operand that forward mode or `torch.func` differentiates: PyTorch would drop
    its tangent without a word, and has no gradient of such an operator in `torch.func`. A compiler, which cannot trace
    the look into a wrapped tensor, shows forward mode without one."""
    for operand in operands:
        tensor, differentiated = operand, False
        while not torch.compiler.is_compiling() and _functorch.is_functorch_wrapped_tensor(tensor):
            differentiated |= _functorch.is_gradtrackingtensor(tensor)
            tensor = _functorch.get_unwrapped(tensor)
        if differentiated or forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                "dwconv3d_layernorm has neither forward mode nor gradients by torch.func on the Triton path; set "
                "DOVER_KERNELS=reference for them, and for forward mode call it in torch.no_grad()"
            )


@torch.library.custom_op("dover_kernels::dwconv3d_layernorm", mutates_args=())
def forward_op(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(z, y, mean, rstd); the last three are empty unless `save`, which a backward pass needs."""
    from dover_kernels.dwconv3d_layernorm import launch

    return launch.forward(x, weight, bias, ln_weight, ln_bias, eps, save)


@forward_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = torch.empty_like(x, memory_format=torch.channels_last_3d)
    B, _C, T, H, W = x.shape
    y = torch.empty_like(z) if save else x.new_empty(0)
    mean, rstd = (x.new_empty((B, T, H, W) if save else (0,), dtype=torch.float32) for _ in range(2))
    return z, y, mean, rstd


@torch.library.custom_op("dover_kernels::layernorm_backward", mutates_args=())
def layernorm_backward_op(
    dz: Tensor, y: Tensor, ln_weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """dy, and d(gamma), d(beta), d(bias) as one (3,C) in fp32."""
    from dover_kernels.dwconv3d_layernorm import launch

    return launch.layernorm_backward(dz, y, ln_weight, mean, rstd)


@layernorm_backward_op.register_fake
def _(dz: Tensor, y: Tensor, ln_weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    dy = torch.empty_like(y, memory_format=torch.channels_last_3d)
    return dy, y.new_empty((3, y.shape[1]), dtype=torch.float32)


@torch.library.custom_op("dover_kernels::dwconv3d_input_gradient", mutates_args=())
def input_gradient_op(dy: Tensor, weight: Tensor) -> Tensor:
    from dover_kernels.dwconv3d_layernorm import launch

    return launch.input_gradient(dy, weight)


@input_gradient_op.register_fake
def _(dy: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(dy, memory_format=torch.channels_last_3d)


@torch.library.custom_op("dover_kernels::dwconv3d_weight_gradient", mutates_args=())
def weight_gradient_op(x: Tensor, dy: Tensor, k_t: int, k: int) -> Tensor:
    """(C,1,k_t,k,k) in fp32."""
    from dover_kernels.dwconv3d_layernorm import launch

    return launch.weight_gradient(x, dy, k_t, k)


@weight_gradient_op.register_fake
def _(x: Tensor, dy: Tensor, k_t: int, k: int) -> Tensor:
    return x.new_empty((x.shape[1], 1, k_t, k, k), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ln_weight, ln_bias, _eps, save = inputs
    _z, y, mean, rstd = output
    ctx.mark_non_differentiable(y, mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.saved = save
    ctx.dtypes = weight.dtype, bias.dtype, ln_weight.dtype, ln_bias.dtype
    ctx.save_for_backward(x, weight, ln_weight, y, mean, rstd)


def _backward(ctx: Any, dz: Tensor | None, *_unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.saved:
        raise RuntimeError("dwconv3d_layernorm ran with save=False, so it has no gradient")
    if dz is None:
        return (None,) * 7
    refuse_transforms(dz)
    x, weight, ln_weight, y, mean, rstd = ctx.saved_tensors
    for_weight, for_bias, for_gamma, for_beta = ctx.dtypes
    dy, sums = layernorm_backward_op(dz, y, ln_weight, mean, rstd)
    dgamma, dbeta, dbias = sums.unbind(0)
    dweight = None
    if ctx.needs_input_grad[1]:  # before dx, so that a dense copy of x and the partial sums are gone when it comes
        dweight = weight_gradient_op(x, dy, weight.shape[2], weight.shape[3]).to(for_weight)
    dx = input_gradient_op(dy, weight) if ctx.needs_input_grad[0] else None
    return dx, dweight, dbias.to(for_bias), dgamma.to(for_gamma), dbeta.to(for_beta), None, None


forward_op.register_autograd(_backward, setup_context=_setup_context)


def _refuse(_ctx: Any, *_gradients: Tensor) -> NoReturn:
    raise RuntimeError(
        "dwconv3d_layernorm has no second derivative on the Triton path; set DOVER_KERNELS=reference for one"
    )


for _op in (layernorm_backward_op, input_gradient_op, weight_gradient_op):
    _op.register_autograd(_refuse)
