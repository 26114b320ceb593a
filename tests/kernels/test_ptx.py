"""The kernels as they are compiled for an H100, run on a CPU by `ptx_on_numpy`: what the compiler made of layouts, of
barriers and of addresses. `test_gpu.py` has them on the hardware."""

from contextlib import nullcontext

import pytest
import torch
from dover_kernels.dwconv3d_layernorm import launch, tensor_core_kernels, tensor_cores, triton_kernels
from torch import Tensor

from . import ptx_on_numpy
from .conftest import INTERPRETED, make_operands, relative_errors

pytestmark = pytest.mark.filterwarnings("error:.*runs without tensor cores")
if INTERPRETED:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture
def on_cpu(monkeypatch):
    """Launches go to compiled kernels, on CPU tensors; those of 16 bits to tensor cores."""
    monkeypatch.setattr(launch, "kernels", ptx_on_numpy.on_numpy(triton_kernels))
    monkeypatch.setattr(launch, "_on", lambda x: nullcontext())
    monkeypatch.setattr(launch, "_multiprocessors", lambda device: 132)
    monkeypatch.setattr(launch, "_choose", lambda role, x, k_t, run: _first_that_fits(role, x, k_t))
    monkeypatch.setattr(tensor_cores, "kernels", ptx_on_numpy.on_numpy(tensor_core_kernels))
    monkeypatch.setattr(tensor_cores, "shared_memory", lambda device: 227 * 1024)
    monkeypatch.setattr(tensor_cores, "obstacle", lambda layer: layer.dtype.itemsize == 4 or None)


def _first_that_fits(role: str, x: Tensor, k_t: int) -> launch.Tile:
    W = x.shape[4]
    return launch.fits(launch.candidates(role, x.shape[1], k_t, x.element_size(), W), W)[0]


def run(x: Tensor, weight: Tensor, *parameters: Tensor, dz: Tensor) -> dict[str, Tensor]:
    """The output, that of inference, and every gradient: what `op` does on a GPU."""
    z, y, mean, rstd = launch.forward(x, weight, *parameters, 1e-6, True)
    inference = launch.forward(x, weight, *parameters, 1e-6, False)[0]
    dy, (dgamma, dbeta, dbias) = launch.layernorm_backward(dz, y, parameters[1], mean, rstd)
    return {
        "z": z, "inference": inference, "dx": launch.input_gradient(dy, weight),
        "dweight": launch.weight_gradient(x, dy, *weight.shape[2:4]),
        "dbias": dbias, "dln_weight": dgamma, "dln_bias": dbeta,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "kernel", "dtype"),
    [
        ((1, 96, 2, 9, 12), (1, 7, 7), torch.bfloat16),
        ((1, 96, 1, 5, 8), (1, 7, 7), torch.float32),  # LayerNorm along
        ((1, 32, 3, 6, 10), (3, 7, 7), torch.bfloat16),
        ((2, 32, 2, 5, 9), (1, 5, 5), torch.float16),
        ((1, 24, 4, 4, 8), (7, 3, 3), torch.float16),
        ((1, 24, 2, 5, 9), (3, 3, 3), torch.float32),
        ((2, 32, 1, 1, 1), (3, 5, 5), torch.bfloat16),
    ],
    ids=str,
)
def test_the_operator_and_its_gradients_agree_with_fp64(shape, kernel, dtype, on_cpu, poisoned):
    operands = make_operands(shape, kernel, dtype=dtype, parameters=torch.float32)
    want = operands.oracle()
    got = run(*(t.detach() for t in operands.tensors), dz=operands.dz)
    errors = relative_errors(got, want | {"inference": want["z"]})
    assert max(errors.values()) < LIMIT[dtype], errors


@pytest.mark.slow
def test_the_weight_gradient_of_many_channels_a_program(on_cpu, monkeypatch):
    monkeypatch.setattr(tensor_cores, "ENOUGH_PROGRAMS", 1)
    operands = make_operands((1, 32, 3, 5, 9), (3, 7, 7), dtype=torch.bfloat16)
    x, dy = operands.tensors[0].detach(), operands.dz
    weight = torch.zeros(32, 1, 3, 7, 7, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.conv3d(x.double(), weight, None, padding=(1, 3, 3), groups=32)
    (want,) = torch.autograd.grad(y, weight, dy.double())
    got = launch.weight_gradient(x, dy, 3, 7)
    assert relative_errors({"dweight": got}, {"dweight": want})["dweight"] < 1e-5


@pytest.mark.slow
def test_a_missing_barrier_or_wait_and_a_wrong_address_are_found():
    x = torch.randn(1, 32, 1, 7, 8).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    y, weight = torch.empty_like(x), torch.randn(32, 1, 1, 7, 7)
    config = tensor_cores.Config(32, 16, 4)
    arguments = [tensor_cores._words(x), weight, weight, y, 1, 7, 8, 1, 1, 1, 7]
    compiled = ptx_on_numpy.Kernel(tensor_core_kernels.convolution_kernel).compiled(
        *arguments, C=32, KT=1, K=7, BC=config.BC, AHEAD=config.ahead, FLIP=True,
        num_warps=config.num_warps, maxnreg=config.maxnreg, enable_fp_fusion=True,
    )  # fmt: skip
    ptx, shared = compiled.asm["ptx"], compiled.metadata.shared
    ptx_on_numpy.run(ptx, 1, arguments, shared)
    assert y.isfinite().all()
    for wrong, what in (
        (ptx.replace("bar.sync", "// bar.sync"), "no barrier"),
        (ptx.replace("cp.async.wait_group", "// cp.async.wait_group"), "not waited for"),
    ):
        with pytest.raises(ptx_on_numpy.Race, match=what):
            ptx_on_numpy.run(wrong, 1, arguments, shared)
    of_two_frames = [*arguments[:9], 2, 7]
    with pytest.raises(AssertionError, match="beside the tensors"):
        ptx_on_numpy.run(ptx, 1, of_two_frames, shared)
