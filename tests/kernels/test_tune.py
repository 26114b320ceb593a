"""The tuner, as far as it goes without a GPU: what it would try and in which order, the table that it writes, and that
the launcher finds what was written."""

import dataclasses
import json
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import pytest
import torch
from dover_kernels.dwconv3d_layernorm import launch
from dover_kernels.dwconv3d_layernorm.launch import Gpu, Tile
from triton.runtime.errors import PTXASError

from .conftest import INTERPRETED

if INTERPRETED:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from bench import shortlist, tune
from bench.offline import Report
from bench.registry import Problem, gpu_problems

PROBLEM = Problem(1, 96, 32, 56, 56, 3, torch.bfloat16)
VERSIONS = {"torch": "2.13.0", "triton": "3.6.0", "date": "2026-01-01"}
A100, H100, H200 = Gpu("NVIDIA A100", "sm_80"), Gpu("NVIDIA H100", "sm_90"), Gpu("NVIDIA H200", "sm_90")


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A copy of the shipped table in its place, in which nothing has been tuned."""
    path = tmp_path / "configs.json"
    shipped = json.loads(launch.CONFIGS.read_text())
    assert tune.dump(shipped) == launch.CONFIGS.read_text()
    path.write_text(tune.dump(shipped | {"tuned": {}}))
    monkeypatch.setattr(launch, "CONFIGS", path)
    launch._table.cache_clear()
    yield path
    launch._table.cache_clear()


def reports(role, **changed):
    """The same figures for every configuration, but for those that `changed` names by their R."""
    figures = {}
    for tile in shortlist.space(role, PROBLEM.C, PROBLEM.k_t, PROBLEM.W):
        figures[shortlist.compiled_as(PROBLEM, role, tile)] = changed.get(f"R{tile.R}", Report(128, 0, 0.6))
    return figures


@pytest.mark.parametrize("role", shortlist.ROLES)
def test_every_configuration_tried_tiles_the_layer(role):
    for problem in gpu_problems():
        tiles = shortlist.space(role, problem.C, problem.k_t, problem.W)
        assert 0 < len(set(tiles)) == len(tiles) <= 64
        for tile in tiles:
            assert problem.C % (tile.BC * tile.NC) == 0, (problem, tile)
            assert tile.BP * tile.BC in (32 * tile.num_warps, 64 * tile.num_warps), (problem, tile)
            assert problem.W % tile.R == 0, (problem, tile)
            assert tile.NC == 1 or (role == "inference" and tile.NC * tile.BC == problem.C)


def test_a_row_that_no_strip_divides_is_tiled_by_narrow_ones():
    assert {tile.R for tile in shortlist.space("training", 96, 1, 11)} == {4, 5, 7}


@pytest.mark.parametrize("role", shortlist.ROLES)
def test_spills_are_dropped_and_few_are_timed_the_table_s_own_choice_first(role):
    figures = reports(role, R7=Report(255, 24, 0.9))
    tiles = shortlist.screen(PROBLEM, role, figures, 5, 132)
    assert len(tiles) == 5
    assert tiles[0] == launch.fits(launch.candidates(role, 96, 3, 2), 56)[0]
    assert 7 not in {tile.R for tile in tiles[1:]}


@pytest.mark.parametrize("error", [PTXASError("ptxas died"), RuntimeError("PassManager::run failed")])
def test_what_does_not_compile_is_dropped_with_its_reason(error, monkeypatch, capsys):
    def compile_case(case, architecture):
        if case.constants["R"] == 7:
            raise error
        return Report(128, 0, 0.6)

    monkeypatch.setattr(shortlist, "compile_case", compile_case)
    requests = {shortlist.compiled_as(PROBLEM, "training", tile) for tile in shortlist.space("training", 96, 3, 56)}
    with ThreadPoolExecutor(1) as pool:
        figures = shortlist.compile_all(pool, requests, 90, time.monotonic() + 60)
    tiles = shortlist.screen(PROBLEM, "training", figures, 100, 132)
    assert 7 not in {tile.R for tile in tiles[1:]}
    assert {4, 8} <= {tile.R for tile in tiles[1:]}
    assert f"{type(error).__name__}: " in capsys.readouterr().err


def test_an_error_of_the_tuner_itself_is_no_word_on_a_kernel(monkeypatch):
    monkeypatch.setattr(shortlist, "compile_case", lambda case, architecture: case.nothing)
    with pytest.raises(AttributeError):
        shortlist.compile_request(shortlist.compiled_as(PROBLEM, "training", Tile(8, 8, 32)), 90)


SHIPPED, QUICK, QUICKER = Tile(8, 8, 32), Tile(4, 4, 32), Tile(7, 4, 32)


def in_use():
    return launch.candidates("training")[0]


@pytest.fixture
def timed(monkeypatch):
    """`fastest` of tiles that take `ms`, and whose results at full size are what is given."""

    def fix(ms, results=(), end=float("inf")):
        def run():
            return (torch.full((3,), dict(results).get(in_use(), 1.0)), torch.empty(0))

        monkeypatch.setattr(tune, "call", lambda *_arguments: run)
        return tune.fastest("training", PROBLEM, "cpu", list(ms), lambda run: ms[in_use()], end)

    return fix


def test_the_fastest_is_taken_if_it_agrees_with_the_shipped_one_at_full_size(timed, capsys):
    ms = {SHIPPED: 3.0, QUICK: 2.0, QUICKER: 1.0}
    assert timed(ms) == (QUICKER, 1.0)
    for wrong in (1.5, float("nan")):
        assert timed(ms, results={QUICKER: wrong}) == (QUICK, 2.0)
    assert timed(ms, results={QUICKER: 1.5, QUICK: 0.0}) == (SHIPPED, 3.0)
    assert f"{QUICKER}: dropped, 5.0e-01 away from {SHIPPED} at full size" in capsys.readouterr().err


def test_the_shipped_one_stays_where_another_gains_no_more_than_noise(timed):
    assert timed({SHIPPED: 1.0, QUICK: 0.98}) == (SHIPPED, 1.0)
    assert timed({SHIPPED: 1.0, QUICK: 0.96}) == (QUICK, 0.96)


@pytest.fixture
def checked(monkeypatch, capsys):
    """`check_all` of tiles whose checks raise what is given; and what it reports."""

    def fix(tiles, raises=()):
        def verify(*_arguments):
            if in_use() in dict(raises):
                raise dict(raises)[in_use()]

        monkeypatch.setattr(tune, "verify", verify)
        with ThreadPool(1) as pool:
            right = tune.check_all(pool, "training", {PROBLEM: tiles}, "cpu", float("inf"))
        return right[PROBLEM], capsys.readouterr().err

    return fix


def test_what_is_wrong_or_does_not_compile_is_dropped_with_its_reason(checked):
    assert checked([SHIPPED, QUICK]) == ([SHIPPED, QUICK], "")
    right, told = checked([SHIPPED, QUICK, QUICKER], {SHIPPED: tune.WrongResult("far off"), QUICK: PTXASError("died")})
    assert right == [QUICKER]
    assert f"{SHIPPED}: dropped, WrongResult: far off" in told
    assert f"{QUICK}: dropped, PTXASError" in told
    with pytest.raises(tune.WrongResult, match="no configuration of training is right on 1x96x32x56x56"):
        checked([SHIPPED], {SHIPPED: tune.WrongResult("far off")})


def test_after_an_error_of_the_gpu_the_process_checks_nothing_more(checked):
    right, told = checked([SHIPPED, QUICK, QUICKER], {QUICK: RuntimeError("CUDA error: an illegal memory access")})
    assert right == [SHIPPED]
    assert f"{QUICK}: dropped, RuntimeError: CUDA error" in told
    assert f"{QUICKER}: dropped, not tried after that" in told


def test_configurations_are_checked_in_processes_of_their_own():
    small = Problem(1, 8, 2, 5, 6, 1, torch.float32)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        assert tune.check_all(pool, tune.TENSOR_CORES, {small: [None]}, "cpu", float("inf")) == {small: [None]}
        with pytest.raises(shortlist.TimeIsUp):
            tune.check_all(pool, tune.TENSOR_CORES, {small: [None]}, "cpu", time.monotonic())


@pytest.fixture
def h100(monkeypatch):
    """A GPU, as far as the tuner asks before it compiles or times anything."""
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(tune, "ProcessPoolExecutor", lambda mp_context: ThreadPoolExecutor(1))
    context = SimpleNamespace(Pool=lambda maxtasksperchild: ThreadPool(1))
    monkeypatch.setattr(tune.multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(tune, "verify", lambda *_arguments: None)
    monkeypatch.setattr(tune.tensor_cores, "shared_memory", lambda device: 227 * 1024)


def test_nothing_is_compiled_or_timed_when_the_time_is_up(timed, configs, h100, monkeypatch):
    with pytest.raises(shortlist.TimeIsUp):
        timed({SHIPPED: 3.0}, end=0.0)
    request = shortlist.compiled_as(PROBLEM, "training", SHIPPED)
    monkeypatch.setattr(shortlist, "compile_request", lambda *_arguments: time.sleep(0.2))
    with ThreadPoolExecutor(1) as pool, pytest.raises(shortlist.TimeIsUp):
        shortlist.compile_all(pool, {request}, 90, time.monotonic())
    before = configs.read_text()
    for problem in (PROBLEM, dataclasses.replace(PROBLEM, dtype=torch.float32)):
        assert not tune.tune([problem], tune.Table(configs, H200, VERSIONS), 0, 4)
    assert configs.read_text() == before


@pytest.mark.parametrize("faster_for_several", [True, False])
def test_what_is_faster_for_one_clip_must_be_so_for_several(configs, h100, monkeypatch, faster_for_several):
    asked = []

    def fastest(role, problem, device, tiles, clock, end):
        asked.append((role, problem.B, list(tiles)))
        return tiles[-1] if problem.B == 1 or faster_for_several else tiles[0], 1.0

    monkeypatch.setattr(tune, "fastest", fastest)
    small = Problem(1, 768, 32, 7, 7, 1, torch.bfloat16)
    assert tune.tune([PROBLEM, small], tune.Table(configs, H200, VERSIONS), 1, 4)
    expected = []
    for role, choices in (
        (tune.TENSOR_CORES, tune.tensor_cores.CONVOLUTION[3]),
        (tune.TENSOR_CORES, tune.tensor_cores.CONVOLUTION[1]),
    ):
        expected += [(role, 1, [None, *choices]), (role, tune.SEVERAL, [None, choices[-1]])]
    assert asked == expected
    assert launch.tensor_core_config(768, 1, 2, 7, H200) == (asked[2][2][-1] if faster_for_several else None)
    assert not tune.Table(configs, H200, VERSIONS).lacks(small, (tune.TENSOR_CORES,))


def test_only_names_that_are_there(capsys):
    assert tune.main(["--only", "C=97"]) == 2
    assert "'C=97' is in none of: 1x96x64x160x160 k_t=1 bfloat16" in capsys.readouterr().err


def test_the_compiler_s_figures_decide_which_are_timed():
    figures = reports("training", R4=Report(128, 0, 0.9), R7=Report(128, 0, 0.1), R8=Report(128, 0, 0.1))
    assert [tile.R for tile in shortlist.screen(PROBLEM, "training", figures, 3, 132)[1:]] == [4, 4]


def test_registers_say_how_many_programs_share_a_multiprocessor():
    tile = Tile(8, 8, 32)
    assert [shortlist.resident(tile, Report(n, 0, 0.6)).per_sm for n in (255, 168, 128, 96)] == [2, 3, 4, 5]


def test_what_is_written_is_what_the_launcher_takes(configs):
    tile = Tile(4, 4, 32, num_warps=2, per_sm=7)
    before = launch.candidates("training", 96, 3, 2)
    assert launch.candidates("training", 96, 3, 2, 56, H200) == before
    tune.Table(configs, H200, VERSIONS).put(PROBLEM, "training", tile)
    assert launch.candidates("training", 96, 3, 2, 56, H200) == [tile]
    for other in (("training", 96, 3, 2, 160, H200), ("training", 96, 3, 2, 56, A100)):
        assert launch.candidates(*other) == before
    assert launch.candidates("training", 96, 3, 4, 56, H200) == launch.candidates("training", 96, 3, 4)
    assert len(launch.candidates("inference", 96, 3, 2, 56, H200)) > 1


def test_writing_leaves_every_other_entry_and_says_where_it_comes_from(configs):
    shipped = json.loads(configs.read_text())
    tune.Table(configs, A100, VERSIONS).put(PROBLEM, "inference", Tile(7, 8, 32))
    tune.Table(configs, H200, VERSIONS).put(PROBLEM, "inference", Tile(8, 8, 32))
    written = json.loads(configs.read_text())
    assert written["tiles"] == shipped["tiles"]
    tiles = {"C=96 k_t=3 bits=16 W=56": {"inference": {"R": 8, "BP": 8, "BC": 32}}}
    assert written["tuned"]["NVIDIA H200"] == VERSIONS | {"architecture": "sm_90", "tiles": tiles}
    assert written["tuned"]["NVIDIA A100"]["architecture"] == "sm_80"


def test_a_run_goes_on_where_the_last_one_stopped(configs):
    table = tune.Table(configs, H200, VERSIONS)
    assert table.lacks(PROBLEM) == list(shortlist.ROLES)
    table.put(PROBLEM, "inference", Tile(8, 8, 32))
    resumed = tune.Table(configs, H200, VERSIONS | {"date": "2026-01-02"})
    assert resumed.lacks(PROBLEM) == list(shortlist.ROLES[1:])
    other = dataclasses.replace(PROBLEM, W=28)
    assert tune.Table(configs, H200, VERSIONS, [other]).lacks(PROBLEM) == list(shortlist.ROLES[1:])
    assert tune.Table(configs, H200, VERSIONS, [PROBLEM]).lacks(PROBLEM) == list(shortlist.ROLES)


def test_figures_of_another_triton_are_not_mixed_in(configs):
    tune.Table(configs, H200, VERSIONS).put(PROBLEM, "inference", Tile(8, 8, 32))
    other = dataclasses.replace(PROBLEM, W=28)
    for forget in ((), [other]):
        with pytest.raises(
            ValueError, match=r"tuned with Triton 3\.6\.0, and here it is 3\.7\.0: --again for all .* 1 "
        ):
            tune.Table(configs, H200, VERSIONS | {"triton": "3.7.0"}, forget)
    assert tune.Table(configs, H200, VERSIONS | {"triton": "3.7.0"}, [PROBLEM]).tiles == {}


def test_a_layer_takes_what_was_tuned_on_its_own_model_else_on_another_of_its_architecture(configs):
    other = dataclasses.replace(PROBLEM, W=28)
    theirs, own = Tile(8, 8, 32), Tile(4, 4, 32)
    for problem in (PROBLEM, other):
        tune.Table(configs, H200, VERSIONS).put(problem, "training", theirs)
    tune.Table(configs, H100, VERSIONS).put(PROBLEM, "training", own)
    assert launch.candidates("training", 96, 3, 2, 56, H100) == [own]
    assert launch.candidates("training", 96, 3, 2, 28, H100) == [theirs]
    assert launch.candidates("training", 96, 3, 2, 56, H200) == [theirs]
    assert tune.Table(configs, H100, VERSIONS).lacks(other, ("training",)) == ["training"]


def test_only_one_role_is_forced():
    tile, others = Tile(4, 4, 32), launch.candidates("training", 96, 3, 2)
    with tune.only("inference", tile):
        assert launch.candidates("inference", 96, 3, 2, 56, H200) == [tile]
        assert launch.candidates("training", 96, 3, 2) == others
    assert launch.candidates("inference", 96, 3, 2) != [tile]


def test_the_launcher_finds_what_was_tuned_on_tensor_cores(configs):
    config = tune.Config(16, 8, 2)
    asked = 96, 3, 2, 56
    assert launch.tensor_core_config(*asked, A100) is None
    tune.Table(configs, A100, VERSIONS).put(PROBLEM, tune.TENSOR_CORES, config)
    assert launch.tensor_core_config(*asked, A100) == config
    assert launch.tensor_core_config(96, 3, 2, 57, A100) is None
    with tune.only(tune.TENSOR_CORES, tune.Config(8, 8, 4)):
        assert launch.tensor_core_config(*asked, A100) == tune.Config(8, 8, 4)
    assert launch.tensor_core_config(*asked, A100) == config


def test_a_march_is_never_timed_in_place_of_a_tensor_core_configuration():
    def fail():
        raise PTXASError("ptxas died")

    layer = tune.tensor_cores.Layer(torch.device("cuda", 0), torch.bfloat16, 96, 3, 7)
    with tune.only(tune.TENSOR_CORES, tune.Config(8, 8, 4)), pytest.raises(PTXASError):
        tune.tensor_cores.attempt(layer, fail)
    assert not tune.tensor_cores._refused


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_what_it_needs_and_writes_nothing(configs, capsys):
    before = configs.read_text()
    assert tune.main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert configs.read_text() == before


@pytest.mark.slow
def test_the_compiler_s_figures_of_a_new_configuration_are_had_without_a_gpu():
    request = shortlist.compiled_as(
        Problem(1, 192, 32, 28, 28, 1, torch.bfloat16), "training", Tile(4, 1, 64, num_warps=2)
    )
    report = shortlist.compile_request(request, 90)
    assert report.stack == 0
    assert 0 < report.registers <= 255
    assert 0.3 < report.products < 1
