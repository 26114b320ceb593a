"""Finds the fastest configuration of every kernel for the layers of `bench.registry`, on the GPU of this machine.

    python -m bench.tune                              bfloat16, at most half an hour
    python -m bench.tune --dtype bfloat16 float32 --minutes 60 --candidates 8
    python -m bench.tune --only "k_t=1 " --minutes 8      again and again, until nothing is left

Writes what it finds into the kernel's configs.json (or `--configs`, a copy of it), under the GPU's model and with the
versions, after every kernel of a layer: a run that was cut short goes on where it stopped, and `--again` forgets the
layers asked for. Other models' entries stay.

Where the convolutions run on tensor cores, their few configurations are all timed, against the choice by the number of
programs; another must be faster for eight clips as well, since the table has no batch size. For every other kernel,
configurations are compiled, those that spill or do not compile are dropped, and the best by the compiler's figures are
timed.

Each is first compiled, and checked in fp64, in a process of its own: one that crashes the GPU does not affect the
others. The fastest must also agree, at full size, with the standard, and gain more than noise. When the time is up
nothing more is begun, and the kernel whose configurations were not all timed is left to the next run. Needs a GPU that
Triton compiles for.
"""

import argparse
import json
import math
import multiprocessing
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
import triton
from dover_kernels import explain
from dover_kernels.dwconv3d_layernorm import launch, tensor_cores
from dover_kernels.dwconv3d_layernorm.launch import Tile
from dover_kernels.dwconv3d_layernorm.tensor_cores import Config, does_not_compile
from torch import Tensor

from bench.registry import EPS, OPERATOR, Problem, gpu_problems, matching
from bench.run import gpu_times
from bench.shortlist import ROLES, Figures, TimeIsUp, compile_all, compiled_as, screen, seconds_until, space
from bench.verify import GRADIENT_TOLERANCE, WrongResult, verify

#: What is tuned in place of `ROLES` where the convolutions run on tensor cores.
TENSOR_CORES = "convolution"
#: Clips at which these must be faster too: the table has no batch size, so that no score depends on its batch.
SEVERAL = 8
#: The share of the standard's time that another must save.
LEAST_GAIN = 0.03
REPETITIONS = 100
#: Layers whose configurations are compiled and checked at the same time, before they are timed.
TOGETHER = 16
#: A configuration; None is a layer that takes the choice of `tensor_cores`.
Choice = Tile | Config | None


@contextmanager
def only(role: str, config: Choice) -> Iterator[None]:
    """Launches of `role` take `config`, whatever the table says, and nothing takes the place of what does not
    compile."""
    before = launch.candidates, launch.tensor_core_config, tensor_cores.attempt
    tensor_cores.attempt = lambda layer, run: run()
    if role == TENSOR_CORES:
        launch.tensor_core_config = lambda *key: config
    else:
        launch.candidates = lambda asked, *key: [config] if asked == role else before[0](asked, *key)
    try:
        yield
    finally:
        launch.candidates, launch.tensor_core_config, tensor_cores.attempt = before


def call(role: str, problem: Problem, device: str) -> Callable[[], object]:
    """The kernels of one role on the whole problem."""
    (x, weight, bias, gamma, beta), dz = problem.operands(device)
    x, dz = (t.detach().contiguous(memory_format=torch.channels_last_3d) for t in (x, dz))
    parameters = [p.detach() for p in (weight, bias, gamma, beta)]
    if role == "input_gradient":
        return lambda: launch.input_gradient(dz, parameters[0])
    if role == "weight_gradient":
        return lambda: launch.weight_gradient(x, dz, problem.k_t, 7)
    return lambda: launch.forward(x, *parameters, EPS, role == "training")


