"""The tensor-core kernels without a GPU: what they compute (by `gluon_on_numpy`), how problems are spread over
programs, and that shared memory is laid out without conflicts. `test_gpu.py` has the same kernels on the hardware."""

import ast
from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
from dover_kernels.dwconv3d_layernorm import tensor_core_kernels, tensor_cores
from dover_kernels.dwconv3d_layernorm.strips import Strips
from dover_kernels.dwconv3d_layernorm.tensor_core_kernels import (
    _fragment_layout,
    _memory_layout,
    _shared_layout,
    _transpose_pairs,
)
from dover_kernels.dwconv3d_layernorm.tensor_cores import COLUMNS, CONVOLUTION, STRIPS, WEIGHT_GRADIENT
from torch.nn import functional as F
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.errors import PTXASError

from . import gluon_on_numpy
from .conftest import INTERPRETED

if INTERPRETED:
    pytest.skip("Gluon has no interpreter", allow_module_level=True)

H100 = 132, 227 * 1024  # multiprocessors, and bytes of shared memory that a program may have
A10 = 72, 99 * 1024


@pytest.fixture
def on_cpu(monkeypatch):
    """The kernels launch on CPU tensors in fp16."""
    monkeypatch.setattr(tensor_cores, "kernels", gluon_on_numpy.on_numpy(tensor_core_kernels))
    monkeypatch.setattr(tensor_cores, "shared_memory", lambda device: H100[1])
    monkeypatch.setattr(tensor_cores, "_DTYPES", {torch.float16: np.float16})


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """fp16 in channels_last_3d."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.half().contiguous(memory_format=torch.channels_last_3d)


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """In fp64."""
    padding = [size // 2 for size in weight.shape[2:]]
    return F.conv3d(x.double(), weight.double(), bias if bias is None else bias.double(), 1, padding, 1, x.shape[1])


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


# shape (B,C,T,H,W), taps in time, K, multiprocessors
SHAPES = {
    "one_strip": ((1, 8, 1, 7, 8), 1, 7, 1),
    "strips_overhang_the_row": ((1, 8, 2, 5, 9), 1, 7, 1),
    "more_strips_than_a_program_takes": ((1, 8, 5, 6, 30), 1, 7, 1),
    "more_rows_than_steps_at_a_time": ((1, 8, 2, 16, 9), 3, 7, 1),
    "frames_cut_into_rows": ((1, 8, 1, 29, 9), 3, 7, 64),
    "two_clips": ((2, 16, 3, 4, 10), 3, 7, 4),
    "five_taps_in_time": ((1, 8, 4, 3, 6), 5, 7, 1),
    "fewer_frames_than_taps": ((2, 8, 3, 4, 6), 7, 7, 1),
    "kernel_of_5": ((1, 8, 2, 6, 11), 3, 5, 1),
    "kernel_of_3": ((1, 24, 2, 4, 9), 5, 3, 1),
    "one_position": ((1, 8, 1, 1, 1), 1, 7, 1),
    "32_channels_a_program": ((1, 32, 2, 5, 9), 1, 7, 1),
    "16_channels_a_program": ((1, 16, 2, 5, 9), 3, 7, 1),
    "one_tap_in_time_of_a_kernel_of_5": ((1, 8, 2, 14, 9), 1, 5, 1),
    "one_tap_in_time_of_a_kernel_of_3": ((1, 8, 2, 11, 9), 1, 3, 1),
    "one_tap_in_time_and_frames_cut_into_rows": ((1, 8, 1, 29, 9), 1, 7, 64),
}


@pytest.mark.parametrize("name", SHAPES)
def test_convolution_and_its_gradients_agree_with_fp64(name, on_cpu):
    shape, k_t, K, multiprocessors = SHAPES[name]
    C = shape[1]
    x, dy = draw(*shape), draw(*shape, seed=1)
    weight = torch.randn(C, 1, k_t, K, K, generator=torch.Generator().manual_seed(2))
    bias = torch.randn(C, generator=torch.Generator().manual_seed(3))
    y, dx = (torch.full_like(x, float("nan")) for _ in range(2))
    tensor_cores.convolve(x, weight, bias, y, multiprocessors)
    tensor_cores.convolve(dy, weight, None, dx, multiprocessors)
    rounded = weight.half()
    assert error(y, convolve(x, rounded, bias)) < 1e-3
    assert error(dx, convolve(dy, rounded.flip((2, 3, 4)), None)) < 1e-3
    leaf = weight.double().requires_grad_()
    (want,) = torch.autograd.grad(convolve(x, leaf, None), leaf, dy.double())
    got = tensor_cores.weight_gradient(x, dy, k_t, K).sum(0).t().reshape(weight.shape)
    assert error(got, want) < 1e-5


def test_the_weight_gradient_takes_many_channels_a_program_where_enough_programs_are_left(on_cpu, monkeypatch):
    def config(C, T, side, k_t):
        cut = Strips.cut(T, side, side, COLUMNS, 1)
        return tensor_cores.plan_weight_gradient(cut, C, k_t)[0]

    many, few = WEIGHT_GRADIENT
    assert config(96, 64, 160, 1) == config(96, 32, 56, 3) == many
    assert config(96, 32, 56, 1) == config(8, 64, 160, 1) == few
    x, dy = draw(1, 16, 3, 9, 10), draw(1, 16, 3, 9, 10, seed=1)
    want = tensor_cores.weight_gradient(x, dy, 3, 7).sum(0)
    monkeypatch.setattr(tensor_cores, "ENOUGH_PROGRAMS", 1)
    assert error(tensor_cores.weight_gradient(x, dy, 3, 7).sum(0), want.double()) < 1e-6


@pytest.mark.parametrize(("H", "steps", "gradient_steps"), [(7, 8, 8), (14, 16, 14), (20, 20, 20), (1, 4, 2)])
def test_a_whole_frame_is_multiplied_row_by_row_and_nothing_beyond_it(H, steps, gradient_steps, on_cpu, monkeypatch):
    products = []
    add = gluon_on_numpy.mma_v2
    monkeypatch.setattr(gluon_on_numpy, "mma_v2", lambda *operands: products.append(operands) or add(*operands))
    monkeypatch.setattr(tensor_cores, "kernels", gluon_on_numpy.on_numpy(tensor_core_kernels))
    x, weight, bias = draw(1, 8, 2 * STRIPS, H, 8), torch.randn(8, 1, 1, 7, 7), torch.randn(8)
    tensor_cores.convolve(x, weight, bias, torch.empty_like(x), multiprocessors=1)
    late = 3 * 3  # the last rows of x, and the first half of the kernel
    assert len(products) == 2 * (7 * steps + late)
    products.clear()
    tensor_cores.weight_gradient(x, x, 1, 7)
    assert len(products) == 2 * 7 * gradient_steps


def test_a_clip_gets_the_same_bits_in_any_batch_and_in_any_configuration(on_cpu):
    x = draw(3, 32, 2, 9, 10)
    weight, bias = torch.randn(32, 1, 1, 7, 7), torch.randn(32)
    together = torch.empty_like(x)
    tensor_cores.convolve(x, weight, bias, together, 1)
    for config in CONVOLUTION[1]:
        for multiprocessors in (1, 64):
            for i in range(3):
                clip = x[i : i + 1]
                alone = torch.empty_like(clip)
                tensor_cores.convolve(clip, weight, bias, alone, multiprocessors, config)
                assert torch.equal(alone, together[i : i + 1]), (config, multiprocessors)


@pytest.mark.parametrize("storage", ["whole", "begins in the middle of a word", "neither begins at a word"])
def test_memory_that_begins_in_the_middle_of_a_word_is_read_as_well(storage, on_cpu):
    x = draw(1, 8, 2, 3, 4)
    memory = np.zeros(x.numel() + 2, dtype=np.float16)
    flat = torch.from_numpy(memory if storage == "whole" else memory[1:])  # the latter as DLPack may give it
    flat = flat if storage == "begins in the middle of a word" else flat[1:]
    moved = flat[: x.numel()].as_strided(x.shape, x.stride()).copy_(x)
    assert moved.storage_offset() % 2 or moved.data_ptr() % 4
    assert tensor_cores._words(moved).data_ptr() % 4 == 0
    weight, bias = torch.randn(8, 1, 1, 7, 7), torch.randn(8)
    y, want = torch.empty_like(x), torch.empty_like(x)
    tensor_cores.convolve(moved, weight, bias, y, 1)
    tensor_cores.convolve(x, weight, bias, want, 1)
    assert torch.equal(y, want)


LAYER = tensor_cores.Layer(torch.device("cuda", 0), torch.bfloat16, 96, 3, 7)


@pytest.fixture
def none_refused(monkeypatch):
    monkeypatch.setattr(tensor_cores, "shared_memory", lambda device: H100[1])
    monkeypatch.setattr(tensor_cores, "_refused", {})


def test_a_kernel_that_does_not_compile_is_warned_of_and_left_alone_and_no_other(none_refused):
    assert tensor_cores.obstacle(LAYER) is None
    with pytest.raises(ZeroDivisionError):
        tensor_cores.attempt(LAYER, lambda: 1 // 0)
    assert tensor_cores.obstacle(LAYER) is None

    def fail():
        raise CompilationError("def kernel(): ...", ast.Pass(lineno=1, col_offset=0), "no mma_v2")

    with pytest.warns(UserWarning, match=r"(?s)C=96, k_t=3.*runs without tensor cores, slower.*no mma_v2"):
        assert tensor_cores.attempt(LAYER, fail) is None
    assert tensor_cores.obstacle(LAYER) == f"Triton {triton.__version__} does not compile it: CompilationError"
    others = {"device": torch.device("cuda", 1), "dtype": torch.float16, "C": 192, "k_t": 1, "role": "weight_gradient"}
    for name, value in others.items():
        assert tensor_cores.obstacle(replace(LAYER, **{name: value})) is None, name


@pytest.mark.parametrize(("deaths", "refused"), [(1, False), (2, True)])
def test_a_compiler_that_a_signal_ended_is_run_again(deaths, refused, none_refused, recwarn):
    done = iter([PTXASError("`ptxas` failed with error code -9")] * deaths + [torch.ones(1)])

    def run():
        result = next(done)
        if isinstance(result, Exception):
            raise result
        return result

    assert (tensor_cores.attempt(LAYER, run) is None) == refused
    assert (tensor_cores.obstacle(LAYER) is not None) == refused
    assert len(recwarn) == refused


@gluon.jit
def _conflicts(p, N: gl.constexpr, BC: gl.constexpr):
    NW: gl.constexpr = gl.num_warps()
    loaded = gl.zeros([N, 8, BC // 2], gl.int32, _memory_layout((N, 8, BC // 2), NW, 2))
    words = _transpose_pairs(loaded, loaded, BC, NW)
    shared = gl.allocate_shared_memory(gl.int32, [BC, N, 8], _shared_layout(N, BC, NW))
    shared.store(words)
    fragment = shared.load(_fragment_layout(N, BC, NW))
    gl.static_assert(gl.bank_conflicts(words.type, shared.type) == 0, "conflicts as words are stored")
    gl.static_assert(gl.bank_conflicts(fragment.type, shared.type) == 0, "conflicts as a fragment is loaded")
    copied = gl.allocate_shared_memory(gl.int32, [N, 8, BC // 2], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
    gl.static_assert(gl.bank_conflicts(loaded.type, copied.type) == 0, "conflicts as copied words are loaded")


@pytest.mark.parametrize("config", dict.fromkeys([*sum(CONVOLUTION.values(), ()), *WEIGHT_GRADIENT]), ids=str)
def test_shared_memory_is_written_and_read_without_conflicts(config):
    for N in (16, 8) if config in WEIGHT_GRADIENT else (16,):
        triton.compile(
            GluonASTSource(
                _conflicts, {"p": "*i32", "N": "constexpr", "BC": "constexpr"}, {(1,): N, (2,): config.BC}, attrs={}
            ),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": config.num_warps},
        )


@pytest.mark.parametrize(("multiprocessors", "shared"), [H100, A10])
@pytest.mark.parametrize("K", [3, 5, 7])
@pytest.mark.parametrize("k_t", [1, 3, 5, 7])
@pytest.mark.parametrize("C", [8, 24, 40, 96, 768, 776])
def test_every_layer_has_configurations_that_fit(C, k_t, K, multiprocessors, shared):
    configs = tensor_cores.candidates(C, k_t, K, shared)
    assert configs
    for config in configs:
        assert C % config.BC == 0
        assert config.BC % config.num_warps == 0, "a warp owns whole channels"
        assert config.shared_bytes(k_t, K) <= shared
    for shape in ((1, C, 64, 160, 160), (1, C, 32, 7, 7), (2, C, 1, 1, 1)):
        assert tensor_cores.choose(configs, torch.Size(shape), k_t, K, multiprocessors) in configs


def test_few_frames_are_spread_over_more_programs_than_many():
    configs = tensor_cores.candidates(768, 1, 7, H100[1])
    many = tensor_cores.choose(configs, torch.Size((1, 768, 64, 160, 160)), 1, 7, H100[0])
    few = tensor_cores.choose(configs, torch.Size((1, 768, 32, 7, 7)), 1, 7, H100[0])
    assert many == CONVOLUTION[1][0]
    assert few.BC < many.BC


@pytest.mark.parametrize("shape", [(1, 96, 64, 160, 160), (1, 96, 32, 56, 56), (3, 96, 5, 13, 9), (1, 96, 1, 1, 1)])
def test_programs_take_every_strip(shape):
    config = CONVOLUTION[1][0]
    cut = tensor_cores.cut(config, torch.Size(shape), 1, 7, H100[0])
    assert cut.rows * cut.height >= shape[3]
    assert cut.columns * COLUMNS >= shape[4]
    assert tensor_cores.programs(config, cut, 96) * STRIPS >= cut.count * (96 // config.BC)


def test_weights_of_more_frames_than_registers_hold_are_left_to_the_march():
    assert max(CONVOLUTION) == tensor_cores.MOST_FRAMES
