"""The benchmark: that a name says what is timed, that nothing is timed unchecked, that a run can be cut short and
continued, and that no rival's failure ends it. What it measures is not tested."""

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.metadata import version

import pytest
import torch
from dover_kernels.dwconv3d_layernorm.reference import dwconv3d_layernorm_reference
from torch.utils._python_dispatch import TorchDispatchMode

from .conftest import INTERPRETED

if INTERPRETED:
    pytest.skip("the benchmark times what is compiled", allow_module_level=True)

from bench import registry, report, run
from bench.record import Record, environment, results_file
from bench.registry import BASELINES, CANDIDATES, COMPILE_MODE, COPY, EPS, OPERATOR, Candidate, Problem, eager
from bench.verify import GRADIENTS, WrongResult, oracle, verify

PROBLEM = Problem(1, 8, 4, 5, 6, 3, torch.float32)
FACTS = {"device": "NVIDIA H100", "torch": "2.13.0", "triton": "3.6.0", "commit": "abc", "note": "", "tf32": False}


@pytest.fixture
def few(monkeypatch):
    """A run of the operator and of the rivals that are given."""

    def fix(*rivals: Candidate) -> None:
        monkeypatch.setattr(run, "TIERS", ((COPY, OPERATOR), rivals))

    fix()
    return fix


def by_name(record: Record) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for entry in record.results:
        found.setdefault(entry["candidate"], []).append(entry)
    return found


def test_the_sum_over_taps_is_what_the_reference_computes():
    problem = Problem(2, 8, 3, 5, 6, 3, torch.float32)
    tensors, dz = problem.operands("cpu")
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    z = dwconv3d_layernorm_reference(*doubles, EPS)
    want = torch.autograd.grad(z, doubles, dz.double())
    got = oracle(problem, "cpu")
    torch.testing.assert_close(got["z"], z.detach())
    for name, gradient in zip(GRADIENTS, want, strict=True):
        torch.testing.assert_close(got[name], gradient)


def test_a_baseline_that_takes_too_long_is_recorded_and_not_timed(few, tmp_path):
    few(Candidate("slow", eager))
    record = Record(tmp_path / "results.json", FACTS)
    problem = Problem(1, 8, 40, 9, 9, 3, torch.float32)
    run.run([problem], "cpu", 3, record, first_calls=False, patience=0.0)
    (forward, training) = by_name(record)["slow"]
    assert "TooSlow: 8 of 40 frames take" in forward["not_timed"]
    assert "training: TooSlow" in training["not_timed"]
    assert "median_ms" in by_name(record)["dover"][0], "what it is compared with is timed at any price"


def test_a_name_says_what_is_switched_on():
    assert len({candidate.name for candidate in CANDIDATES}) == len(CANDIDATES)
    for candidate in BASELINES:
        assert candidate.cudnn_benchmark == ("cudnn.benchmark" in candidate.name)
        assert candidate.compiled == (f"torch.compile {COMPILE_MODE}" in candidate.name)


@pytest.mark.parametrize("searches", [True, False])
def test_cudnn_is_set_as_the_name_says_while_checked_and_while_timed_and_only_then(searches):
    seen = []

    def spy(*tensors):
        seen.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32))
        return eager(*tensors)

    candidate = Candidate("spy", spy, cudnn_benchmark=searches)
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    verify(candidate, PROBLEM, "cpu")
    for direction in ("forward", "training"):
        with run.set_up(candidate, PROBLEM, "cpu", direction) as call:
            call()
    assert set(seen) == {(searches, False)}
    assert len(seen) == 4
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize(
    ("problem", "candidate"),
    [
        pytest.param(problem, candidate, id=f"{candidate.name}, k_t={problem.k_t}")
        for problem in (replace(PROBLEM, B=2, k_t=1), replace(PROBLEM, B=2))
        for candidate in BASELINES
        if candidate.takes(problem, "cuda")
    ],
)
def test_every_baseline_computes_the_operator(problem, candidate):
    errors = verify(replace(candidate, compiled=False), problem, "cpu")
    assert max(errors.values()) < 1e-5, errors


def test_the_shifted_baseline_copies_nothing_but_the_padding():
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            if name == "convolution":
                assert args[0].is_contiguous(memory_format=torch.channels_last)
            assert name not in ("clone", "_to_copy", "copy_"), name
            return function(*args, **(kwargs or {}))

    (shifted,) = (candidate for candidate in BASELINES if candidate.k_t == "many")
    with run.set_up(shifted, PROBLEM, "cpu", "forward") as call, Watch():
        call()


