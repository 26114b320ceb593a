"""The set-ups of `bench.run` under pytest-benchmark: `pytest bench`."""

import pytest
import torch

from bench.registry import CANDIDATES, COPY, DIRECTIONS, Candidate, Problem, cpu_problems, gpu_problems
from bench.run import set_up
from bench.verify import verify

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    pytest.param(problem, candidate, direction, id=f"{problem}, {candidate.name}, {direction}")
    for problem in (gpu_problems() if DEVICE == "cuda" else cpu_problems())
    for candidate in CANDIDATES
    for direction in DIRECTIONS
    if candidate.takes(problem, DEVICE) and not candidate.compiled and (candidate, direction) != (COPY, "training")
]


@pytest.mark.parametrize(("problem", "candidate", "direction"), CASES)
def test_speed(benchmark, problem: Problem, candidate: Candidate, direction: str):
    verify(candidate, problem, DEVICE)
    with set_up(candidate, problem, DEVICE, direction) as call:

        def finished() -> None:
            call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        benchmark.group = f"{problem}, {direction}"
        if direction == "forward":
            benchmark(finished)
        else:
            benchmark.pedantic(finished, rounds=5, warmup_rounds=1)
