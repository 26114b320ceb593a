"""Which configurations of the marches are worth timing, by what the compiler makes of them; `bench.tune` times them."""

import itertools
import math
import sys
import time
from concurrent.futures import Executor
from concurrent.futures import TimeoutError as Unfinished

import torch
from dover_kernels.dwconv3d_layernorm import launch
from dover_kernels.dwconv3d_layernorm.launch import Tile
from dover_kernels.dwconv3d_layernorm.tensor_cores import does_not_compile

from bench.offline import Report, compile_case, march
from bench.registry import Problem

ROLES = ("inference", "training", "input_gradient", "weight_gradient")
STRIP_WIDTHS = (4, 5, 7, 8, 10)
#: Registers of a multiprocessor, and the threads and the programs that it holds at most.
REGISTERS, THREADS, PROGRAMS = 65536, 2048, 32
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class TimeIsUp(Exception):
    """Nothing more may be begun."""


def space(role: str, C: int, k_t: int, W: int) -> list[Tile]:
    """Every configuration worth a compilation: strips that divide the row (where none does, the narrow ones), one or
    two channels a thread, 2 or 4 warps; at inference with k_t = 1 also LayerNorm along, where two or three chunks hold
    all channels."""
    widths = [R for R in STRIP_WIDTHS if W % R == 0] or [4, 5, 7]
    chunks = [BC for BC in (32, 64) if C % BC == 0] or [launch.chunk(C)]
    tiles = []
    for R, BC, num_warps, each in itertools.product(widths, chunks, (2, 4), (1, 2)):
        counts = [1, C // BC] if role == "inference" and k_t == 1 and C // BC in (2, 3) else [1]
        tiles += [Tile(R, 32 * num_warps * each // BC, BC, NC, num_warps) for NC in counts]
    return tiles


def resident(tile: Tile, report: Report) -> Tile:
    """`tile` with the programs that its registers let share a multiprocessor."""
    threads = 32 * tile.num_warps
    registers = math.ceil(report.registers / 8) * 8 * threads
    per_sm = max(1, min(REGISTERS // registers, THREADS // threads, PROGRAMS))
    return Tile(tile.R, tile.BP, tile.BC, tile.NC, tile.num_warps, per_sm)


def predict(role: str, tile: Tile, report: Report, problem: Problem, multiprocessors: int) -> float:
    """Instructions that a multiprocessor issues for the layer, idle waves and the overlap of strips included: how long
    it takes where multiplications bound it, in a unit that means nothing."""
    shape = torch.Size((problem.B, problem.C, problem.T, problem.H, problem.W))
    chunks = problem.C // (tile.BC * tile.NC)
    taps, steps = 49 * problem.k_t, 1
    if role == "weight_gradient":
        strips, slabs = launch.plan_weight_gradient(tile, shape, problem.k_t)
        programs, taps = slabs * problem.k_t * chunks, 49
        steps = math.ceil(math.ceil(strips.count / tile.BP) / slabs)
    else:
        strips = launch.plan(tile, shape, multiprocessors)
        programs = math.ceil(strips.count / tile.BP) * chunks
    waves = math.ceil(programs / (multiprocessors * tile.per_sm))
    products = taps * tile.R * tile.BP * tile.BC * tile.NC
    return waves * tile.per_sm * steps * (strips.height + 6) * products / max(report.products, 1e-3)


#: The arguments of `offline.march`.
Request = tuple[str, Tile, int, int, str, bool]
#: What the compiler made of each, or why it made nothing.
Figures = dict[Request, Report | str]


def compiled_as(problem: Problem, role: str, tile: Tile) -> Request:
    """The kernel whose figures stand for `tile`'s: of k_t = 3 for all longer ones, whose loop is the same."""
    return role, tile, problem.C, min(problem.k_t, 3), DTYPES[problem.dtype], problem.W % tile.R == 0


def compile_request(request: Request, architecture: int) -> Report | str:
    try:
        return compile_case(march(*request), architecture)
    except Exception as error:
        if not does_not_compile(error):
            raise
        return f"{type(error).__name__}: {error}"


def compile_all(pool: Executor, requests: set[Request], architecture: int, end: float) -> Figures:
    """Raises TimeIsUp where the clock passes `end` before the last is done."""
    futures = {request: pool.submit(compile_request, request, architecture) for request in requests}
    try:
        return {request: future.result(seconds_until(end)) for request, future in futures.items()}
    except Unfinished:
        for future in futures.values():
            future.cancel()
        raise TimeIsUp from None


def seconds_until(end: float) -> float | None:
    return None if end == math.inf else max(0.0, end - time.monotonic())


def screen(problem: Problem, role: str, figures: Figures, most: int, multiprocessors: int) -> list[Tile]:
    """The best of `space` by `predict` that compile and do not spill, at most `most`, after the table's own first
    choice."""
    shipped = launch.fits(launch.candidates(role, problem.C, problem.k_t, problem.dtype.itemsize), problem.W)[0]
    ranked = []
    for tile in space(role, problem.C, problem.k_t, problem.W):
        report = figures[compiled_as(problem, role, tile)]
        if isinstance(report, str):
            print(f"  {role} {tile}: dropped, {report}", file=sys.stderr)
        elif not report.stack:
            tile = resident(tile, report)
            ranked.append((predict(role, tile, report, problem, multiprocessors), tile))
    best = [tile for _, tile in sorted(ranked, key=lambda pair: pair[0]) if tile != shipped]
    return [shipped, *best][:most]
