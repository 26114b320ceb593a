"""Launches the Triton kernels: allocation, grids, and the choice of a configuration. With `tensor_cores`, whose part it
calls where they serve, the only importer of Triton.

Every function takes and returns (B,C,T,H,W) tensors; results are channels_last_3d, and so are operands read without a
copy. A configuration never changes a bit of the convolution (see `triton_kernels`), so it may depend on the batch. The
weight gradient's sums and a fused LayerNorm's do depend on theirs, which therefore follow from the layer, the row and
the GPU's model alone.

The first launch for a layer compiles its kernels, again for other shapes and alignments, and outside of the table times
configurations: neither can be captured, so call once with the same tensors before a CUDA graph is.
"""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.testing
from torch import Tensor

from dover_kernels.dwconv3d_layernorm import strips, tensor_cores
from dover_kernels.dwconv3d_layernorm import triton_kernels as kernels
from dover_kernels.dwconv3d_layernorm.strips import Strips

#: True under TRITON_INTERPRET=1, which runs the kernels on CPU tensors.
INTERPRETED = not isinstance(kernels.layernorm_kernel, triton.JITFunction)

#: Of every launch. A product and a sum become one FFMA, for speed and for bits that stay: the default only up to
#: Triton 3.9.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}
#: Programs of the LayerNorm backward, each of which leaves one row of partial sums.
LAYERNORM_PROGRAMS = 2112


@dataclass(frozen=True)
class Tile:
    """A configuration of a marching kernel: BP strips of R columns, NC chunks of BC channels a program; its registers
    let `per_sm` programs share a multiprocessor."""

    R: int
    BP: int
    BC: int
    NC: int = 1
    num_warps: int = 4
    per_sm: int = 2


@dataclass(frozen=True)
class Gpu:
    """What tuned configurations are filed under: a model, such as "NVIDIA H200", and its architecture, such as "sm_90"
    or "gfx942"."""

    model: str
    architecture: str


#: "tiles": configurations of the marches by layer and role, best first, chosen from the compiler's figures; "tuned": by
#: model of GPU, the fastest one by layer, row length and role, timed by `bench.tune`.
CONFIGS = Path(__file__).with_name("configs.json")


@cache
def _table() -> dict[str, Any]:
    return json.loads(CONFIGS.read_text())


def layer_name(C: int, k_t: int, itemsize: int) -> str:
    """The table's name for a layer."""
    return f"C={C} k_t={k_t} bits={8 * itemsize}"


