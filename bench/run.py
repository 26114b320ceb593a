"""Times the depthwise conv3d + LayerNorm operator against everything else that computes it.

    python -m bench.run                       this machine's GPU, or its CPU with small shapes
    python -m bench.run --dtype bfloat16 float32 --note "nothing else on the machine"
    python -m bench.run --minutes 8 --only "k_t=1 "       again and again, until nothing is left

Writes bench/results/<device>.json after every candidate, and goes on where a run of the same commit, device and
versions has stopped; the candidates that matter most come first, on all problems. Every candidate is checked first
(`verify`); one that is wrong, or fails, or takes longer than `--patience` (but for those that torch.compile compiles)
is recorded with its reason, and not timed; where it is the operator itself, that is the last word, and the exit code 1.
On a GPU a captured graph is replayed, with the L2 cache flushed before each replay; on a CPU the clock is read around a
call. `python -m bench.report` draws the plot and the table.
"""

import argparse
import math
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from dover_kernels import explain

from bench.record import Record, device_name, environment, results_file
from bench.registry import (
    COPY,
    DIRECTIONS,
    OPERATOR,
    TIERS,
    Candidate,
    Problem,
    cpu_problems,
    gpu_problems,
    matching,
)
from bench.verify import FRAMES, TOLERANCE, verify

#: fp32 FFMA peaks without tensor cores, FLOP/s, from the vendor's data sheets, by the whole name: another form of the
#: same chip, or a slice of it, has another.
PEAKS = {
    "NVIDIA H200": 67e12,
    "NVIDIA H100 80GB HBM3": 67e12,
    **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB"), 19.5e12),
    "NVIDIA A100 80GB PCIe": 19.5e12,
}
#: A call of so many seconds is repeated a quarter as often.
SLOW = 0.1


class TooSlow(Exception):
    """A candidate is not worth the time that a measurement takes."""


@contextmanager
def set_up(candidate: Candidate, problem: Problem, device: str, direction: str) -> Iterator[Callable[[], object]]:
    """The call that is timed, and whose memory is measured: "forward" without gradients, or "training", which is
    forward and backward. While it is open, PyTorch is set as the candidate's name says."""
    tensors, dz = problem.operands(device)
    if candidate.channels_last:
        tensors[0] = tensors[0].detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        dz = dz.contiguous(memory_format=torch.channels_last_3d)
    function = candidate.build()
    with candidate.settings():
        if direction == "forward":
            yield torch.no_grad()(lambda: function(*tensors))
        else:
            yield lambda: torch.autograd.grad(function(*tensors), tensors, dz)