def check(problem: Problem, role: str, configs: Sequence[Choice], device: str) -> dict[Choice, str]:
    """What is wrong with each on a few frames; nothing is with those that are right. After an error of the GPU, which
    may serve this process no more, those that follow are left out."""
    found: dict[Choice, str] = {}
    for config in configs:
        with only(role, config):
            try:
                verify(OPERATOR, problem.shorter(max(2, problem.k_t)), device)
                found[config] = ""
            except Exception as error:
                found[config] = f"{type(error).__name__}: {error}"
                if not (isinstance(error, WrongResult) or does_not_compile(error)):
                    break
    return found


def check_all(
    pool: Pool, role: str, asked: dict[Problem, Sequence[Choice]], device: str, end: float
) -> dict[Problem, list[Choice]]:
    """Those that are right, by problem; the others are reported. Raises WrongResult where none is, and TimeIsUp where
    the clock passes `end`."""
    results = {problem: pool.apply_async(check, (problem, role, configs, device)) for problem, configs in asked.items()}
    right = {}
    for problem, result in results.items():
        try:
            found = result.get(seconds_until(end))
        except multiprocessing.TimeoutError:
            raise TimeIsUp from None
        for config in asked[problem]:
            if wrong := found.get(config, "not tried after that"):
                print(f"  {problem} {role} {config}: dropped, {wrong}", file=sys.stderr)
        right[problem] = [config for config in asked[problem] if found.get(config) == ""]
        if not right[problem]:
            raise WrongResult(f"no configuration of {role} is right on {problem}")
    return right


def fastest(
    role: str, problem: Problem, device: str, configs: Sequence[Choice],
    clock: Callable[[Callable[[], object]], float], end: float = math.inf,
) -> tuple[Choice, float]:  # fmt: skip
    """The fastest of `configs` and its time in ms: the first, unless another gains more than noise, and agrees with it
    at full size.

    Raises TimeIsUp where the clock passes `end` before the last is begun.
    """
    run = call(role, problem, device)
    times: dict[Choice, float] = {}
    for config in configs:
        if time.monotonic() > end:
            raise TimeIsUp
        with only(role, config):
            times[config] = clock(run)
    standard = configs[0]
    ranked = sorted(times, key=lambda config: times[config])
    worth = [config for config in ranked if times[config] < (1 - LEAST_GAIN) * times[standard]]
    # A few frames, on which they were checked, are cut into other strips than all of them.
    best = next((config for config in worth if agrees(role, problem, run, config, standard)), standard)
    return best, times[best]


def agrees(role: str, problem: Problem, run: Callable[[], object], tile: Choice, standard: Choice) -> bool:
    """Whether `run` gives the same with both; says so where it does not."""
    error = difference(role, run, tile, standard)
    if error > GRADIENT_TOLERANCE[problem.dtype]:
        print(f"  {role} {tile}: dropped, {error:.1e} away from {standard} at full size", file=sys.stderr)
        return False
    return True


def difference(role: str, run: Callable[[], object], tile: Choice, standard: Choice) -> float:
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
    """configs.json, with what was tuned on one model of GPU, but for the layers that are to be forgotten. Raises
    ValueError where that was with another Triton."""

    def __init__(self, path: Path, gpu: launch.Gpu, versions: dict[str, str], forget: Sequence[Problem] = ()) -> None:
        self.path = path
        self.content = json.loads(path.read_text())
        section = self.content["tuned"].get(gpu.model, {})
        forgotten = {self.key(problem) for problem in forget}
        self.tiles = {key: entry for key, entry in section.get("tiles", {}).items() if key not in forgotten}
        if self.tiles and section["triton"] != versions["triton"]:
            raise ValueError(
                f"{gpu.model} was tuned with Triton {section['triton']}, and here it is {versions['triton']}: "
                f"--again for all of its layers, of which {len(self.tiles)} would stay"
            )
        self.content["tuned"][gpu.model] = {"architecture": gpu.architecture, **versions, "tiles": self.tiles}

    @staticmethod
    def key(problem: Problem) -> str:
        return f"{launch.layer_name(problem.C, problem.k_t, problem.dtype.itemsize)} W={problem.W}"

    def lacks(self, problem: Problem, roles: tuple[str, ...] = ROLES) -> list[str]:
        """Those of `roles` that have not been tuned yet for this layer."""
        return [role for role in roles if role not in self.tiles.get(self.key(problem), {})]

    def put(self, problem: Problem, role: str, config: Choice) -> None:
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
    lacking = [(problem, role) for problem in problems for role in table.lacks(problem, roles(problem))]
    spawn = multiprocessing.get_context("spawn")
    figures: Figures = {}
    with ProcessPoolExecutor(mp_context=spawn) as compilers, spawn.Pool(maxtasksperchild=1) as checkers:
        for role in (TENSOR_CORES, *ROLES):
            layers = [problem for problem, lacked in lacking if lacked == role]
            for group in (layers[i : i + TOGETHER] for i in range(0, len(layers), TOGETHER)):
                asked = {p: choices(p, role, compilers, figures, device, most, end) for p in group}
                for problem, right in check_all(checkers, role, asked, "cuda", end).items():
                    config, found = decide(problem, role, right, end)
                    table.put(problem, role, config)
                    print(f"{problem}  {role:16} {found}", flush=True)