@cache
def gpu(device: torch.device) -> Gpu | None:
    """None in the interpreter."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Gpu(properties.name, str(properties.gcnArchName).split(":")[0])
    return Gpu(properties.name, f"sm_{properties.major}{properties.minor}")


def chunk(C: int) -> int:
    """Channels a chunk: the largest power of two that divides C, at most 32, so that no lane is padding."""
    return min(C & -C, 32)


def candidates(role: str, C: int, k_t: int, itemsize: int, W: int | None = None, on: Gpu | None = None) -> list[Tile]:
    """The configurations of `role` ("inference", "training", "input_gradient" or "weight_gradient"), best first, at
    most four; a single one where the layer has been tuned for rows of W columns on such a GPU. A forward
    configuration whose NC * BC is C takes LayerNorm along; others leave it to its own kernel."""
    tuned = _tuned_for(C, k_t, itemsize, W, on)
    if role in tuned:
        return [Tile(**tuned[role])]
    entry = _table()["tiles"].get(layer_name(C, k_t, itemsize))
    if entry is not None:
        return [Tile(**tile) for tile in entry[role]]
    BC = chunk(C)
    if role == "weight_gradient":
        return [Tile(R, 256 // BC, BC) for R in (8, 7)]
    tiles = [Tile(R, BP // BC, BC, per_sm=n) for R, BP, n in ((8, 256, 2), (7, 256, 2), (8, 128, 5), (7, 128, 5))]
    # With LayerNorm along, the channels that a thread holds order its sums: whichever wins, the bits must not differ.
    return tiles[:2] if BC == C else tiles


def tensor_core_config(C: int, k_t: int, itemsize: int, W: int, on: Gpu | None) -> tensor_cores.Config | None:
    """What the layer has been tuned to on tensor cores of such a GPU; None where it has not, or where nothing was
    faster than their own choice."""
    entry = _tuned_for(C, k_t, itemsize, W, on).get("convolution")
    return tensor_cores.Config(**entry) if entry else None


def _tuned_for(C: int, k_t: int, itemsize: int, W: int | None, on: Gpu | None) -> dict[str, Any]:
    """By role: what was found on the same model of GPU; where that lacks the layer, on another of its architecture."""
    if on is None:
        return {}
    name = f"{layer_name(C, k_t, itemsize)} W={W}"
    for _, section in sorted(_table()["tuned"].items(), key=lambda item: item[0] != on.model):
        if section["architecture"] == on.architecture and name in section["tiles"]:
            return section["tiles"][name]
    return {}


def fits(tiles: list[Tile], W: int) -> list[Tile]:
    """Those whose strips tile a row of W columns exactly; where none does all, the narrowest first, which overhang the
    least and have registers left for the masks."""
    return [tile for tile in tiles if W % tile.R == 0] or sorted(tiles, key=lambda tile: tile.R)


def plan(tile: Tile, shape: torch.Size, multiprocessors: int, K: int = 7) -> Strips:
    """How `tile` cuts frames of `shape`."""
    chunks = shape[1] // (tile.BC * tile.NC)
    return strips.plan(tile.R, tile.BP, chunks, shape, multiprocessors * tile.per_sm, K)


def plan_weight_gradient(tile: Tile, shape: torch.Size, k_t: int) -> tuple[Strips, int]:
    """The cut, and the slabs, each of which adds up its own share of the strips."""
    B, C, T, H, W = shape
    cut = Strips.cut(B * T, H, W, tile.R, math.ceil(H / 32))
    return cut, strips.slabs(cut, tile.BP, C // tile.BC * k_t)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


_tuned: dict[tuple[Any, ...], Tile] = {}


def _choose(role: str, x: Tensor, k_t: int, run: Callable[[Tile], object]) -> Tile:
    """The first configuration of the table; outside of it, the fastest of at most four, timed at the first call, or
    the first where there is no memory for that."""
    C, W = x.shape[1], x.shape[4]
    tiles = fits(candidates(role, C, k_t, x.element_size(), W, gpu(x.device)), W)
    if len(tiles) == 1 or layer_name(C, k_t, x.element_size()) in _table()["tiles"]:
        return tiles[0]
    if INTERPRETED or torch.cuda.is_current_stream_capturing():
        return tiles[0]
    key = (role, x.device, x.dtype, C, k_t, *tiles)
    if key not in _tuned:
        try:
            times = [triton.testing.do_bench(lambda tile=tile: run(tile), warmup=5, rep=20) for tile in tiles]
            _tuned[key] = tiles[times.index(min(times))]
        except torch.OutOfMemoryError:  # 256 MB, by which do_bench empties the L2 cache
            _tuned[key] = tiles[0]
    return _tuned[key]


def _on(x: Tensor) -> Any:
    """Launches go to the device of x, whichever is current; the interpreter needs no device."""
    if x.device.type == "cuda":
        return torch.cuda.device(x.device)
    if not INTERPRETED:
        raise RuntimeError(f"the Triton kernels of dwconv3d_layernorm run on a GPU, got a tensor on {x.device}")
    return nullcontext()


def _convolved_on_tensor_cores(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> bool:
    """Whether y is conv(x) + bias now, or without a bias its adjoint."""
    C, k_t, K = x.shape[1], weight.shape[2], weight.shape[3]
    role = "input_gradient" if bias is None else "convolution"
    layer = tensor_cores.Layer(x.device, x.dtype, C, k_t, K, role)
    if tensor_cores.obstacle(layer):
        return False
    tuned = tensor_core_config(C, k_t, x.element_size(), x.shape[4], gpu(x.device))
    multiprocessors = _multiprocessors(x.device)
    convolved = tensor_cores.attempt(layer, lambda: tensor_cores.convolve(x, weight, bias, y, multiprocessors, tuned))
    return convolved is not None


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _frames_met(weight: Tensor, T: int) -> Tensor:
    """In a single frame only the middle of the kernel meets anything."""
    return weight[:, :, weight.shape[2] // 2].unsqueeze(2) if T == 1 else weight


def _taps(weight: Tensor) -> Tensor:
    """(C,1,k_t,K,K) as fp32 [k_t * K * K, C], so that a chunk's tap is one load."""
    C, _, k_t, K, _ = weight.shape
    taps = torch.empty(k_t * K * K, C, dtype=torch.float32, device=weight.device)
    return taps.copy_(weight.reshape(C, -1).t())


