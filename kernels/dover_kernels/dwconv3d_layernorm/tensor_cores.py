"""Launches the tensor-core kernels: which problems they take, and with which configuration.

They take 16-bit activations on NVIDIA GPUs of compute capability 8.0 and later. A configuration never changes a bit of
the convolution; of the weight gradient's sums it fixes the order, which therefore follows from the layer alone.
"""

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from dover_kernels.dwconv3d_layernorm.strips import Strips, plan, slabs

try:
    from dover_kernels.dwconv3d_layernorm import tensor_core_kernels as kernels
except ImportError:  # a Triton without Gluon, or without its mma_v2
    kernels = None  # type: ignore[assignment]

_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
#: Strips of a program, and columns of a strip: the rows and columns of m16n8k16's result.
STRIPS, COLUMNS = 16, 8
#: Most taps in time: their weights are held in registers.
MOST_FRAMES = 7


@dataclass(frozen=True)
class Config:
    """BC channels a program over `num_warps` warps, `ahead` rows of x in flight, at most `maxnreg` registers."""

    BC: int
    num_warps: int
    ahead: int
    maxnreg: int | None = 128

    @property
    def per_sm(self) -> int:
        """Programs that share a multiprocessor."""
        return max(1, 65536 // ((self.maxnreg or 255) * 32 * self.num_warps))

    def unroll(self, k_t: int, K: int) -> int:
        """Steps of the convolution's march that are taken at a time."""
        return math.lcm(K // 2 + 1, self.ahead) if k_t == 1 else K

    def shared_bytes(self, k_t: int, K: int) -> int:
        """Shared memory of the convolution: rows of words in fragments, at k_t = 1 also on their way; and one row of
        results."""
        rows = K // 2 + 1 + self.ahead if k_t == 1 else K
        return (2 * rows + 1) * self.BC * STRIPS * COLUMNS * 2


#: By taps in time, in the order in which they are tried where a layer has not been tuned.
CONVOLUTION = {
    1: (
        Config(32, 16, 4),
        Config(32, 16, 2),
        Config(16, 8, 4),
        Config(16, 8, 2),
        Config(16, 8, 8),
        Config(8, 8, 4),
    ),
    3: (Config(16, 16, 4), Config(8, 8, 4), Config(16, 16, 3)),
    5: (Config(8, 8, 8, None), Config(8, 8, 5, None), Config(8, 8, 5, 168)),
    7: (Config(8, 8, 10, None), Config(8, 8, 7, None)),
}
#: Many channels a program, and few for where those are too few programs.
WEIGHT_GRADIENT = (Config(16, 8, 2), Config(8, 8, 2))
#: Programs of the first that are enough: about three for four of the places that an H100 has.
ENOUGH_PROGRAMS = 200


@dataclass(frozen=True)
class Layer:
    """What a kernel is compiled for: x's device and dtype, C channels, a kernel (k_t,K,K), and which of "convolution",
    "input_gradient" and "weight_gradient" it computes."""

    device: torch.device
    dtype: torch.dtype
    C: int
    k_t: int
    K: int
    role: str = "convolution"


#: Why a layer does without tensor cores in this process, once its kernel did not compile.
_refused: dict[Layer, str] = {}
#: What Triton says of a ptxas that a signal ended.
_DIED = re.compile(r"`ptxas` failed with error code -\d")


def obstacle(layer: Layer) -> str | None:
    """Why `layer` does not run on tensor cores; None where it does."""
    if kernels is None:
        return "this Triton has no Gluon with mma_v2"
    if layer in _refused:
        return _refused[layer]
    device, dtype, C, k_t, K = layer.device, layer.dtype, layer.C, layer.k_t, layer.K
    if device.type != "cuda" or torch.version.hip is not None:
        return "they are NVIDIA's"
    if dtype not in _DTYPES:
        return f"x is {dtype}"
    if k_t > MOST_FRAMES:
        return f"the kernel has {k_t} taps in time, and they take up to {MOST_FRAMES}"
    if not candidates(C, k_t, K, shared_memory(device)):
        return "a multiprocessor has too little shared memory"
    return None


def attempt(layer: Layer, run: Callable[[], Tensor]) -> Tensor | None:
    """What `run` gives; None where the kernel of `layer` does not compile, since Gluon still changes from one Triton to
    the next: that is warned of, and from then on `obstacle` says so of this layer. A compiler that a signal ended, as
    where memory is short, is run a second time."""
    try:
        try:
            return run()
        except TritonError as error:
            if not _DIED.search(str(error)):
                raise
            return run()
    except Exception as error:
        if not does_not_compile(error):
            raise
        _refused[layer] = f"Triton {triton.__version__} does not compile it: {type(error).__name__}"
        warnings.warn(f"{layer} runs without tensor cores, slower: {error}", stacklevel=2)
        return None


def does_not_compile(error: Exception) -> bool:
    """Whether it is Triton's or ptxas's word on a kernel; MLIR's passes raise a RuntimeError of no class of its own."""
    return isinstance(error, TritonError) or "PassManager" in str(error)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have."""
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


@lru_cache(maxsize=256)
def candidates(C: int, k_t: int, K: int, shared: int) -> tuple[Config, ...]:
    """The configurations for a layer that fit into `shared` bytes, best first."""
    configs = CONVOLUTION[min(taps for taps in CONVOLUTION if taps >= k_t)]
    return tuple(config for config in configs if C % config.BC == 0 and config.shared_bytes(k_t, K) <= shared)


@lru_cache(maxsize=1024)
def choose(configs: tuple[Config, ...], shape: torch.Size, k_t: int, K: int, multiprocessors: int) -> Config:
    """The first whose programs fill half of the device, else the one that has most: smaller programs fill more of it,
    but load less at a time (NOTES.md)."""
    counts = [programs(config, cut(config, shape, k_t, K, multiprocessors), shape[1]) for config in configs]
    return next(
        (config for config, count in zip(configs, counts, strict=True) if 2 * count >= multiprocessors),
        configs[counts.index(max(counts))],
    )


def cut(config: Config, shape: torch.Size, k_t: int, K: int, multiprocessors: int) -> Strips:
    slots = multiprocessors * config.per_sm
    return plan(COLUMNS, STRIPS, shape[1] // config.BC, shape, slots, K, unroll=config.unroll(k_t, K))


def programs(config: Config, strips: Strips, C: int) -> int:
    return math.ceil(strips.count / STRIPS) * (C // config.BC)


def _words(x: Tensor) -> Tensor:
    """The memory of dense channels-last x as 32-bit words, whatever strides its dimensions of size 1 have. Where it
    begins in the middle of a word, of its storage (which cannot be viewed) or of memory (which a GPU does not load, and
    which a storage from elsewhere, as by DLPack, may begin at), it is a copy."""
    flat = x.as_strided((x.numel(),), (1,))
    whole = x.storage_offset() % 2 == 0 and x.data_ptr() % 4 == 0
    return (flat if whole else flat.clone()).view(torch.int32)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, multiprocessors: int, tuned: Config | None = None
) -> Tensor:
    """y = conv(x) + bias; without a bias the adjoint of conv. x, y (B,C,T,H,W) dense in channels_last_3d, weight
    (C,1,k_t,K,K), which is rounded to x's dtype. `tuned` is taken in place of a choice."""
    C, T, H, W = x.shape[1:]
    k_t, K = weight.shape[2], weight.shape[3]
    config = tuned or choose(candidates(C, k_t, K, shared_memory(x.device)), x.shape, k_t, K, multiprocessors)
    strips = cut(config, x.shape, k_t, K, multiprocessors)
    weight = weight.contiguous()
    kernels.convolution_kernel[(programs(config, strips, C),)](
        _words(x), weight, weight if bias is None else bias, y, T, H, W,
        strips.rows, strips.columns, strips.count, strips.height,
        C=C, KT=k_t, K=K, BC=config.BC, AHEAD=config.ahead, FLIP=bias is None,
        num_warps=config.num_warps, maxnreg=config.maxnreg, enable_fp_fusion=True,
    )  # fmt: skip
    return y


def plan_weight_gradient(strips: Strips, C: int, k_t: int) -> tuple[Config, int]:
    """The configuration, and the slabs. They fix the order of sums, so they are no property of the device."""
    for config in WEIGHT_GRADIENT:
        if C % config.BC == 0:
            chunks = C // config.BC * k_t
            n_slabs = slabs(strips, STRIPS, chunks)
            if n_slabs * chunks >= ENOUGH_PROGRAMS:
                break
    return config, n_slabs


def weight_gradient(x: Tensor, dy: Tensor, k_t: int, K: int) -> Tensor:
    """Partial sums [slab, k_t * K * K, C] in fp32, to be added up."""
    C, T, H, W = x.shape[1:]
    strips = Strips.cut(x.shape[0] * T, H, W, COLUMNS, 1)
    config, n_slabs = plan_weight_gradient(strips, C, k_t)
    partial = x.new_empty((n_slabs, k_t * K * K, C), dtype=torch.float32)
    kernels.weight_gradient_kernel[(n_slabs * k_t * (C // config.BC),)](
        _words(x), _words(dy), partial, T, H, W, strips.columns, strips.count, n_slabs,
        C=C, KT=k_t, K=K, BC=config.BC, AHEAD=config.ahead, dtype=_DTYPES[x.dtype],
        num_warps=config.num_warps, maxnreg=config.maxnreg, enable_fp_fusion=True,
    )  # fmt: skip
    return partial
