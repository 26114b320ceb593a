"""The set-ups of `bench.run` under pytest-benchmark: `pytest bench`."""

import pytest
import torch

from bench.registry import CANDIDATES, OPERATOR, Candidate, Problem, cpu_problems, gpu_problems
from bench.run import set_up
from bench.verify import verify

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROBLEMS = gpu_problems() if DEVICE == "cuda" else cpu_problems()
PAIRS = [(problem, c) for problem in PROBLEMS for c in CANDIDATES if not c.compiled and c.takes(problem, DEVICE)]


@pytest.mark.parametrize(("problem", "candidate"), PAIRS, ids=lambda value: getattr(value, "name", str(value)))
def test_forward(benchmark, problem: Problem, candidate: Candidate):
    verify(candidate, problem, DEVICE)
    call = set_up(candidate, problem, DEVICE, "forward")

    def finished() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = str(problem)
    benchmark(finished)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_training(benchmark, problem: Problem):
    call = set_up(OPERATOR, problem, DEVICE, "training")

    def finished() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{problem}, training"
    benchmark.pedantic(finished, rounds=5, warmup_rounds=1)
