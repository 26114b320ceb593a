"""Compiles the shipped configurations for GPUs that need not be there, and reads what the compiler says of them.

    python -m bench.offline                   the table of the kernel's README: sm_80, sm_90 and sm_100
    python -m bench.offline --arch 90 --k-t 1

Exits with 1 if a kernel spills more registers to the stack than is allowed: two of a march; of a tensor-core kernel,
most of which are held to 128 registers so that a multiprocessor has 16 warps, a few values that its loop seldom reads.
"""

import argparse
import collections
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from dover_kernels.dwconv3d_layernorm import launch, tensor_cores
from dover_kernels.dwconv3d_layernorm import triton_kernels as kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)
#: Bytes of stack that a march and a tensor-core kernel may have.
MARCH_STACK, TENSOR_CORE_STACK = 8, 88
#: Pointers to activations; all others are fp32.
ACTIVATIONS = {"p_x", "p_y", "p_z", "p_dy", "p_dz"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Case:
    """One kernel as it is launched: its role, its constants and the dtype of activations."""

    role: str
    kernel: Any
    constants: dict[str, Any]
    dtype: str
    num_warps: int
    maxnreg: int | None = None

    def __str__(self) -> str:
        shown = ("C", "KT", "R", "BP", "BC", "NC", "EVEN", "BM", "AHEAD")
        constants = " ".join(f"{k}={v}" for k, v in self.constants.items() if k in shown)
        if self.on_tensor_cores:  # configurations that differ in it alone
            constants += f" warps={self.num_warps}"
            constants += f" registers={self.maxnreg}" if self.maxnreg not in (None, 128) else ""
        return f"{self.role} {self.dtype} {constants}"

    @property
    def on_tensor_cores(self) -> bool:
        return "AHEAD" in self.constants  # rows in flight, which only their kernels have


@dataclass(frozen=True)
class Report:
    """What the compiler made of it: registers a thread, bytes of stack, and the share of the instructions of its
    loop over rows that multiply (FFMA; on sm_100 also FFMA2, which does two; HMMA)."""

    registers: int
    stack: int
    products: float


def cases(C: int, k_t: int, dtype: str) -> Iterator[Case]:
    """Every kernel of a layer with C channels and a (k_t,7,7) kernel, in each configuration of the table, and as
    well in the one for rows that no strip divides."""
    itemsize = 4 if dtype == "fp32" else 2
    roles = ["inference", "training", "input_gradient", "weight_gradient"]
    if launch.candidates("inference", C, k_t, itemsize) == launch.candidates("training", C, k_t, itemsize):
        roles.remove("inference")  # the same kernels: z is y's buffer, or is not
    for role in roles:
        tiles = launch.candidates(role, C, k_t, itemsize)
        for tile, even in [*((tile, True) for tile in tiles), (launch.fits(tiles, 1)[0], False)]:
            yield march(role, tile, C, k_t, dtype, even)
    config = launch.normalize_config(C)
    num_warps = config.pop("num_warps")
    yield Case("layernorm", kernels.layernorm_kernel, {"C": C, **config, "SAVE": True}, dtype, num_warps)
    config = launch.normalize_config(C, backward=True)
    num_warps = config.pop("num_warps")
    yield Case("layernorm_backward", kernels.layernorm_backward_kernel, {"C": C, **config}, dtype, num_warps)


def tensor_core_cases(C: int, k_t: int, dtype: str) -> Iterator[Case]:
    """Every tensor-core kernel of a layer, in each configuration; none where this Triton has no Gluon for them."""
    if tensor_cores.kernels is None:
        return
    layer = {"C": C, "KT": k_t, "K": 7}
    for config in tensor_cores.candidates(C, k_t, 7, 2**18):
        constants = layer | {"BC": config.BC, "AHEAD": config.ahead}
        for role, flip in (("convolution", False), ("input_gradient", True)):
            kernel = tensor_cores.kernels.convolution_kernel
            yield Case(role, kernel, constants | {"FLIP": flip}, dtype, config.num_warps, config.maxnreg)
    for config in tensor_cores.WEIGHT_GRADIENT:
        constants = layer | {
            "BC": config.BC,
            "AHEAD": config.ahead,
            "dtype": {"bf16": tl.bfloat16, "fp16": tl.float16}[dtype],
        }
        kernel = tensor_cores.kernels.weight_gradient_kernel
        yield Case("weight_gradient", kernel, constants, dtype, config.num_warps, config.maxnreg)


def march(role: str, tile: launch.Tile, C: int, k_t: int, dtype: str, even: bool) -> Case:
    """A marching kernel as `launch` starts it for `role`; `even` where the strips divide the row."""
    constants = {"C": C, "KT": k_t, "K": 7, "R": tile.R, "BP": tile.BP, "BC": tile.BC, "EVEN": even}
    if role == "weight_gradient":
        return Case(role, kernels.weight_gradient_kernel, constants, dtype, tile.num_warps)
    norm = tile.NC * tile.BC == C and role != "input_gradient"
    save = role == "training" or not norm
    constants |= {"NC": tile.NC, "FLIP": role == "input_gradient", "NORM": norm, "SAVE": save}
    return Case(role, kernels.convolution_kernel, constants, dtype, tile.num_warps)


def compile_case(case: Case, architecture: int) -> Report:
    names = case.kernel.arg_names

    def kind(name: str) -> str:
        if name in case.constants:
            return "constexpr"
        if case.on_tensor_cores and name in ("p_x", "p_dy"):
            return "*i32"
        if name.startswith("p_"):
            return "*" + (case.dtype if name in ACTIVATIONS else "fp32")
        return "fp32" if name == "eps" else "i32"

    signature = {name: kind(name) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.startswith("p_")}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    source = ASTSource
    if case.on_tensor_cores:
        from triton.experimental.gluon._runtime import GluonASTSource as source  # which Triton has from 3.4 on
    compiled = triton.compile(
        source(case.kernel, signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={**launch.OPTIONS, "num_warps": case.num_warps, "maxnreg": case.maxnreg},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _dump(file.name, "--dump-resource-usage")
        assembly = _dump(file.name, "-sass")
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reports no registers for {case}: {usage!r}")
    within_strips = case.on_tensor_cores and case.role == "weight_gradient"
    return Report(int(found[1]), int(found[2]), _share_of_products(assembly, within_strips))


def _dump(path: str, what: str) -> str:
    return subprocess.run([CUOBJDUMP, what, path], capture_output=True, text=True, check=True).stdout


def _share_of_products(assembly: str, inner: bool) -> float:
    """Multiplications' share of the row step, with everything in it: of the longest loop, or of the one inside that."""
    instructions = [(int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", assembly)]
    loops: list[list[str]] = []
    for address, text in instructions:
        target = re.search(r"BRA(?:\.\w+)*\s+(?:\S+,\s*)?`?\(?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append([t for a, t in instructions if int(target[1], 16) <= a <= address])
    if not loops:
        return 0.0
    loops.sort(key=len)
    loop = loops[-2 if inner and len(loops) > 1 else -1]
    opcodes = collections.Counter(re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0] for text in loop)
    return sum(opcodes[name] for name in ("FFMA", "FFMA2", "HMMA")) / len(loop)


def _all_cases(C: int, k_t: int, dtype: str) -> list[Case]:
    marches = cases(C, k_t, dtype) if k_t <= 3 else ()  # longer ones are k_t = 3 with a longer loop
    return [*marches, *(tensor_core_cases(C, k_t, dtype) if dtype != "fp32" else ())]


def _compile_nth(layer: tuple[int, int, str], i: int, architecture: int) -> Report:
    """A kernel does not travel to another process, its place in the list does."""
    return compile_case(_all_cases(*layer)[i], architecture)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--channels", type=int, nargs="+", default=[96, 768])
    parser.add_argument("--k-t", type=int, nargs="+", default=[1, 3, 5, 7])
    parser.add_argument("--dtype", nargs="+", default=["bf16", "fp32"])
    options = parser.parse_args(arguments)
    layers = [(C, k_t, dtype) for C in options.channels for k_t in options.k_t for dtype in options.dtype]
    spilled = 0
    print("| kernel | " + " | ".join(f"sm_{arch}: registers, stack, products" for arch in options.arch) + " |")
    print("|---|" + "---|" * len(options.arch))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        asked = [
            (case, [pool.submit(_compile_nth, layer, i, arch) for arch in options.arch])
            for layer in layers
            for i, case in enumerate(_all_cases(*layer))
        ]
        for case, futures in asked:
            reports = [future.result() for future in futures]
            allowed = TENSOR_CORE_STACK if case.on_tensor_cores else MARCH_STACK
            spilled += any(report.stack > allowed for report in reports)
            cells = [f"{r.registers}, {r.stack}, {r.products:.0%}" for r in reports]
            print(f"| {case} | " + " | ".join(cells) + " |", flush=True)
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
