"""Ray on this machine, with real processes: the local engine's rows, and nothing lost with a process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.scale.conftest import read_lines, write_shard

pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(scope="module")
def cluster():
    """Four CPUs as Ray counts them: two scorers, and two that decode. Its ports are its own choice."""
    import ray

    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield ray
    ray.shutdown()
    os.environ.pop("PYTHONPATH") if paths is None else os.environ.update(PYTHONPATH=paths)


@pytest.fixture
def on_ray(dover):
    return lambda *given, **kwargs: dover(*given, "--engine", "ray", "--num-gpus", 0, device=False, **kwargs)


def scorers() -> list[int]:
    """The processes of scorer actors."""
    found = psutil.Process().children(recursive=True)
    return [process.pid for process in found if "_Scorer" in " ".join(process.cmdline())]


def test_the_local_engine_s_rows_though_a_scorer_is_killed_in_the_middle(
    cluster, dover, on_ray, manifest, tmp_path, monkeypatch
):
    from dover_eval.scale.runlog import RunLog

    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    assert dover(manifest, "-o", here).exit_code == 1  # of the broken file
    killed: list[int] = []
    append = RunLog.append

    def append_and_kill(log, scored):
        append(log, scored)
        if not killed:
            alive = scorers()
            assert len(alive) == 2
            killed.append(alive[0])
            os.kill(alive[0], signal.SIGKILL)

    monkeypatch.setattr(RunLog, "append", append_and_kill)
    result = on_ray(manifest, "-o", there)
    assert result.exit_code == 1, result.output
    assert killed
    assert there.read_bytes() == here.read_bytes()
    assert "cannot be decoded" in read_lines(there)[11]["error"]


def test_one_engine_goes_on_where_the_other_was_stopped(cluster, dover, on_ray, manifest, tmp_path):
    output = tmp_path / "r.jsonl"
    dover(manifest, "-o", output)
    expected = output.read_bytes()
    log = tmp_path / "r.jsonl.run" / "rows-0.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:30]))
    result = on_ray(manifest, "-o", output, "--resume")
    assert result.exit_code == 1, result.output
    assert output.read_bytes() == expected


def test_relative_paths_start_where_the_command_does_and_not_where_the_cluster_does(
    cluster, on_ray, dover, clips, checkpoint, tmp_path, monkeypatch
):
    write_shard(clips / "s.tar", {"a.mp4": (clips / "a.mp4").read_bytes(), "a.txt": b"a square"})
    os.symlink(checkpoint, clips / "model")
    monkeypatch.chdir(clips)  # the cluster runs in the folder before
    given = ("b.mp4", "s.tar", "tar://a.mp4::s.tar", "--prompt", "a square")
    result = on_ray(*given, "-o", "there.jsonl", model="model")
    assert result.exit_code == 0, result.output
    dover(*given, "-o", "here.jsonl")
    assert Path("there.jsonl").read_bytes() == Path("here.jsonl").read_bytes()
    assert [row["video_name"] for row in read_lines(Path("there.jsonl"))] == [
        "b.mp4", "tar://a.mp4::s.tar", "tar://a.mp4::s.tar",
    ]  # fmt: skip


def test_more_gpus_than_there_are(cluster, dover, clips):
    result = dover(clips, "--prompt", "x", "--engine", "ray", "--num-gpus", 64, device=False)
    assert result.exit_code == 1
    assert "--num-gpus 64: the Ray cluster has 0" in result.stderr


def test_ray_that_is_not_installed_says_how_to_get_it(dover, clips, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    result = dover(clips, "--prompt", "x", "--engine", "ray", device=False)
    assert result.exit_code == 1
    assert "ray is not installed: pip install 'dover-eval[ray]'" in result.stderr


@pytest.mark.parametrize("address", ["nosuch.invalid:1", "ray://127.0.0.1:1"])
def test_a_cluster_where_nobody_answers_is_refused_at_once(address):
    from dover_eval.scale.ray_engine import _reach

    with pytest.raises(ConnectionError, match="nobody answers"):
        _reach(address)
    _reach("auto")
    _reach(None)
