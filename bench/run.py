"""Times the depthwise conv3d + LayerNorm operator against everything else that computes it.

    python -m bench.run                       this machine's GPU, or its CPU with small shapes
    python -m bench.run --dtype bfloat16 float32 --note "nothing else on the machine"

Writes bench/results/<device>.json. Every candidate is checked first (`verify`); one that is wrong is recorded so, and
not timed. On a GPU a captured graph is replayed, with the L2 cache flushed before each replay; on a CPU the clock is
read around a call. `python -m bench.report` draws the plot and the table.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dover_kernels import explain

from bench.registry import CANDIDATES, COPY, OPERATOR, Candidate, Problem, cpu_problems, gpu_problems
from bench.verify import WrongResult, verify

RESULTS = Path(__file__).parent / "results"
#: fp32 FFMA peaks without tensor cores, FLOP/s, from the vendor's data sheets.
PEAKS = {"H200": 67e12, "H100": 67e12, "A100": 19.5e12}


def environment(device: str, note: str) -> dict[str, Any]:
    """Everything that a figure depends on and that the machine tells."""
    facts: dict[str, Any] = {
        "device": _device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "commit": _output("git", "rev-parse", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
        "note": note,
    }
    if device == "cuda":
        facts |= {
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
        }
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    return facts


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return f"{model[1] if model else platform.processor()}, {torch.get_num_threads()} threads"


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def set_up(candidate: Candidate, problem: Problem, device: str, direction: str) -> Callable[[], object]:
    """The call that is timed, and whose memory is measured: "forward" without gradients, or "training", which is
    forward and backward."""
    tensors, dz = problem.operands(device)
    if candidate.channels_last:
        tensors[0] = tensors[0].detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        dz = dz.contiguous(memory_format=torch.channels_last_3d)
    function = candidate.build()
    if direction == "forward":
        return torch.no_grad()(lambda: function(*tensors))
    return lambda: torch.autograd.grad(function(*tensors), tensors, dz)


def measure(call: Callable[[], object], device: str, repetitions: int) -> dict[str, Any]:
    """Median and spread (20th to 80th percentile) in ms, and peak memory above what the operands take."""
    for _ in range(3):
        call()
    memory = None
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated() - before
    kernels = _kernels(call, device)
    times, graph = _gpu_times(call, repetitions) if device == "cuda" else (_cpu_times(call, repetitions), False)
    low, high = statistics.quantiles(times, n=5)[0], statistics.quantiles(times, n=5)[-1]
    return {
        "median_ms": statistics.median(times),
        "p20_ms": low,
        "p80_ms": high,
        "min_ms": min(times),
        "graph": graph,
        "peak_bytes": memory,
        "kernels": kernels,
    }


def first_call(problem: Problem, device: str, direction: str) -> float:
    """Seconds that the operator's first call on a layer takes: compilation, where there is any, and all."""
    call = set_up(OPERATOR, problem, device, direction)
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


def _gpu_times(call: Callable[[], object], repetitions: int) -> tuple[list[float], bool]:
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        run, captured = graph.replay, True
    except RuntimeError as error:
        print(f"    no graph ({error}): timed with its launches", file=sys.stderr)
        torch.cuda.synchronize()
        run, captured = call, False
    times = []
    for _ in range(repetitions + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return times[3:], captured


def _kernels(call: Callable[[], object], device: str) -> list[str]:
    """The three kernels (on a CPU, the operators) that took the most time of a call."""
    activity = torch.profiler.ProfilerActivity.CUDA if device == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        call()
        _synchronize(device)
    attribute = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: getattr(event, attribute), reverse=True)
    return [event.key for event in events[:3]]


def shares(problem: Problem, milliseconds: float, device_name: str, copy_ms: float | None) -> dict[str, float | None]:
    """Which part of the FFMA peak, and of the copy's rate over the same bytes, a forward pass reaches."""
    peak = next((value for name, value in PEAKS.items() if name in device_name), None)
    return {
        "ffma_share": problem.flops / (milliseconds * 1e-3) / peak if peak else None,
        "copy_share": copy_ms / milliseconds if copy_ms else None,
    }


def run(
    problems: list[Problem], device: str, repetitions: int, note: str, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Everything that was found; `save` has it after every problem, so that a run that is cut short leaves the rest."""
    facts = environment(device, note)
    results: list[dict[str, Any]] = []
    for problem in problems:
        copy_ms = None
        first = {direction: first_call(problem, device, direction) for direction in ("forward", "training")}
        for candidate in sorted(CANDIDATES, key=lambda c: c is not COPY):  # the copy first: shares refer to it
            if not candidate.takes(problem, device):
                continue
            torch.backends.cudnn.benchmark = candidate.cudnn_benchmark
            entry: dict[str, Any] = {"problem": str(problem), "candidate": candidate.name}
            try:
                entry["errors"] = verify(candidate, problem, device)
            except (WrongResult, torch.OutOfMemoryError) as error:
                print(f"{problem}  {candidate.name}: not timed, {error}", file=sys.stderr)
                results.append({**entry, "not_timed": str(error)})
                continue
            for direction in ("forward", "training"):
                if candidate is COPY and direction == "training":
                    continue
                try:
                    timed = measure(set_up(candidate, problem, device, direction), device, repetitions)
                except torch.OutOfMemoryError as error:
                    results.append({**entry, "not_timed": f"{direction}: {error}"})
                    continue
                if candidate is COPY:
                    copy_ms = timed["median_ms"]
                if direction == "forward":
                    timed |= shares(problem, timed["median_ms"], facts["device"], copy_ms)
                if candidate is OPERATOR:
                    timed["first_call_s"] = first[direction]
                    timed["path"] = str(explain(torch.empty(0, problem.C, 1, 1, 1, dtype=problem.dtype, device=device)))
                results.append({**entry, "direction": direction, **timed})
                print(f"{problem}  {candidate.name:40} {direction:8} {timed['median_ms']:9.3f} ms", flush=True)
        save({**facts, "results": results})
    torch.backends.cudnn.benchmark = False
    return {**facts, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], help="on a GPU; a CPU is timed in float32")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--output", type=Path, help="default: bench/results/<device>.json")
    options = parser.parse_args()
    if options.device == "cuda":
        # A cache of its own: the time to a first call is that of a machine that has never compiled.
        os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="bench-triton-")
        problems = gpu_problems(tuple(getattr(torch, name) for name in options.dtype))
    else:
        problems = cpu_problems()
    name = re.sub(r"[^a-z0-9]+", "-", _device_name(options.device).lower()).strip("-")
    output = options.output or RESULTS / f"{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    save = lambda report: output.write_text(json.dumps(report, indent=1) + "\n")
    run(problems, options.device, options.repetitions, options.note, save)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
