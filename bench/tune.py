"""Finds the fastest configuration of every kernel for the layers of `bench.registry`, on the GPU of this machine.

    python -m bench.tune                              bfloat16, at most half an hour
    python -m bench.tune --dtype bfloat16 float32 --minutes 60 --candidates 8
    python -m bench.tune --only "k_t=1 " --minutes 8      again and again, until nothing is left

Writes what it finds into the kernel's configs.json, under the GPU's model and with the versions, after every kernel of
a layer: a run that was cut short goes on where it stopped, and `--again` starts over. Other models' entries stay.

Where the convolutions run on tensor cores, their few configurations are all timed, and so are those of `row_kernel` in
small frames, inference and training together, against the layer without it, which has been tuned before; the fastest
must be faster for eight clips as well. For every other kernel, configurations are compiled, those that spill or do not
compile are dropped, and the best by the compiler's figures are timed. Each is first checked in fp64, and the fastest
must also agree, at full size, with the shipped one. When the time is up nothing more is
compiled or timed, what runs is finished, and the kernel whose configurations were not all timed is left to the next
run. Needs a GPU that Triton compiles for.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures import TimeoutError as Unfinished
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
import triton
from dover_kernels import explain
from dover_kernels.dwconv3d_layernorm import launch, tensor_cores
from dover_kernels.dwconv3d_layernorm.launch import Tile
from dover_kernels.dwconv3d_layernorm.tensor_cores import Config, does_not_compile
from torch import Tensor

from bench.offline import Report, compile_case, march
from bench.registry import EPS, OPERATOR, Problem, gpu_problems, matching
from bench.run import gpu_times
from bench.verify import GRADIENT_TOLERANCE, WrongResult, verify

ROLES = ("inference", "training", "input_gradient", "weight_gradient")
#: What is tuned in place of `ROLES` where the convolutions run on tensor cores.
TENSOR_CORES = "convolution"
#: The whole forward pass of layers with `launch.row_tiles`, for which the table may have no configuration: not faster.
ROWS = "rows"
#: Clips at which rows must be faster too: the table has no batch size, so that no score depends on its batch.
SEVERAL = 8
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
        return {request: future.result(_seconds_until(end)) for request, future in futures.items()}
    except Unfinished:
        for future in futures.values():
            future.cancel()
        raise TimeIsUp from None


def _seconds_until(end: float) -> float | None:
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


@contextmanager
def only(role: str, config: Tile | Config | None) -> Iterator[None]:
    """Launches of `role` take `config`, whatever the table says; on tensor cores nothing takes its place either, where
    it does not compile. Rows are left to the other kernels, unless they are the role."""
    before = launch.candidates, launch.tensor_core_config, tensor_cores.attempt, launch.row_tile
    launch.row_tile = lambda *key: config if role == ROWS else None
    if role == TENSOR_CORES:
        launch.tensor_core_config = lambda *key: config
        tensor_cores.attempt = lambda run: run()
    elif role != ROWS:
        launch.candidates = lambda asked, *key: [config] if asked == role else before[0](asked, *key)
    try:
        yield
    finally:
        launch.candidates, launch.tensor_core_config, tensor_cores.attempt, launch.row_tile = before


def call(role: str, problem: Problem, device: str) -> Callable[[], object]:
    """The kernels of one role on the whole problem."""
    (x, weight, bias, gamma, beta), dz = problem.operands(device)
    x, dz = (t.detach().contiguous(memory_format=torch.channels_last_3d) for t in (x, dz))
    parameters = [p.detach() for p in (weight, bias, gamma, beta)]
    if role == "input_gradient":
        return lambda: launch.input_gradient(dz, parameters[0])
    if role == "weight_gradient":
        return lambda: launch.weight_gradient(x, dz, problem.k_t, 7)
    if role == ROWS:  # which serve both
        return lambda: tuple(t for save in (False, True) for t in launch.forward(x, *parameters, EPS, save))
    return lambda: launch.forward(x, *parameters, EPS, role == "training")


def fastest(
    role: str, problem: Problem, device: str, tiles: Sequence[Tile | Config | None],
    clock: Callable[[Callable[[], object]], float], end: float = math.inf,
) -> tuple[Tile | Config | None, float]:  # fmt: skip
    """The fastest of `tiles` and its time in ms. One that disagrees with the reference on a few frames, or at full size
    with the first that is right, or that does not compile or fit, is reported and dropped.

    Raises WrongResult if none is left, and TimeIsUp where the clock passes `end` before the last is begun.
    """
    run = call(role, problem, device)
    times: dict[Tile | Config | None, float] = {}
    for tile in tiles:
        if time.monotonic() > end:
            raise TimeIsUp
        with only(role, tile):
            try:
                verify(OPERATOR, problem.shorter(max(2, problem.k_t)), device)
                times[tile] = clock(run)
            except Exception as error:
                if not (isinstance(error, WrongResult) or does_not_compile(error)):
                    raise
                print(f"  {role} {tile}: dropped, {error}", file=sys.stderr)
    if not times:
        raise WrongResult(f"no configuration of {role} is right on {problem}")
    # A few frames are cut into other strips than all of them.
    standard, *_ = times
    ranked = sorted(times, key=lambda tile: times[tile])
    best = next(tile for tile in ranked if tile == standard or agrees(role, problem, run, tile, standard))
    return best, times[best]


def agrees(
    role: str, problem: Problem, run: Callable[[], object], tile: Tile | Config | None, standard: Tile | Config | None
) -> bool:
    """Whether `run` gives the same with both; says so where it does not."""
    error = difference(role, run, tile, standard)
    if error > GRADIENT_TOLERANCE[problem.dtype]:
        print(f"  {role} {tile}: dropped, {error:.1e} away from {standard} at full size", file=sys.stderr)
        return False
    return True


def difference(
    role: str, run: Callable[[], object], tile: Tile | Config | None, standard: Tile | Config | None
) -> float:
    """The largest relative norm difference of a result of `run` with `tile` from that with `standard`."""
    results = []
    for used in (standard, tile):
        with only(role, used):
            made = run()
        results.append([t for t in (made if isinstance(made, tuple) else (made,)) if t.numel()])
    return max(_relative(got, want) for want, got in zip(*results, strict=True))


def _relative(got: Tensor, want: Tensor) -> float:
    error = ((got.float() - want.float()).norm() / want.float().norm()).item()
    return error if error == error else math.inf


class Table:
    """configs.json, with what was tuned on one model of GPU. Raises ValueError where that was with another Triton,
    unless it is to be forgotten."""

    def __init__(self, path: Path, gpu: launch.Gpu, versions: dict[str, str], again: bool = False) -> None:
        self.path = path
        self.content = json.loads(path.read_text())
        section = {} if again else self.content["tuned"].get(gpu.model, {})
        if section and section["triton"] != versions["triton"]:
            raise ValueError(
                f"{gpu.model} was tuned with Triton {section['triton']}, and here it is {versions['triton']}: "
                "--again replaces all of it"
            )
        self.tiles = section.get("tiles", {})
        self.content["tuned"][gpu.model] = {"architecture": gpu.architecture, **versions, "tiles": self.tiles}

    @staticmethod
    def key(problem: Problem) -> str:
        return f"{launch.layer(problem.C, problem.k_t, problem.dtype.itemsize)} W={problem.W}"

    def lacks(self, problem: Problem, roles: tuple[str, ...] = ROLES) -> list[str]:
        """Those of `roles` that have not been tuned yet for this layer."""
        return [role for role in roles if role not in self.tiles.get(self.key(problem), {})]

    def put(self, problem: Problem, role: str, config: Tile | Config | None) -> None:
        """Takes `config`, leaves every other entry as it is, and writes the file."""
        entry: dict[str, Any] = {}
        if config is not None:
            defaults = {field.name: field.default for field in fields(config)}
            entry = {name: value for name, value in asdict(config).items() if value != defaults[name]}
        self.tiles.setdefault(self.key(problem), {})[role] = entry
        written = self.path.with_suffix(".part")
        written.write_text(dump(self.content))
        written.replace(self.path)
        launch._table.cache_clear()


def dump(content: dict[str, Any]) -> str:
    """JSON with a line a role, as the file has it."""
    text = json.dumps(content, indent=2)
    for innermost in (r"\{[^{}]*\}", r"\[[^\[\]]*\]"):
        text = re.sub(innermost, lambda match: re.sub(r"(?<=[{\[]) | (?=[}\]])", "", " ".join(match[0].split())), text)
    return text + "\n"


def tune(problems: list[Problem], table: Table, minutes: float, most: int) -> bool:
    """True if every problem is in the table now; False where the time was not enough."""
    end = time.monotonic() + 60 * minutes
    try:
        _tune(problems, table, end, most)
    except TimeIsUp:
        return False
    return True


def _tune(problems: list[Problem], table: Table, end: float, most: int) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    architecture = 10 * properties.major + properties.minor
    figures: Figures = {}
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for problem in problems:
            for role in table.lacks(problem, roles(problem)):
                tiles: Sequence[Tile | Config | None]
                if role == ROWS:
                    tiles = [None, *launch.row_tiles(problem.C, problem.W)]
                elif role == TENSOR_CORES:
                    tiles = tensor_cores.candidates(problem.C, problem.k_t, 7, tensor_cores.shared_memory(device))
                else:
                    asked = {compiled_as(problem, role, t) for t in space(role, problem.C, problem.k_t, problem.W)}
                    figures |= compile_all(pool, asked - figures.keys(), architecture, end)
                    tiles = screen(problem, role, figures, most, properties.multi_processor_count)
                config, milliseconds = fastest(role, problem, "cuda", tiles, gpu_clock, end)
                found = f"{milliseconds:8.3f} ms  {config}"
                if role == ROWS and config is not None:
                    several = replace(problem, B=SEVERAL)
                    config, milliseconds = fastest(role, several, "cuda", [None, config], gpu_clock, end)
                    found += f", and for {SEVERAL} clips {milliseconds:.3f} ms  {config}"
                table.put(problem, role, config)
                print(f"{problem}  {role:16} {found}", flush=True)


def roles(problem: Problem) -> tuple[str, ...]:
    """What is to be tuned for the layer on this GPU."""
    device = torch.device("cuda", torch.cuda.current_device())
    obstacle = tensor_cores.obstacle(device, problem.dtype, problem.C, problem.k_t, 7)
    rows = (ROWS,) if launch.row_tiles(problem.C, problem.W) else ()
    return (*(ROLES if obstacle else (TENSOR_CORES,)), *rows)


def gpu_clock(run: Callable[[], object]) -> float:
    """The median in ms. A graph is replayed: with its launches, a small layer takes as long in every configuration."""
    run()
    return statistics.median(gpu_times(run, 20)[0])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--minutes", type=float, default=30, help="nothing is compiled or timed after so long")
    parser.add_argument("--only", default="", help='problems whose name has this regular expression, such as "k_t=3"')
    parser.add_argument("--candidates", type=int, default=6, help="timed for each kernel of a layer")
    parser.add_argument("--again", action="store_true", help="forget what was tuned on this model of GPU")
    options = parser.parse_args(arguments)
    try:
        problems = matching(gpu_problems(tuple(getattr(torch, name) for name in options.dtype)), options.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    path = explain()
    if not torch.cuda.is_available() or torch.version.hip or path.path != "triton":
        print(f"bench.tune needs an NVIDIA GPU that runs the Triton kernels; here it is {path}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = launch.gpu(device)
    assert gpu is not None  # a device of CUDA
    versions = {"torch": torch.__version__, "triton": triton.__version__, "date": time.strftime("%Y-%m-%d")}
    try:
        table = Table(launch.CONFIGS, gpu, versions, options.again)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if tune(problems, table, options.minutes, options.candidates):
        return 0
    left = sum(bool(table.lacks(problem, roles(problem))) for problem in problems)
    print(f"the time is up: {left} of {len(problems)} layers are left; run it again to go on", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