def test_whatever_a_rival_raises_is_recorded_and_the_run_goes_on(few, tmp_path, monkeypatch, capsys):
    def broken(*_tensors):
        raise KeyError("no such algorithm")

    def hungry(x, *parameters):
        with_gradients.append(torch.is_grad_enabled())
        if sum(with_gradients) > 1:  # the first is the check's
            raise torch.OutOfMemoryError("out of memory")
        return eager(x, *parameters)

    def no_process(*_arguments):
        raise OSError("no process")

    with_gradients: list[bool] = []
    few(Candidate("broken", broken), Candidate("hungry", hungry), Candidate("eager", eager))
    monkeypatch.setattr(run, "first_call", no_process)
    record = Record(tmp_path / "out.json", FACTS)
    assert run.run([PROBLEM], "cpu", 2, record)
    found = by_name(record)
    assert found["broken"] == [
        {"problem": str(PROBLEM), "candidate": "broken", "not_timed": "KeyError: 'no such algorithm'"}
    ]
    assert found["hungry"][0]["median_ms"] > 0
    assert found["hungry"][1]["not_timed"] == "training: OutOfMemoryError: out of memory"
    assert [entry["direction"] for entry in found["eager"]] == ["forward", "training"]
    assert found["dover"][0]["first_call_failed"] == "OSError: no process"
    assert "KeyError" in capsys.readouterr().err


def test_a_wrong_result_is_not_timed(few, tmp_path):
    few(Candidate("wrong", lambda x, *parameters: 2 * eager(x, *parameters)))
    record = Record(tmp_path / "out.json", FACTS)
    run.run([PROBLEM], "cpu", 2, record, first_calls=False)
    assert by_name(record)["wrong"][0]["not_timed"].startswith(f"{WrongResult.__name__}: wrong on 1x8x4x5x6")


def test_a_run_goes_on_where_it_stopped(few, tmp_path):
    path, other = tmp_path / "out.json", replace(PROBLEM, k_t=1)
    assert run.run([PROBLEM], "cpu", 2, Record(path, FACTS | {"note": "quiet"}), first_calls=False)
    before = json.loads(path.read_text())["results"]
    record = Record(path, FACTS | {"note": "busy"})
    assert not run.run([PROBLEM, other], "cpu", 2, record, end=0.0)
    assert record.results == before
    assert run.run([PROBLEM, other], "cpu", 2, record, first_calls=False)
    written = json.loads(path.read_text())
    assert written["results"][: len(before)] == before
    assert len(written["results"]) == 2 * len(before)
    assert written["note"] == "quiet; busy"


@pytest.mark.parametrize("name", ["device", "torch", "commit", "tf32"])
def test_figures_of_another_device_version_or_commit_are_not_mixed_in(name, tmp_path):
    path = tmp_path / "out.json"
    Record(path, FACTS).put([])
    with pytest.raises(ValueError, match=rf"{name} {FACTS[name]}, and here it is other: --again"):
        Record(path, FACTS | {name: "other"})
    assert Record(path, FACTS | {name: "other"}, again=True).results == []


def test_only_some_problems_and_none_when_the_time_is_up(few, tmp_path, capsys):
    path = tmp_path / "out.json"
    arguments = ["--device", "cpu", "--repetitions", "2", "--output", str(path)]
    assert run.main([*arguments, "--only", "768x8x3x3 k_t=2"]) == 2
    assert "'768x8x3x3 k_t=2' is in none of: 1x96x8x28x28 k_t=1 float32" in capsys.readouterr().err
    assert run.main([*arguments, "--only", "768x8x3x3 k_t=1", "--minutes", "0"]) == 1
    assert not path.exists()
    assert run.main([*arguments, "--only", "768x8x3x3 k_t=1"]) == 0
    assert {entry["problem"] for entry in json.loads(path.read_text())["results"]} == {"1x768x8x3x3 k_t=1 float32"}