def measure(call: Callable[[], object], device: str, repetitions: int) -> dict[str, Any]:
    """Median and spread (20th to 80th percentile) in ms, and peak memory above what the operands take."""
    seconds = 0.0
    for _ in range(3):
        start = time.perf_counter()
        call()
        _synchronize(device)
        seconds = time.perf_counter() - start
    if seconds > SLOW:
        repetitions = min(repetitions, max(5, repetitions // 4))
    memory = None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated() - before
    times, graph = gpu_times(call, repetitions) if device == "cuda" else (_cpu_times(call, repetitions), False)
    kernels = _kernels(call, device)  # last: a profiler leaves hooks behind
    fifths = statistics.quantiles(times, n=5)
    return {
        "median_ms": statistics.median(times),
        "p20_ms": fifths[0],
        "p80_ms": fifths[-1],
        "min_ms": min(times),
        "repetitions": len(times),
        "graph": graph,
        "peak_bytes": memory,
        "kernels": kernels,
    }


def lose_patience(problem: Problem, candidate: Candidate, device: str, direction: str, patience: float) -> None:
    """Raises TooSlow where, by the time that the problem's first frames take, a call takes over `patience` seconds."""
    short = problem.shorter(FRAMES)
    if patience == math.inf or short == problem:
        return
    with set_up(candidate, short, device, direction) as call:
        for _ in range(2):
            start = time.perf_counter()
            call()
            _synchronize(device)
            seconds = time.perf_counter() - start
    if seconds * problem.T > patience * short.T:
        raise TooSlow(f"{short.T} of {problem.T} frames take {1e3 * seconds:.1f} ms")


def first_call(problem: Problem, device: str, direction: str) -> float:
    """Seconds of the operator's first call on a layer in a process of its own, with nothing compiled before: on a GPU
    the import of Triton and all compilation."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench-triton-") as cache, ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(_first_call, problem, device, direction, cache).result()


def _first_call(problem: Problem, device: str, direction: str, cache: str) -> float:
    os.environ["TRITON_CACHE_DIR"] = cache
    with set_up(OPERATOR, problem, device, direction) as call:
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        return time.perf_counter() - start


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _cpu_times(call: Callable[[], object], repetitions: int) -> list[float]:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def gpu_times(call: Callable[[], object], repetitions: int) -> tuple[list[float], bool]:
    """In ms, each with a cold L2 cache; and whether a captured graph was replayed, which leaves launches out."""
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    replay = _captured(call)
    run = replay or call
    times = []
    for _ in range(repetitions + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return times[3:], replay is not None


def _captured(call: Callable[[], object]) -> Callable[[], object] | None:
    """Replays `call`; None where it cannot be captured, which is said. Running out of memory is no such reason."""
    try:
        graph = torch.cuda.CUDAGraph()
        # The outer one, because a capture that breaks off does not give the stream back.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        # The end of a capture that broke off raises an error of its own, whose context is the first.
        if torch.OutOfMemoryError in (type(error), type(error.__context__)):
            raise
        print(f"    no graph ({error}): timed with its launches", file=sys.stderr)
        torch.cuda.synchronize()
        return None
    return graph.replay


def _kernels(call: Callable[[], object], device: str) -> list[str]:
    """The three kernels (on a CPU, the operators) that took the most time of a call."""
    activity = torch.profiler.ProfilerActivity.CUDA if device == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        call()
        _synchronize(device)
    attribute = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: getattr(event, attribute), reverse=True)
    return [event.key.split("<", 1)[0] for event in events[:3]]  # without template arguments


def ffma_share(problem: Problem, direction: str, milliseconds: float, device: str) -> float | None:
    """Which part of the FFMA peak of `device` is reached; None where that is not known."""
    peak = PEAKS.get(device)
    return problem.flops(direction) / (milliseconds * 1e-3) / peak if peak else None


def time_candidate(
    problem: Problem, candidate: Candidate, device: str, repetitions: int, first_calls: bool,
    patience: float = math.inf,
) -> list[dict[str, Any]]:  # fmt: skip
    """An entry for each direction. Whatever the candidate raises is its entry's reason for not being timed."""
    named: dict[str, Any] = {"problem": str(problem), "candidate": candidate.name}

    def not_timed(error: Exception, direction: str = "") -> dict[str, Any]:
        reason = f"{direction}{type(error).__name__}: {error}"
        print(f"{problem}  {candidate.name}: not timed, {reason}", file=sys.stderr)
        return {**named, "not_timed": reason}

    try:
        named["errors"] = verify(candidate, problem, device)
    except Exception as error:
        return [not_timed(error)]
    entries = []
    for direction in DIRECTIONS[:1] if candidate is COPY else DIRECTIONS:
        try:
            if candidate not in (OPERATOR, COPY) and not candidate.compiled:
                lose_patience(problem, candidate, device, direction, patience)
            with set_up(candidate, problem, device, direction) as call:
                timed = measure(call, device, repetitions)
        except Exception as error:
            entries.append(not_timed(error, f"{direction}: "))
            continue
        median = timed["median_ms"]
        timed["ffma_share"] = ffma_share(problem, direction, median, device_name(device))
        if candidate is OPERATOR:
            x = torch.empty(0, problem.C, problem.T, problem.H, problem.W, dtype=problem.dtype, device=device)
            timed["path"] = str(explain(x, torch.empty(problem.C, 1, problem.k_t, 7, 7, device="meta")))
            if first_calls:
                timed |= _timed_first_call(problem, device, direction)
        entries.append({**named, "direction": direction, **timed})
        print(f"{problem}  {candidate.name:45} {direction:8} {median:9.3f} ms", flush=True)
    return entries


def _timed_first_call(problem: Problem, device: str, direction: str) -> dict[str, Any]:
    try:
        return {"first_call_s": first_call(problem, device, direction)}
    except Exception as error:
        print(f"{problem}  first call, {direction}: {error}", file=sys.stderr)
        return {"first_call_s": None, "first_call_failed": f"{type(error).__name__}: {error}"}


def run(
    problems: list[Problem], device: str, repetitions: int, record: Record, end: float = math.inf,
    first_calls: bool = True, patience: float = math.inf,
) -> bool:  # fmt: skip
    """True if the record has every candidate of every problem now; False where the clock passed `end` before.

    Raises what the GPU reports once it serves this process no more; the candidate that brought it there is recorded.
    """
    for tier in TIERS:
        for problem in problems:
            for candidate in tier:
                if record.has(problem, candidate) or not candidate.takes(problem, device):
                    continue
                if time.monotonic() > end:
                    return False
                record.put(time_candidate(problem, candidate, device, repetitions, first_calls, patience))
                _synchronize(device)
    return True


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def _repetitions(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}; a spread needs a whole number from 2 on")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """0 if everything is timed; 1 where something of the operator is not, since it is wrong or failed, or the time was
    up; 2 for arguments, or a file, that do not do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", nargs="+", choices=[str(dtype)[6:] for dtype in TOLERANCE], default=["bfloat16"],
        help="on a GPU; a CPU is timed in float32",
    )  # fmt: skip
    parser.add_argument(
        "--only", type=_pattern, default="",
        help='problems whose name has this regular expression, such as "k_t=3"',
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=math.inf, help="no candidate is begun after so long")
    parser.add_argument("--patience", type=float, default=math.inf, help="seconds that a call of a baseline may take")
    parser.add_argument(
        "--repetitions", type=_repetitions, default=20, help="a quarter of it where a call takes over 100 ms"
    )
    parser.add_argument("--first-calls", action="store_true", help="time them as well, each in a process of its own")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--output", type=Path, help="default: bench/results/<device>.json")
    parser.add_argument("--again", action="store_true", help="forget what the output holds")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, and torch sees no GPU")
    end = time.monotonic() + 60 * options.minutes
    dtypes = tuple(getattr(torch, name) for name in options.dtype)
    facts = environment(options.device, options.note) | {"tf32": False}  # `Candidate.settings`
    if facts["commit"] is None:
        print("no git here: these figures name no commit, unless BENCH_COMMIT does", file=sys.stderr)
    try:
        problems = matching(gpu_problems(dtypes) if options.device == "cuda" else cpu_problems(), options.only)
        record = Record(options.output or results_file(options.device), facts, options.again)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    complete = run(problems, options.device, options.repetitions, record, end, options.first_calls, options.patience)
    print(f"wrote {record.path}")
    if not complete:
        print("the time is up: run it again to go on", file=sys.stderr)
    failed = [e for e in record.results if e["candidate"] == OPERATOR.name and "not_timed" in e]
    for entry in failed:
        print(f"the operator itself, on {entry['problem']}: {entry['not_timed']}", file=sys.stderr)
    return 0 if complete and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