def normalize_config(C: int, backward: bool = False) -> dict[str, int]:
    """A block [BM, CP] of about 1024 to 2048 elements, backward 512: few warps that hold much each, since rows are
    summed over a warp's lanes. Timed on an H200 (NOTES.md)."""
    CP = triton.next_power_of_2(C)
    elements = 512 if backward else 1024 if CP <= 128 else 2048
    num_warps = max(1, CP // 1024) if backward else 2 if CP == 256 else max(1, CP // 2048)
    return {"CP": CP, "BM": max(1, elements // CP), "num_warps": num_warps}


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z (B,C,T,H,W); and if `save`, the convolution's output y, and mean and rstd (B,T,H,W) in fp32, else empty."""
    x = _dense(x)
    B, _, T, H, W = x.shape
    z = torch.empty_like(x)
    y = torch.empty_like(x) if save else z
    mean, rstd = (x.new_empty((B, T, H, W) if save else (0,), dtype=torch.float32) for _ in range(2))
    if x.numel():
        weight = _frames_met(weight, T)
        parameters = [p.contiguous() for p in (bias, ln_weight, ln_bias)]
        with _on(x):
            if _convolved_on_tensor_cores(x, weight, parameters[0], y):
                _normalize(y, z, parameters[1], parameters[2], mean, rstd, eps, save)
            else:
                _march_forward(x, weight, parameters, y, z, mean, rstd, eps, save)
    return z, y if save else x.new_empty(0), mean, rstd


def _march_forward(
    x: Tensor, weight: Tensor, parameters: list[Tensor], y: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, eps: float,
    save: bool,
) -> None:  # fmt: skip
    taps, k_t, K = _taps(weight), weight.shape[2], weight.shape[3]
    bias, ln_weight, ln_bias = parameters
    pointers = Pointers(bias, ln_weight, ln_bias, y, z, mean, rstd)

    def run(tile: Tile) -> None:
        fused = x.shape[1] == tile.NC * tile.BC
        _march(x, taps, pointers, tile, k_t, K, eps, norm=fused, save=save or not fused, flip=False)
        if not fused:
            _normalize(y, z, ln_weight, ln_bias, mean, rstd, eps, save)

    run(_choose("training" if save else "inference", x, k_t, run))


def _normalize(
    y: Tensor, z: Tensor, ln_weight: Tensor, ln_bias: Tensor, mean: Tensor, rstd: Tensor, eps: float, save: bool
) -> None:
    C = y.shape[1]
    n, config = y.numel() // C, normalize_config(C)
    grid = (triton.cdiv(n, config["BM"]),)
    kernels.layernorm_kernel[grid](
        y, z, ln_weight, ln_bias, mean, rstd, n, eps, C=C, SAVE=save, **config, **OPTIONS
    )  # fmt: skip


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """dx (B,C,T,H,W): the convolution of dy with the kernel turned around on its three axes."""
    dy = _dense(dy)
    dx = torch.empty_like(dy)
    if dy.numel():
        weight = _frames_met(weight, dy.shape[2])
        k_t, K = weight.shape[2:4]
        with _on(dy):
            if _convolved_on_tensor_cores(dy, weight, None, dx):
                return dx
            taps = _taps(weight)
            pointers = Pointers(bias=taps, ln_weight=taps, ln_bias=taps, y=dx, z=dx, mean=taps, rstd=taps)

            def run(tile: Tile) -> None:
                _march(dy, taps, pointers, tile, k_t, K, eps=0.0, norm=False, save=True, flip=True)

            run(_choose("input_gradient", dy, k_t, run))
    return dx


class Pointers(NamedTuple):
    """The tensors of a march beside x and the taps, in the kernel's order. Any tensor may stand in for one that the
    kernel does not read: with `flip` the bias, without `norm` all but the bias and y."""

    bias: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    y: Tensor
    z: Tensor
    mean: Tensor
    rstd: Tensor


def _march(
    x: Tensor, taps: Tensor, pointers: Pointers, tile: Tile, k_t: int, K: int, eps: float,
    *, norm: bool, save: bool, flip: bool,
) -> None:  # fmt: skip
    C, T, H, W = x.shape[1:]
    cut = plan(tile, x.shape, _multiprocessors(x.device), K)
    grid = (triton.cdiv(cut.count, tile.BP) * (C // (tile.BC * tile.NC)),)
    kernels.convolution_kernel[grid](
        x, taps, *pointers, T, H, W, cut.rows, cut.columns, cut.count, cut.height, eps,
        C=C, KT=k_t, K=K, R=tile.R, BP=tile.BP, BC=tile.BC, NC=tile.NC, EVEN=cut.even, FLIP=flip, NORM=norm,
        SAVE=save, num_warps=tile.num_warps, **OPTIONS,
    )  # fmt: skip


def layernorm_backward(dz: Tensor, y: Tensor, ln_weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """dy (B,C,T,H,W) in y's dtype; d(gamma), d(beta) and d(bias) as one (3,C) in fp32."""
    dz, y = _dense(dz), _dense(y)
    C, n = y.shape[1], mean.numel()
    dy = torch.empty_like(y)
    config = normalize_config(C, backward=True)
    # At least three blocks each: in small frames the partial sums would take more memory than all activations.
    programs = min(triton.cdiv(n, 3 * config["BM"]), LAYERNORM_PROGRAMS)
    partial = y.new_empty((programs, 3, C), dtype=torch.float32)
    if not n:
        return dy, partial.sum(0)
    with _on(y):
        kernels.layernorm_backward_kernel[(programs,)](
            dz, y, ln_weight.contiguous(), mean, rstd, dy, partial, n, C=C, **config, **OPTIONS
        )
        return dy, _sum_rows(partial)


def weight_gradient(x: Tensor, dy: Tensor, k_t: int, K: int) -> Tensor:
    """(C,1,k_t,K,K) in fp32: one row of partial sums a slab, added in the order of the slabs."""
    C, T = x.shape[1:3]
    if not x.numel():
        return x.new_zeros((C, 1, k_t, K, K), dtype=torch.float32)
    x, dy = _dense(x), _dense(dy)
    if T == 1 and k_t > 1:  # only the middle of the kernel meets anything
        gradient = x.new_zeros((C, 1, k_t, K, K), dtype=torch.float32)
        gradient[:, :, k_t // 2] = weight_gradient(x, dy, 1, K)[:, :, 0]
        return gradient
    with _on(x):
        partial = _weight_gradient_on_tensor_cores(x, dy, k_t, K)
        if partial is None:
            partial = _march_weight_gradient(x, dy, k_t, K)
        return _sum_rows(partial, channels_first=True).view(C, 1, k_t, K, K)


def _sum_rows(rows: Tensor, channels_first: bool = False) -> Tensor:
    """[n, items, C] in fp32 -> the sum over n, [items, C] or [C, items]; PyTorch takes two kernels for it, and for the
    weight gradient's shapes 6 to 50 microseconds on an H200 (NOTES.md)."""
    n, items, C = rows.shape
    out = rows.new_empty((C, items) if channels_first else (items, C))
    strides = (1, items) if channels_first else (C, 1)
    BM = min(256, triton.next_power_of_2(n))
    kernels.sum_rows_kernel[(items * (C // 8),)](
        rows, out, n, *strides, C=C, ITEMS=items, BM=BM, num_warps=max(1, BM // 64), **OPTIONS
    )
    return out


def _weight_gradient_on_tensor_cores(x: Tensor, dy: Tensor, k_t: int, K: int) -> Tensor | None:
    """Partial sums; None where tensor cores do not serve."""
    layer = tensor_cores.Layer(x.device, x.dtype, x.shape[1], k_t, K, "weight_gradient")
    if tensor_cores.obstacle(layer):
        return None
    return tensor_cores.attempt(layer, lambda: tensor_cores.weight_gradient(x, dy, k_t, K))


def _march_weight_gradient(x: Tensor, dy: Tensor, k_t: int, K: int) -> Tensor:
    C, T, H, W = x.shape[1:]
    tile = fits(candidates("weight_gradient", C, k_t, x.element_size(), W, gpu(x.device)), W)[0]
    cut, slabs = plan_weight_gradient(tile, x.shape, k_t)
    partial = x.new_empty((slabs, k_t * K * K, C), dtype=torch.float32)
    kernels.weight_gradient_kernel[(slabs * k_t * (C // tile.BC),)](
        x, dy, partial, T, H, W, cut.rows, cut.columns, cut.count, cut.height, slabs,
        C=C, KT=k_t, K=K, R=tile.R, BP=tile.BP, BC=tile.BC, EVEN=cut.even,
        num_warps=tile.num_warps, **OPTIONS,
    )  # fmt: skip
    return partial