def test_an_operator_that_is_wrong_is_the_last_word_of_a_run_and_of_every_other_one(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "dwconv3d_layernorm", lambda *operands: 1.1 * dwconv3d_layernorm_reference(*operands))
    arguments = ["--device", "cpu", "--repetitions", "2", "--only", "768x8x3x3 k_t=1"]
    arguments += ["--output", str(tmp_path / "out.json")]
    for _ in range(2):
        assert run.main(arguments) == 1
        assert "the operator itself, on 1x768x8x3x3 k_t=1 float32: WrongResult" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "bf16"], "invalid choice: 'bf16'"),
        (["--only", "["], "'[' is no regular expression: unterminated character set"),
        (["--repetitions", "1"], "'1'; a spread needs a whole number from 2 on"),
        (["--device", "cuda"], "--device cuda, and torch sees no GPU"),
    ],
)
def test_arguments_that_do_not_do_are_refused_before_anything_runs(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        run.main(arguments)
    assert words in capsys.readouterr().err


def test_a_tree_without_git_is_told_its_commit(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_COMMIT", raising=False)
    assert environment("cpu", "")["commit"] is None
    monkeypatch.setenv("BENCH_COMMIT", "abc")
    assert environment("cpu", "")["commit"] == "abc"


def test_figures_name_their_command_and_the_versions_and_are_filed_by_device(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bench/score.py", "--note", "quiet machine"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("bench.score", None))
    monkeypatch.setattr("bench.record._cpu_name", lambda: "AMD EPYC(TM) 9V74, 80-Core")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    facts = environment("cpu", "quiet machine", "av")
    assert facts["command"] == "python -m bench.score --note 'quiet machine'"
    assert facts["device"] == "AMD EPYC(TM) 9V74, 80-Core, 2 threads"
    assert facts["av"] == version("av")
    assert results_file("cpu", "score").name == "score-amd-epyc-tm-9v74-80-core-2-threads.json"
    assert results_file("cpu").name == "amd-epyc-tm-9v74-80-core-2-threads.json"


def test_a_slow_call_is_repeated_less_and_profiled_last(monkeypatch):
    done = []
    monkeypatch.setattr(run, "_cpu_times", lambda call, repetitions: done.append(repetitions) or [1.0, 2.0])
    monkeypatch.setattr(run, "_kernels", lambda call, device: done.append("profile") or [])
    run.measure(lambda: None, "cpu", 40)
    monkeypatch.setattr(run, "SLOW", 0.0)
    run.measure(lambda: None, "cpu", 40)
    run.measure(lambda: None, "cpu", 4)
    assert done == [40, "profile", 10, "profile", 4, "profile"]


class _CaptureThatBreaksOff:
    """As torch.cuda.graph does, ends by an error of its own when what is captured raises."""

    def __enter__(self):
        pass

    def __exit__(self, *_error):
        raise RuntimeError("capture invalidated")


@pytest.mark.parametrize("capture", [nullcontext, _CaptureThatBreaksOff])
def test_running_out_of_memory_is_no_reason_to_time_without_a_graph(capture, monkeypatch):
    def hungry():
        raise torch.OutOfMemoryError("out of memory")

    def uncapturable():
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda _graph: capture())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.raises(RuntimeError, match=r"out of memory|capture invalidated"):
        run._captured(hungry)
    assert run._captured(uncapturable) is None


@pytest.mark.slow
def test_a_first_call_has_a_process_and_a_cache_of_its_own():
    before = dict(os.environ)
    assert run.first_call(PROBLEM, "cpu", "forward") > 0
    assert dict(os.environ) == before


def test_training_counts_three_convolutions_and_five_tensors():
    elements = 8 * 4 * 5 * 6
    assert (PROBLEM.flops("forward"), PROBLEM.bytes("forward")) == (2 * 147 * elements, 8 * elements)
    assert (PROBLEM.flops("training"), PROBLEM.bytes("training")) == (6 * 147 * elements, 20 * elements)
    forward, training = (run.ffma_share(PROBLEM, d, 10.0, "NVIDIA H100 80GB HBM3") for d in ("forward", "training"))
    assert training == pytest.approx(3 * forward)
    for other in ("some CPU", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert run.ffma_share(PROBLEM, "training", 10.0, other) is None, "the peak is that of the whole name"


def test_the_report_shows_spread_memory_and_what_had_no_graph():
    def entry(candidate: str, ms: float, graph: bool, problem: Problem = PROBLEM, direction: str = "training") -> dict:
        times = {"median_ms": ms, "p20_ms": ms - 0.1, "p80_ms": ms + 0.1, "graph": graph, "peak_bytes": 3 * 2**20}
        return {"problem": str(problem), "candidate": candidate, "direction": direction, **times}

    results = [entry("dover", 1.0, True), entry("eager NCDHW", 8.0, True), entry("other", 2.0, False)]
    table = report.table({"results": results}, "training")
    assert rf"| {PROBLEM} | 1.000 (0.900-1.100) | 2.000\* (1.900-2.100) | other | 2.00 | 8.0 |  |  | 3 / 3 |" in table
    assert table.endswith("it could not be captured in a graph")
    assert report.summary({"results": results}).count(f"| {PROBLEM} |") == 0, "there is no forward"
    results += [one | {"direction": "forward"} for one in results[:2]]
    summary = report.summary({"results": results})
    assert f"| {PROBLEM} | 1.000 | 8.0 x | 8.0 x | 1.000 | 2.0 x | 8.0 x |" in summary
    on_a_cpu = [entry("dover", 1.0, False) | {"peak_bytes": None}, entry("eager", 2.0, False)]
    assert "*" not in report.table({"results": on_a_cpu}, "training")
    large = replace(PROBLEM, T=40)  # ten times as much in five times as long: of a small copy much is the launch
    results += [entry("copy", 0.1, True, direction="forward"), entry("copy", 0.5, True, large, "forward")]
    assert "| 2.00 | 8.0 | 12% |  |" in report.table({"results": results}, "training")
    assert "| 8.00 | 8.0 | 5% |  |" in report.table({"results": results}, "forward")


def test_a_problem_is_known_by_its_name():
    assert Problem.named(str(PROBLEM)) == PROBLEM


def test_the_report_says_what_was_not_timed_and_why():
    failed = {"problem": "p", "candidate": "eager", "not_timed": "forward: OutOfMemoryError: out of memory\n at 0x7f"}
    assert report.not_timed({"results": [failed]}) == ["- p, eager: forward: OutOfMemoryError: out of memory"]
