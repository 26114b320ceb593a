"""A killed run goes on: no row lost, doubled or changed; and what must not be mixed is refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from dover_eval.calibration import BOUND_TO, AspectCalibration, Calibration
from dover_eval.files import Clip
from dover_eval.results import COLUMNS, read_results, write_results
from dover_eval.scale.run import Share, score_in_memory, score_set, what_is_asked
from dover_eval.scale.runlog import RunError, RunLog, Scored
from tests.scale.conftest import exit_status, logged_lines, read_lines, wait_for


def test_killed_at_several_moments_it_ends_as_if_it_never_was(dover, arguments, start, manifest, tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert dover(manifest, "-o", whole).exit_code == 1  # of the broken file
    for rows in (0, 1, 9, 30):
        child = start(arguments(manifest, "-o", output, "--resume", "--quiet"))
        wait_for(lambda rows=rows: (output.with_name("killed.jsonl.run") / "run.json").exists() and
                 logged_lines(output) >= rows)  # fmt: skip
        os.kill(child, signal.SIGKILL)
        assert exit_status(child) == -signal.SIGKILL
        assert not output.exists()
    before = logged_lines(output)
    result = dover(manifest, "-o", output, "--resume")
    assert result.exit_code == 1, result.output
    assert logged_lines(output) == 40
    assert 30 <= before < 40
    assert output.read_bytes() == whole.read_bytes()


def test_without_posix_locks_only_results_files_cannot_be_had(tmp_path, monkeypatch):
    code = "import sys; sys.modules['fcntl'] = None; import dover_eval.cli as c; c.app(['--help'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(RunError, match="results files need a system with POSIX record locks"):
        RunLog(tmp_path / "r.jsonl", 1, 1, {})


def test_a_half_written_line_is_cut_off_and_scored_again(dover, manifest, tmp_path):
    output = tmp_path / "r.jsonl"
    dover(manifest, "-o", output)
    log = tmp_path / "r.jsonl.run" / "rows-0.jsonl"
    expected, lines = output.read_bytes(), log.read_bytes().splitlines(keepends=True)
    output.unlink()
    (tmp_path / "r.jsonl.run" / "finished.json").unlink()
    for cut in (1, len(lines[20]) // 2, len(lines[20]) - 1):
        log.write_bytes(b"".join(lines[:20]) + lines[20][:cut])
        dover(manifest, "-o", output, "--resume")
        assert output.read_bytes() == expected


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_all_formats_hold_the_same_rows(dover, clips, tmp_path, suffix):
    import csv

    import pyarrow.parquet

    (clips / "broken.mp4").write_text("no video")
    for name in ("r.jsonl", f"r{suffix}"):
        dover(clips, "--prompt", 'a "square",\nmoving', "-o", tmp_path / name)
    expected, path = read_lines(tmp_path / "r.jsonl"), tmp_path / f"r{suffix}"
    assert len(expected) == 4
    if suffix == ".parquet":
        assert pyarrow.parquet.read_table(path).to_pylist() == expected
    elif suffix == ".json":
        assert json.loads(path.read_text()) == expected
    else:
        texts = [{key: "" if value is None else str(value) for key, value in row.items()} for row in expected]
        with path.open(newline="") as file:
            assert list(csv.DictReader(file)) == texts


def test_a_finished_set_is_told_to_be_finished_without_the_model(dover, clips, tmp_path, monkeypatch):
    output = tmp_path / "r.jsonl"
    assert dover(clips, "--prompt", "a square", "-o", output).exit_code == 0
    monkeypatch.setattr("dover_eval.cli.loading.load_scorer", None)
    before = output.stat()
    result = dover(clips, "--prompt", "a square", "-o", output, "--resume")
    assert result.exit_code == 0, result.output
    assert "c.mp4" in result.stdout
    assert output.stat() == before


def test_a_finished_set_is_not_told_to_be_finished_with_another_calibration(dover, small_scorer, clips, tmp_path):
    output, told = tmp_path / "r.jsonl", tmp_path / "calibration.json"
    made_for = {name: getattr(small_scorer.fingerprint, name) for name in BOUND_TO}
    harsher = AspectCalibration(knots=((1, 1), (5, 3)), source="logistic", count=9)
    Calibration({"Alignment": harsher}, **made_for).save(told)
    assert dover(clips, "--prompt", "a square", "-o", output).exit_code == 0
    result = dover(clips, "--prompt", "a square", "-o", output, "--resume", "--calibration", told)
    assert result.exit_code == 1
    assert "calibration" in result.stderr
    assert "choose another --output" in result.stderr


def test_all_that_makes_scores_tells_a_finished_set_from_another(tmp_path, monkeypatch):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text("1")
    two.write_text("2")
    told = [what_is_asked(None, *given) for given in ((None, None), ("cuda", None), (None, one), (None, two))]
    for at in ("version", "__version__"):
        with monkeypatch.context() as patch:
            patch.setattr(f"dover_eval.scale.run.{at}", (lambda name: "0") if at == "version" else "0")
            told.append(what_is_asked(None, None, None))
    assert what_is_asked(None, None, None) == told[0]
    assert len({json.dumps(asked) for asked in told}) == len(told)


def test_a_lost_or_damaged_results_file_is_written_again_from_the_log(dover, clips, tmp_path):
    output = tmp_path / "r.parquet"
    dover(clips, "--prompt", "a square", "-o", output)
    expected = output.read_bytes()
    output.unlink()
    assert dover(clips, "--prompt", "a square", "-o", output, "--resume").exit_code == 0
    assert output.read_bytes() == expected
    output.write_bytes(expected[:100])
    assert dover(clips, "--prompt", "a square", "-o", output, "--resume").exit_code == 0
    assert output.read_bytes() == expected


def test_fingerprints_are_not_mixed(dover, small_model, clips, tmp_path):
    import copy

    import torch

    output = tmp_path / "r.jsonl"
    dover(clips / "a.mp4", "--prompt", "a square", "-o", output)
    other = copy.deepcopy(small_model)
    with torch.no_grad():
        other.mos_predictor.quality[-1].bias.add_(0.1)
    other.save_pretrained(tmp_path / "other")
    before = output.read_bytes()
    for given in ([clips / "a.mp4"], [clips / "a.mp4", clips / "b.mp4"]):  # without and with a row to add
        result = dover(*given, "--prompt", "a square", "-o", output, "--resume", model=str(tmp_path / "other"))
        assert result.exit_code == 1
        assert "weights" in result.stderr
        assert "choose another --output" in result.stderr
        assert output.read_bytes() == before


def test_a_file_that_changed_is_refused_by_name(dover, clips, tmp_path):
    output = tmp_path / "r.jsonl"
    dover(clips, "--prompt", "a square", "-o", output)
    shutil.copy(clips / "b.mp4", clips / "a.mp4")
    result = dover(clips, "--prompt", "a square", "-o", output, "--resume")
    assert result.exit_code == 1
    assert "a.mp4 has changed since it was scored" in result.stderr
    (clips / "a.mp4").unlink()
    result = dover(clips / "a.mp4", clips / "b.mp4", clips / "c.mp4", "--prompt", "a square", "-o", output, "--resume")
    assert "a.mp4 is gone since it was scored" in result.stderr


def test_other_inputs_are_refused_and_more_are_welcome(dover, clips, tmp_path):
    output = tmp_path / "r.jsonl"
    a, b, c = (clips / f"{name}.mp4" for name in "abc")
    dover(a, b, "--prompt", "a square", "-o", output)
    first = output.read_text()
    for given in ([b, a], [a], [a, c, b]):
        result = dover(*given, "--prompt", "a square", "-o", output, "--resume")
        assert result.exit_code == 1
        assert "the inputs are not those" in result.stderr
    result = dover(a, b, "--prompt", "a circle", "-o", output, "--resume")
    assert "'a square') then" in result.stderr
    assert dover(a, b, c, "--prompt", "a square", "-o", output, "--resume").exit_code == 0
    assert output.read_text().startswith(first)
    assert len(read_lines(output)) == 3


def test_failed_rows_once_more(dover, write_video, moving_frames, clips, tmp_path):
    output = tmp_path / "r.jsonl"
    given = (clips / "a.mp4", clips / "late.mp4", "--prompt", "a square", "-o", output)
    assert dover(*given).exit_code == 1
    first = read_lines(output)[0]
    write_video(moving_frames, "clips/late.mp4")
    result = dover(*given, "--resume")
    assert "late.mp4 was not there, and is now" in result.stderr
    assert "--retry-failed" in result.stderr
    assert dover(*given, "--resume", "--retry-failed").exit_code == 0
    rows = read_lines(output)
    assert rows[0] == first
    assert rows[1]["error"] is None
    assert dover(*given, "--resume").exit_code == 0


def scored(first: int, *names: str, error: str | None = None, prompt: str = "x") -> Scored:
    """A batch as an engine gives it."""
    rows = [{"video_name": name, "Prompt": prompt, "error": error, "fingerprint": "f"} for name in names]
    return Scored(first, rows, [None if error else "1 1"] * len(rows))


def test_the_last_attempt_counts_whichever_rank_s_log_it_is_in(tmp_path):
    def log(rank: int = 0, **kwargs: bool) -> RunLog:
        return RunLog(tmp_path / "r.jsonl", 2, 1, {}, rank=rank, resume=True, **kwargs)

    for rank, error in ((0, None), (1, "no such file")):
        writer = log(rank)
        writer.append(scored(rank, f"{rank}.mp4", error=error))
        writer.close()
    for error in ("cannot be decoded", None):
        again = log(retry_failed=True)
        assert again.again == {1}
        again.append(scored(1, "1.mp4", error=error))
        again.close()
        reader = log()
        assert [row["error"] for row in reader.rows([Clip("0.mp4", "x"), Clip("1.mp4", "x")])] == [None, error]
        assert reader.failed == (error is not None)
        reader.close()


def test_a_finished_run_that_was_added_to_is_unfinished(tmp_path):
    output, settings = tmp_path / "r.jsonl", {}
    clips = [Clip(f"{i}.mp4", "x") for i in range(2)]
    log = RunLog(output, 1, 1, settings, resume=True)
    log.append(scored(0, "0.mp4"))
    log.finish(clips[:1], None)
    log.close()
    log = RunLog(output, 2, 1, settings, resume=True)
    log.append(scored(1, "1.mp4"))
    log.close()  # killed before the results file is written
    with pytest.raises(RunError, match="did not finish: go on with --resume"):
        RunLog(output, 2, 1, settings)


def test_another_fingerprint_is_refused_though_what_it_was_made_of_is_lost(tmp_path):
    log = RunLog(tmp_path / "r.jsonl", 2, 1, {}, resume=True)
    log.claim({"weights": "w"}, "f")
    log.append(scored(0, "0.mp4"))
    (log.folder / "made_with.json").unlink()
    with pytest.raises(RunError, match=r"another fingerprint than .* \(f then, g now\)"):
        log.claim({"weights": "v"}, "g")
    log.close()


def test_rows_in_memory_are_in_the_order_of_the_clips_whatever_the_engine_s():
    def engine(batches, claim):
        claim({}, "f")
        yield from (scored(i, f"{i}.mp4") for i in reversed(batches))

    rows = score_in_memory(3, engine, batch_size=1).rows
    assert [row["video_name"] for row in rows] == ["0.mp4", "1.mp4", "2.mp4"]


def test_failed_rows_of_several_ranks_once_more(dover, write_video, moving_frames, clips, tmp_path, monkeypatch):
    output = tmp_path / "r.jsonl"
    given = (clips / "a.mp4", clips / "late.mp4", "--prompt", "a square", "-o", output)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        dover(*given)
    write_video(moving_frames, "clips/late.mp4")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert "--retry-failed" in dover(*given).stderr
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        result = dover(*given, "--retry-failed")
        assert result.exit_code == 0, result.output
    monkeypatch.undo()
    assert dover(*given, "--resume").exit_code == 0
    assert [row["error"] for row in read_lines(output)] == [None, None]


def test_a_good_row_stays_though_another_of_its_batch_is_scored_once_more(dover, clips, tmp_path):
    output = tmp_path / "r.jsonl"
    (clips / "broken.mp4").write_text("no video")
    given = (clips / "a.mp4", clips / "broken.mp4", "-o", output, "--batch-size", 2)
    dover(*given, "--prompt", "a square")
    first = output.read_bytes()
    result = dover(*given, "--prompt", "a circle", "--resume", "--retry-failed")
    assert "the inputs are not those" in result.stderr
    (clips / "a.mp4").rename(clips / "hidden.mp4")
    result = dover(*given, "--prompt", "a square", "--resume", "--retry-failed")
    assert "a.mp4 is gone since it was scored" in result.stderr
    assert output.read_bytes() == first
    log = RunLog(output, 2, 2, {"threads": 1}, resume=True, retry_failed=True)
    (before,) = log._lines()
    assert [row["error"] is None for row in before.rows] == [True, False]
    failed = [row | {"error": "cannot be reached"} for row in before.rows]
    log.append(Scored(0, failed, [None, None]))  # gone between the check and the attempt
    (after,) = log._lines()
    log.close()
    assert after.rows == [before.rows[0], failed[1]]
    assert after.files == [before.files[0], None]


def test_ranks_with_different_inputs_are_told_and_not_merged(tmp_path):
    output = tmp_path / "r.jsonl"
    other = RunLog(output, 2, 1, {}, rank=1, resume=True)

    def engine(batches, claim):  # both ranks start before either has a row
        claim({}, "f")
        other.append(scored(1, "0.mp4"))
        yield from (scored(i, "0.mp4") for i in batches)

    clips = [Clip("0.mp4", "x"), Clip("1.mp4", "x")]
    with pytest.raises(RunError, match=r"on another rank: 0.mp4 \('x'\) then, 1.mp4 \('x'\) now"):
        score_set(clips, output, engine, batch_size=1, settings={}, share=Share(0, 2), resume=True)
    other.close()
    assert not output.exists()


def test_without_resume_an_unfinished_run_is_kept_and_a_finished_one_replaced(dover, clips, tmp_path):
    output = tmp_path / "r.jsonl"
    given = (clips, "-o", output)
    dover(*given, "--prompt", "a square")
    assert dover(*given, "--prompt", "a circle").exit_code == 0
    assert read_lines(output)[0]["Prompt"] == "a circle"
    (tmp_path / "r.jsonl.run" / "finished.json").unlink()
    result = dover(*given, "--prompt", "a square")
    assert result.exit_code == 1
    assert "go on with --resume, or delete that folder" in result.stderr
    shutil.rmtree(tmp_path / "r.jsonl.run")
    result = dover(*given, "--prompt", "a circle", "--resume")
    assert result.exit_code == 1
    assert "but not" in result.stderr
    assert read_lines(output)[0]["Prompt"] == "a circle"


def test_a_start_that_fails_leaves_what_was_there(dover, clips, tmp_path, monkeypatch):
    output = tmp_path / "r.jsonl"
    given = (clips, "--prompt", "a square", "-o", output)
    dover(*given)
    assert dover(*given, model="./nowhere").exit_code == 1
    assert dover(*given, "--batch-size", 2, model="./nowhere").exit_code == 1
    monkeypatch.setattr("dover_eval.cli.loading.load_scorer", None)  # all is still there
    assert dover(*given, "--resume").exit_code == 0


def test_a_link_stays_and_its_file_is_replaced(dover, clips, tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "r.jsonl"
    link.symlink_to(tmp_path / "there" / "r.jsonl")
    assert dover(clips, "--prompt", "a square", "-o", link).exit_code == 0
    assert link.is_symlink()
    assert len(read_lines(tmp_path / "there" / "r.jsonl")) == 3


def test_a_stop_by_hand_says_how_to_go_on(dover, clips, tmp_path, monkeypatch):
    def stop(log: RunLog, scored: Scored) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "r.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "append", stop)
        result = dover(clips, "--prompt", "a square", "-o", output)
    assert result.exit_code not in (0, 2)
    assert "stopped; rows are safe in" in result.stderr
    assert "go on with --resume" in result.stderr
    assert dover(clips, "--prompt", "a square", "-o", output, "--resume").exit_code == 0


def test_results_of_a_long_prompt_are_read_back(tmp_path):
    row = dict.fromkeys(COLUMNS) | {"video_name": "a.mp4", "error": "gone", "fingerprint": "f", "Prompt": "x" * 200_000}
    write_results([row], tmp_path / "r.csv")
    assert read_results(tmp_path / "r.csv").prompts == ("x" * 200_000,)


def test_batches_stay_what_they_were(dover, clips, tmp_path):
    output = tmp_path / "r.jsonl"
    given = (clips, "--prompt", "a square", "-o", output)
    dover(*given, "--batch-size", 2)
    assert dover(*given, "--resume").exit_code == 0
    result = dover(*given, "--resume", "--batch-size", 3)
    assert result.exit_code == 1
    assert "batch_size 2 then, 3 now" in result.stderr


def test_a_damaged_log_says_where(dover, clips, tmp_path):
    output = tmp_path / "r.jsonl"
    given = (clips, "--prompt", "a square", "-o", output)
    dover(*given)
    log = tmp_path / "r.jsonl.run" / "rows-0.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for damaged in (
        b"\0" * 20 + b"\n",
        lines[1].replace(b'"fingerprint"', b'"print"'),
        lines[1].replace(b'"video_name"', b'"name"'),
        lines[1].replace(b'"first": 1', b'"first": "1"'),
        lines[1].replace(b'"first": 1', b'"first": -1'),
    ):
        log.write_bytes(lines[0] + damaged + b"".join(lines[2:]))
        result = dover(*given, "--resume")
        assert result.exit_code == 1
        assert f"rows-0.jsonl: damaged in the line at byte {len(lines[0])}" in result.stderr
    (tmp_path / "r.jsonl.run" / "run.json").write_text("[]")
    assert "run.json: damaged (expected an object, found [])" in dover(*given, "--resume").stderr


def test_two_processes_do_not_write_one_run(dover, arguments, start, manifest, tmp_path):
    output = tmp_path / "r.jsonl"
    child = start(arguments(manifest, "-o", output))
    wait_for(lambda: (tmp_path / "r.jsonl.run").exists() and logged_lines(output) >= 1)
    os.kill(child, signal.SIGSTOP)
    result = dover(manifest, "-o", output, "--resume")
    os.kill(child, signal.SIGCONT)
    assert result.exit_code == 1
    assert "another process is writing this run" in result.stderr
    assert exit_status(child) == 1
    assert len(read_lines(output)) == 40


def _mount_small(folder):
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount here: {error}")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")


def test_a_full_disk_loses_nothing(dover, manifest, tmp_path):
    folder, whole = tmp_path / "small", tmp_path / "whole.jsonl"
    folder.mkdir()
    dover(manifest, "-o", whole)
    _mount_small(folder)
    try:
        output = folder / "r.jsonl"
        result = dover(manifest, "-o", output, "--resume")
        assert result.exit_code == 1
        assert "No space left on device" in result.stderr
        assert "make room, and go on with --resume" in result.stderr
        assert 0 < logged_lines(output) < 40
        assert not output.exists()
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        assert dover(manifest, "-o", output, "--resume").exit_code == 1  # of the broken file
        assert output.read_bytes() == whole.read_bytes()
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def test_a_file_that_may_not_grow_loses_nothing(dover, manifest, tmp_path):
    """As on a full disk, for machines where nothing can be mounted."""
    output, whole = tmp_path / "r.jsonl", tmp_path / "whole.jsonl"
    manifest.write_text(manifest.read_text().replace("take", "take " + "very " * 300))  # a log of more than the frames
    dover(manifest, "-o", whole)
    limit, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))  # which shared memory counts against as well
    try:
        result = dover(manifest, "-o", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "File too large" in result.stderr
    assert 0 < logged_lines(output) < 40
    assert dover(manifest, "-o", output, "--resume").exit_code == 1
    assert output.read_bytes() == whole.read_bytes()


def test_a_second_process_is_refused_before_the_first_has_a_row(tmp_path):
    output = tmp_path / "r.jsonl"
    first = RunLog(output, 4, 2, {})
    code = (
        "from pathlib import Path; from dover_eval.scale.runlog import RunLog, RunError\n"
        f"try: RunLog(Path({str(output)!r}), 4, 2, {{}})\n"
        "except RunError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "another process is writing this run" in told
    first.close()
    RunLog(output, 4, 2, {}).close()


def test_what_is_read_is_never_written_over(dover, clips, tmp_path):
    (tmp_path / "prompts.csv").write_text("video_name,Prompt\na.mp4,x\n")
    before = (tmp_path / "prompts.csv").read_bytes()
    result = dover(clips / "a.mp4", "--prompts", tmp_path / "prompts.csv", "-o", tmp_path / "prompts.csv")
    assert result.exit_code == 2
    assert "is one of the inputs, and would be replaced" in " ".join(result.stderr.split())
    assert (tmp_path / "prompts.csv").read_bytes() == before