def choices(
    problem: Problem, role: str, compilers: Executor, figures: Figures, device: torch.device, most: int, end: float
) -> Sequence[Choice]:
    """What may be fastest, after the standard; adds to the compiler's `figures` what it needs of them."""
    if role == TENSOR_CORES:
        return [None, *tensor_cores.candidates(problem.C, problem.k_t, 7, tensor_cores.shared_memory(device))]
    properties = torch.cuda.get_device_properties(device)
    asked = {compiled_as(problem, role, tile) for tile in space(role, problem.C, problem.k_t, problem.W)}
    figures |= compile_all(compilers, asked - figures.keys(), 10 * properties.major + properties.minor, end)
    return screen(problem, role, figures, most, properties.multi_processor_count)


def decide(problem: Problem, role: str, right: Sequence[Choice], end: float) -> tuple[Choice, str]:
    """The one of `right` to take, and its times in words."""
    config, milliseconds = fastest(role, problem, "cuda", right, gpu_clock, end)
    found = f"{milliseconds:8.3f} ms  {config}"
    if role == TENSOR_CORES and config != right[0]:
        several = replace(problem, B=SEVERAL)
        config, milliseconds = fastest(role, several, "cuda", [right[0], config], gpu_clock, end)
        found += f", and for {SEVERAL} clips {milliseconds:.3f} ms  {config}"
    return config, found


def roles(problem: Problem) -> tuple[str, ...]:
    """What is to be tuned for the layer on this GPU."""
    device = torch.device("cuda", torch.cuda.current_device())
    obstacle = tensor_cores.obstacle(tensor_cores.Layer(device, problem.dtype, problem.C, problem.k_t, 7))
    return ROLES if obstacle else (TENSOR_CORES,)


def gpu_clock(run: Callable[[], object]) -> float:
    """The median in ms. A graph is replayed: with its launches, a small layer takes as long in every configuration."""
    run()
    return statistics.median(gpu_times(run, REPETITIONS)[0])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--minutes", type=float, default=30, help="nothing is compiled or timed after so long")
    parser.add_argument("--only", default="", help='problems whose name has this regular expression, such as "k_t=3"')
    parser.add_argument("--candidates", type=int, default=6, help="timed for each kernel of a layer")
    parser.add_argument("--again", action="store_true", help="forget what these layers were tuned to on this GPU")
    parser.add_argument(
        "--configs", type=Path, default=launch.CONFIGS, help="read and written in place of the kernel's"
    )
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
    if options.configs != launch.CONFIGS and not options.configs.exists():
        shutil.copyfile(launch.CONFIGS, options.configs)
    launch.CONFIGS = options.configs
    gpu = launch.gpu(device)
    assert gpu is not None  # a device of CUDA
    versions = {"torch": torch.__version__, "triton": triton.__version__, "date": time.strftime("%Y-%m-%d")}
    try:
        table = Table(options.configs, gpu, versions, problems if options.again else ())
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
