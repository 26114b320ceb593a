"""`dover-eval` as a user types it, in a process of its own where it matters."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dover_eval.cli import app
from dover_eval.cli.exits import check_no_input

COLUMNS = {
    "video_name",
    "Prompt",
    "Traditional",
    "Alignment",
    "Aesthetic",
    "Temporal",
    "Overall",
    "error",
    "fingerprint",
}


@pytest.fixture
def videos(write_video, moving_frames, tmp_path) -> Path:
    """A folder with two clips, one of them in a subfolder, and a file that is no video."""
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    write_video(moving_frames, "clips/a.mp4")
    write_video(moving_frames[::-1], "clips/more/b.MP4")
    (folder / "notes.txt").write_text("not a clip")
    return folder


@pytest.fixture
def dover(checkpoint):
    """Runs a command with the small checkpoint, on the CPU."""

    def run(*arguments: object, model: bool = True):
        options = ["--model", checkpoint, "--device", "cpu"] if model else []
        return CliRunner().invoke(app, [*map(str, arguments), *options])

    return run


def test_a_folder_as_a_table(dover, videos):
    result = dover("score", videos, "--prompt", "a square")
    assert result.exit_code == 0, result.output
    for word in ("a.mp4", "b.MP4", "Traditional", "Overall", "fingerprint"):
        assert word in result.stdout
    assert "notes.txt" not in result.stdout


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_results_files(dover, videos, tmp_path, suffix):
    output = tmp_path / f"scores{suffix}"
    result = dover("score", videos, "--prompt", "a square", "--output", output, "--quiet")
    assert result.exit_code == 0
    assert result.stdout == ""
    text = output.read_text(encoding="utf-8")
    if suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
    else:
        rows = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 2
    assert set(rows[0]) >= COLUMNS
    assert 1 <= float(rows[0]["Overall"]) <= 5
    assert list(tmp_path.glob(".scores*")) == []


def test_prompts_from_a_table_by_path_name_or_stem(dover, videos, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text('video_name,Prompt,extra\na.mp4,"a square, moving",1\nb,two squares,2\nunused.mp4,x,3\n')
    output = tmp_path / "o.jsonl"
    result = dover("score", videos / "a.mp4", str(videos / "**/*.MP4"), "--prompts", table, "-o", output)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["Prompt"] for row in rows] == ["a square, moving", "two squares"]


def test_a_broken_file_is_a_row_and_exit_status_one(dover, videos, tmp_path):
    (videos / "broken.mp4").write_text("no video")
    output = tmp_path / "o.jsonl"
    result = dover("score", videos, videos / "gone.mp4", "--prompt", "a square", "-o", output)
    assert result.exit_code == 1
    rows = {Path(row["video_name"]).name: row for row in map(json.loads, output.read_text().splitlines())}
    assert rows["a.mp4"]["error"] is None
    assert "cannot be decoded" in rows["broken.mp4"]["error"]
    assert "no such file" in rows["gone.mp4"]["error"]
    assert rows["broken.mp4"]["Overall"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either --prompt TEXT or --prompts"),
        (["--prompt", "a", "--prompts", "p.csv"], "give either"),
        (["--prompt", " "], "--prompt ' ': nothing to read in it"),
        (["--prompt", "\u200b"], "nothing to read in it"),
        (["--prompt", "a", "--output", "o.xlsx"], "ends in .csv, .jsonl, .json, .parquet"),
        (["--prompt", "a", "--output", "no/such/o.csv"], "there is no folder"),
        (["--prompt", "a", "--output", "folder.csv"], "--output folder.csv: expected a file, found a folder"),
        (["--prompts", "missing.csv"], "missing.csv: cannot be read"),
        (["--prompt", "a", "--batch-size", "0"], "batch-size"),
    ],
)
def test_usage_errors_end_with_two(dover, videos, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    result = dover("score", videos, *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,text\na.mp4,x\n", "expected the columns video_name and Prompt, found name, text"),
        ("", "found none"),
        ("video_name,Prompt\na.mp4,\n", "line 2: an empty Prompt"),
        ("video_name,Prompt\na.mp4,x\na.mp4,y\n", "line 3: a second prompt for a.mp4"),
        ("video_name,Prompt\na.mp4,x\n", "more/b.MP4"),
        (
            "video_name,Prompt\na.mp4,a bicycle, in the rain\n",
            "line 2: 3 cells for 2 columns",
        ),
        ("video_name,Prompt,Prompt\na.mp4,x,y\n", "the columns Prompt are there twice"),
        ('video_name,Prompt\na.mp4,"x\nb.mp4,y\n', "line 3: no CSV (unexpected end of data)"),
    ],
)
def test_bad_prompt_tables_say_where(dover, videos, tmp_path, table, words):
    path = tmp_path / "p.csv"
    path.write_text(table)
    result = dover("score", videos, "--prompts", path)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_a_folder_or_a_pattern_without_videos(dover, tmp_path):
    for given in (tmp_path, tmp_path / "*.mp4"):
        assert dover("score", given, "--prompt", "a").exit_code == 2


def test_a_file_that_a_table_names_often_is_compared_with_the_output_once(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "r.csv").touch()
    compared, samefile = [], os.path.samefile
    monkeypatch.setattr(os.path, "samefile", lambda one, other: compared.append(other) or samefile(one, other))
    check_no_input("--output", tmp_path / "r.csv", [str(tmp_path / "a.mp4")] * 1000)
    assert len(compared) == 1


def test_markup_in_names_and_prompts_is_text(dover, write_video, moving_frames):
    path = write_video(moving_frames, "[red]a[b].mp4")
    result = dover("score", path, "--prompt", "[bold]x[/nonsense]")
    assert result.exit_code == 0, result.output
    assert "[red]a[b].mp4" in result.stdout
    assert "[bold]x[/nonsense]" in result.stdout


def test_control_characters_do_not_reach_the_terminal(dover, write_video, moving_frames, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = write_video(moving_frames, "a\x1b]0;owned\x07.mp4")
    (path.parent / "b\x9b2J.mp4").write_text("no video")
    result = dover("score", path.parent, "--prompt", "a \x1b[31mred square")
    assert result.exit_code == 1
    for shown in ("a\\x1b]0;owned\\x07.mp4", "a \\x1b[31mred square", "b\\x9b2J.mp4: cannot be decoded"):
        assert shown in result.stdout
    refused = dover("score", f"{path}.gone\x1b[2J/*.mp4", "--prompt", "a")
    assert refused.exit_code == 2
    assert ".gone\\x1b[2J/*.mp4" in refused.stderr
    assert not {"\x1b", "\x07", "\x9b"} & set(result.output + refused.output)


def test_help_fills_the_terminals_lines_and_not_the_sources():
    said = CliRunner().invoke(app, ["label", "--help"], env={"COLUMNS": "90"}).stdout
    assert "changed. A clip that the teacher cannot judge is a row with its error; the others go on." in said


def test_a_warning_is_said_once_and_by_whom(dover, videos):
    assert dover("info").exit_code == 0  # a command before, in the same process
    result = dover("score", videos, "--prompt", "a square " * 400)
    assert result.stderr.count("more than") == 1, result.stderr
    assert "dover_eval.models.text: a prompt has more than 256 tokens" in " ".join(result.stderr.split())


def test_info_says_what_runs_and_why(dover):
    result = dover("info")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    for expected in ("torch 2.", "PyAV", "FFmpeg", "reference", "all-MiniLM-L6-v2 from", "fingerprint", "cpu"):
        assert expected in words


def test_a_model_that_is_not_there(dover, videos):
    result = dover("score", videos, "--prompt", "a", "--model", "./nowhere", model=False)
    assert result.exit_code == 1
    assert "./nowhere cannot be loaded: no folder ./nowhere" in result.stderr


def test_a_device_without_data_is_refused(dover, videos, checkpoint):
    result = dover("score", videos, "--prompt", "a", "--device", "meta", "--model", checkpoint, model=False)
    assert result.exit_code == 2
    assert "--device meta: expected one that computes" in result.stderr


def test_another_process_writes_the_same_bytes(dover, videos, checkpoint, tmp_path):
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    assert dover("score", videos, "--prompt", "a square", "-q", "-o", here).exit_code == 0
    command = [sys.executable, "-m", "dover_eval", "score", str(videos), "--prompt", "a square", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--model", checkpoint, "-q", "-o", str(there)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert there.read_bytes() == here.read_bytes()


def test_letters_that_a_terminal_lacks_are_escaped(videos, checkpoint):
    command = [sys.executable, "-m", "dover_eval", "score", str(videos), "--prompt", "ein Häuschen"]
    lacking = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "COLUMNS": "200"}
    done = subprocess.run(
        [*command, "--model", checkpoint, "--device", "cpu"], capture_output=True, text=True, check=False, env=lacking
    )
    assert done.returncode == 0, done.stderr
    assert "ein H\\xe4uschen" in done.stdout
