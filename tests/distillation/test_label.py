"""`dover-eval label` as a user runs it: real processes, real files, a real kill."""

from __future__ import annotations

import csv
import importlib.util
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dover_eval.distillation import Labels, LabelsError, Linear, TeacherError, label
from dover_eval.distillation.label import journal_of
from dover_eval.distillation.teacher import load_teacher

REPOSITORY = Path(__file__).parents[2]
CLIPS = REPOSITORY / "examples" / "clips"

# A teacher of each kind. `Counting` tells in a file what it was asked and made, and dies or hangs on demand.
TOYS = """
import functools
import os
import signal
import time
from pathlib import Path

from dover_eval.distillation import Linear, Logistic


def length(path, prompt):
    return {"Overall": len(prompt) % 5}


def patience(path, prompt):
    time.sleep(600 if prompt == "slow" else 0)
    return {"Overall": 3}


class Counting:
    scales = {"Traditional": Linear(0, 255), "Temporal": Logistic(0, 1), "Alignment": Linear(0, 1)}

    def __init__(self, log, pause=0.0, device="cpu", level=0):
        self.log, self.pause, self.device = log, pause, device
        self.identity = {"weights": "abc", "level": level}
        self.tell("made")

    def tell(self, what):
        with open(self.log, "a") as file:
            file.write(f"{what} {os.getpid()} {self.device}\\n")

    def __call__(self, path, prompt):
        print("a teacher that talks")
        name = Path(path).name
        self.tell(name)
        time.sleep(self.pause)
        if "dies" in name:
            os.kill(os.getpid(), signal.SIGKILL)
        if "raises" in name:
            raise RuntimeError("out of\\nmemory")
        if "beyond" in name:
            return {"Traditional": 300}
        if "undeclared" in name:
            return {"Beauty": 1}
        if "silent" in name:
            return {"Alignment": None}
        if "nan" in name:
            return {"Temporal": float("nan")}
        return {"Traditional": os.path.getsize(path) % 251, "Temporal": 0.5, "Alignment": None}


class Broken:
    def __init__(self):
        raise OSError("no weights here")


class Forking(Counting):  # dies, and leaves a child that holds all that it had open

    def __call__(self, path, prompt):
        if "dies" in path and not os.fork():
            time.sleep(60)
        return super().__call__(path, prompt)


class LoadsOnce(Counting):
    def __init__(self, log):
        if os.path.exists("loaded"):
            raise RuntimeError("out of memory")
        open("loaded", "w").close()
        super().__init__(log)


class Compared(Counting):
    def inputs(self, path):
        return ["original"]


class Silent:
    scales = {"Overall": Linear(0, 1)}


class Steps(Linear):
    pass


class OfItsOwn(Counting):
    scales = {"Temporal": Steps(0, 1)}


@functools.lru_cache
def cached(path, prompt):
    return {"Overall": 3}


def wrapping(function):  # as torch.no_grad() does, whose import would take each worker seconds
    @functools.wraps(function)
    def wrapped(*arguments):
        return function(*arguments)

    return wrapped


@wrapping
def decorated(path, prompt):
    return {"Overall": 3}


whole = functools.partial(decorated)
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with the teachers and a folder of clips."""
    (tmp_path / "toys.py").write_text(TOYS)
    shutil.copytree(CLIPS, tmp_path / "clips")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: object, **options: object) -> list[str]:
    told = [part for name, value in options.items() for part in ("--option", f"{name}={json.dumps(value)}")]
    return [sys.executable, "-m", "dover_eval", "label", *map(str, arguments), *told]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, **options), capture_output=True, text=True, timeout=120, check=False)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_teacher_is_of_what_is_installed_and_then_of_the_current_folder(tmp_path, monkeypatch):
    for name in ("mine_alone", "wave"):
        (tmp_path / f"{name}.py").write_text("def score(path, prompt):\n    return {}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*filter(None, sys.path)])
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    assert load_teacher("mine_alone:score", {})("a.mp4", "x") == {}
    with pytest.raises(TeacherError, match="wave has no callable score"):
        load_teacher("wave:score", {})


COUNTING = ("--teacher", "toys:Counting", "--videos", "clips", "--prompt", "a heart", "-o", "table.csv")


def asked(log: Path) -> list[str]:
    return [line.split()[0] for line in log.read_text().splitlines() if not line.startswith("made")]


def test_a_folder_as_a_table_in_the_projects_schema(place):
    from dover_eval.evaluation.benchmarks import read_ratings

    done = run(*COUNTING, "--workers", 2, log="log")
    assert done.returncode == 0, done.stderr
    assert "Traditional: linear, worst 0, best 255" in done.stdout
    assert "a teacher that talks" not in done.stdout
    table = rows(place / "table.csv")
    assert [row["video_name"] for row in table] == sorted(path.name for path in CLIPS.glob("*.mp4"))
    own = (CLIPS / "star_clean.mp4").stat().st_size % 251
    star = next(row for row in table if row["video_name"] == "star_clean.mp4")
    assert float(star["Traditional_raw"]) == own
    assert float(star["Traditional_MOS"]) == pytest.approx(1 + 4 * own / 255, abs=1e-6)
    assert float(star["Temporal_MOS"]) == pytest.approx(3.489837, abs=1e-6)  # 1 + 4 / (1 + exp(-1/2))
    assert star["Alignment_MOS"] == star["Overall_MOS"] == star["error"] == ""
    assert len({row["teacher"] for row in table}) == 1
    rated = read_ratings(place / "table.csv")
    assert {name for clip in rated for name in clip.ratings} == {"Traditional", "Temporal"}


def test_a_teacher_that_reads_no_prompt_needs_none(tmp_path):
    done = label(
        "dover_eval.teachers.temporal:FrameDifference", [("a", CLIPS / "star_clean.mp4", "")], tmp_path / "l.csv"
    )
    assert not done.errors
    with pytest.raises(ValueError, match="nothing to read in it"):
        label("dover_eval.teachers.temporal:FrameDifference", [("a", "a.mp4", " ")], tmp_path / "m.csv")


def test_prompts_go_with_their_clips_and_a_plain_function_needs_a_scale(place):
    prompts = ("--videos", "clips", "--prompts", REPOSITORY / "examples" / "prompts.csv", "-o", "table.csv")
    refused = run("--teacher", "toys:length", *prompts)
    assert refused.returncode == 1
    assert "declares no scales" in refused.stderr
    assert not (place / "table.csv").exists()
    assert run("--teacher", "toys:length", *prompts, "--scale", "Overall=4:0").returncode == 0
    overall = {row["Prompt"]: float(row["Overall_MOS"]) for row in rows(place / "table.csv")}
    assert overall["a pink star spinning in front of a starry night sky"] == 4.0  # 51 letters: 1, from 4 down to 0


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(place):
    log, journal = place / "log", journal_of(place / "table.csv")
    pieces = command(*COUNTING, "--workers", 2, log="log", pause=0.15)
    process = subprocess.Popen(pieces, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 4):  # the teacher and three clips
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert workers
    assert not alive  # none is left behind
    assert not (place / "table.csv").exists()
    with journal.open("ab") as file:  # as if the kill had come within a line
        file.write(b'{"video_name": "star_cl')
    known = {row["video_name"]: row for row in map(json.loads, journal.read_text().split("\n")[1:-1])}
    before = len(asked(log))

    done = run(*COUNTING, "--workers", 2, log="log", pause=0.15)
    assert done.returncode == 0, done.stderr
    table = rows(place / "table.csv")
    assert [row["video_name"] for row in table] == sorted(path.name for path in CLIPS.glob("*.mp4"))
    for name, row in known.items():
        assert (
            float(next(r for r in table if r["video_name"] == name)["Traditional_raw"]) == row["values"]["Traditional"]
        )
    assert len(asked(log)) - before == len(table) - len(known)  # asked once more are those that it was at
    assert not {*asked(log)[before:]} & set(known)

    shutil.copy(place / "table.csv", place / "once.csv")
    again = run(*COUNTING, log="log", pause=0.15)
    assert again.returncode == 0
    assert f"{len(table)} of them from before" in again.stdout
    assert (place / "table.csv").read_bytes() == (place / "once.csv").read_bytes()
    assert len(asked(log)) - before == len(table) - len(known)

    straight = run(*COUNTING[:-1], "straight.csv", log="log", pause=0.15)
    assert straight.returncode == 0
    assert (place / "straight.csv").read_bytes() == (place / "table.csv").read_bytes()


def test_broken_clips_are_rows_with_their_errors_and_the_others_go_on(place):
    for name in ("beyond", "dies", "nan", "raises", "undeclared"):
        shutil.copy(CLIPS / "star_clean.mp4", place / "clips" / f"{name}.mp4")
    done = run(*COUNTING, "--videos", "gone.mp4", "--workers", 2, log="log")
    assert done.returncode == 1
    errors = {Path(row["video_name"]).name: row["error"] for row in rows(place / "table.csv") if row["error"]}
    assert errors == {
        "beyond.mp4": "300 is beyond the scale, worst 0 to best 255",
        "dies.mp4": "the worker died on this clip (killed by SIGKILL)",
        "gone.mp4": f"[Errno 2] No such file or directory: '{place / 'gone.mp4'}'",
        "nan.mp4": "the teacher gave nan for Temporal, expected a number or None",
        "raises.mp4": "RuntimeError: out of memory",
        "undeclared.mp4": "the teacher gave Beauty, whose scale is not declared; "
        "declared: Traditional, Alignment, Temporal",
    }
    good = [row for row in rows(place / "table.csv") if not row["error"]]
    assert len(good) == len(list(CLIPS.glob("*.mp4")))
    assert all(row["Traditional_MOS"] for row in good)
    assert "raises.mp4: RuntimeError: out of memory" in done.stderr


def test_a_death_is_seen_although_a_child_lives_on(place):
    shutil.copy(CLIPS / "star_clean.mp4", place / "clips" / "a_dies.mp4")
    done = ask(teacher="toys:Forking")
    assert list(done.errors.values()) == ["the worker died on this clip (killed by SIGKILL)"]
    assert done.judged == len(list(CLIPS.glob("*.mp4"))) + 1


def test_a_clip_that_takes_too_long_is_a_row_and_the_others_go_on(place):
    clips = [(name, CLIPS / "star_clean.mp4", name) for name in ("quick", "slow", "again")]
    done = label("toys:patience", clips, "table.csv", scales={"Overall": Linear(0, 4)}, timeout=5.0)
    assert done.errors == {("slow", "slow"): "took longer than 5 s"}
    assert [row["Overall_raw"] for row in rows(Path("table.csv"))] == ["3.0", "", "3.0"]
    with pytest.raises(LabelsError, match="a timeout above 0 s, got 1 and 0"):
        ask(timeout=0)


def test_a_worker_that_cannot_start_again_costs_no_clip_that_was_judged(place):
    shutil.copy(CLIPS / "star_clean.mp4", place / "clips" / "z_dies.mp4")  # the last one
    done = ask(teacher="toys:LoadsOnce")
    assert list(done.errors) == [("z_dies.mp4", "a heart")]
    assert len(rows(Path("table.csv"))) == done.judged == len(list(CLIPS.glob("*.mp4"))) + 1
    Path("loaded").unlink()
    shutil.copy(CLIPS / "star_clean.mp4", place / "clips" / "a_dies.mp4")  # the first one
    with pytest.raises(TeacherError, match="out of memory"):  # and nobody is left to judge the others
        ask("other.csv", teacher="toys:LoadsOnce")


def test_a_worker_ends_with_its_run_whatever_it_is_at(place):
    process = subprocess.Popen(command(*COUNTING, log="log", pause=600.0), stderr=subprocess.DEVNULL)
    while not (Path("log").exists() and asked(Path("log"))):
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=30)[1]


def ask(output: str = "table.csv", clips: str = "clips", **more) -> Labels:
    files = sorted(Path(clips).glob("*.mp4"))
    options = {"log": "log"} | more.pop("options", {})
    wanted = [(file.name, file, "a heart") for file in files]
    return label(more.pop("teacher", "toys:Counting"), wanted, output, options=options, **more)


def test_control_characters_of_a_clips_name_do_not_reach_the_terminal(place):
    shutil.copy(CLIPS / "star_clean.mp4", "clips/raises\x1b]0;owned\x07.mp4")
    done = run(*COUNTING, log="log")
    assert done.returncode == 1
    assert "raises\\x1b]0;owned\\x07.mp4: RuntimeError: out of memory" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_only_what_failed_or_changed_or_is_new_is_asked_again(place):
    shutil.copy(CLIPS / "star_clean.mp4", "clips/raises.mp4")
    first = ask()
    assert first.judged == 10
    assert list(first.errors) == [("raises.mp4", "a heart")]
    shutil.copy("clips/heart_dark.mp4", "clips/star_noisy.mp4")
    shutil.copy("clips/heart_dark.mp4", "clips/new.mp4")
    (place / "clips" / "heart_blurred.mp4").unlink()
    Path("log").unlink()
    second = ask()
    assert sorted(asked(Path("log"))) == ["new.mp4", "raises.mp4", "star_noisy.mp4"]
    assert (second.judged, second.kept) == (3, 7)
    table = rows(Path("table.csv"))
    assert len(table) == 11
    assert table[-1]["video_name"] == "heart_blurred.mp4"  # no row is lost
    raw = {row["video_name"]: row["Traditional_raw"] for row in table}
    assert raw["star_noisy.mp4"] == raw["heart_dark.mp4"] != raw["star_clean.mp4"]


def test_rows_that_were_not_asked_for_stay_and_are_told_but_for_those_of_a_replaced_file(place):
    ask()
    (place / "clips" / "heart_blurred.mp4").unlink()
    shutil.copy("clips/heart_dark.mp4", "clips/star_noisy.mp4")
    files = sorted(Path("clips").glob("*.mp4"))
    done = label("toys:Counting", [(f.name, f, "another") for f in files], "table.csv", options={"log": "log"})
    table = [(row["video_name"], row["Prompt"]) for row in rows(Path("table.csv"))]
    assert len(table) == len(files) + done.earlier
    assert ("heart_blurred.mp4", "a heart") in table
    assert ("heart_dark.mp4", "a heart") in table
    assert ("star_noisy.mp4", "a heart") not in table  # a verdict on what is not there any more
    said = run(*COUNTING, log="log")
    assert f"and {len(files) + 1} rows of earlier runs, which this one did not ask for" in said.stdout


def test_a_clip_is_asked_about_again_when_what_it_is_compared_with_has_changed(place):
    Path("original").write_text("one")
    ask(teacher="toys:Compared")
    assert ask(teacher="toys:Compared").judged == 0
    Path("original").write_text("another")
    assert ask(teacher="toys:Compared").kept == 0


@pytest.mark.parametrize("name", ["decorated", "cached", "whole"])
def test_the_fingerprint_is_of_the_teachers_own_file_whatever_is_wrapped_around_it(place, name):
    clips, scales = [("a", CLIPS / "star_clean.mp4", "a star")], {"Overall": Linear(0, 10)}
    label(f"toys:{name}", clips, "table.csv", scales=scales)
    Path("toys.py").write_text(TOYS.replace('"Overall": 3', '"Overall": 9'))
    with pytest.raises(LabelsError, match="another teacher's: source"):
        label(f"toys:{name}", clips, "table.csv", scales=scales)


def test_a_table_is_one_teachers(place):
    ask()
    before = Path("table.csv").read_bytes()
    with pytest.raises(LabelsError, match=r"another teacher's: .*'level': 0.*'level': 1"):
        ask(options={"level": 1})
    with pytest.raises(LabelsError, match="another teacher's: scales"):
        ask(scales={"Temporal": Linear(-1, 1)})
    with pytest.raises(LabelsError, match="another teacher's"):
        label("toys:length", [], "table.csv", scales={"Overall": Linear(0, 4)})
    ask(devices=["cpu:1"])  # where it runs is not who it is
    Path("toys.py").write_text(TOYS.replace("0.5", "0.6"))  # the same name, other code: workers import it anew
    with pytest.raises(LabelsError, match="another teacher's: source"):
        ask()
    assert Path("table.csv").read_bytes() == before


def test_a_table_without_its_journal_or_with_a_damaged_one_is_left_alone(place):
    ask()
    journal = journal_of(Path("table.csv"))
    lines = journal.read_text().split("\n")
    journal.write_text("\n".join([lines[0], "not json", *lines[2:]]))
    with pytest.raises(LabelsError, match=r"table\.csv\.journal: damaged"):
        ask()
    journal.unlink()
    with pytest.raises(LabelsError, match="without its journal"):
        ask()


@pytest.mark.parametrize(
    ("clips", "reason"),
    [
        ([("a", "a.mp4", "x"), ("a", "b.mp4", "x")], "1 clips are listed twice"),
        ([(" a.mp4", "a.mp4", "x")], "begins or ends with a space"),
        ([("a\udcff.mp4", "a\udcff.mp4", "x")], "name that is not UTF-8"),
        ([("a", "a.mp4", "\ud800")], r"expected a text for its prompt, got .* \(not UTF-8"),
    ],
)
def test_clips_that_no_table_can_hold_are_refused_before_any_is_judged(place, clips, reason):
    with pytest.raises(ValueError, match=reason):
        label("toys:length", clips, "table.csv", scales={"Overall": Linear(0, 4)})
    assert not journal_of(Path("table.csv")).exists()


def test_two_runs_never_write_one_table(place):
    process = subprocess.Popen(
        command(*COUNTING, log="log", pause=60.0),
        stderr=subprocess.PIPE,
        text=True,
        # As in a terminal: where the tests are a shell's background job, Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not journal_of(place / "table.csv").exists():
            assert process.poll() is None
            time.sleep(0.02)
        with pytest.raises(LabelsError, match=r"another run is writing table\.csv"):
            ask()
        process.send_signal(signal.SIGINT)  # and Ctrl-C ends one in words
        _, said = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "run it again to continue" in said
    finally:
        process.kill()
        process.wait()


def test_every_worker_has_one_teacher_and_its_device(place):
    ask(workers=3, devices=["cuda:0", "cuda:1"])
    made = [line.split() for line in Path("log").read_text().splitlines() if line.startswith("made")]
    assert sorted(device for _, _, device in made) == ["cuda:0", "cuda:0", "cuda:1"]
    assert len({process for _, process, _ in made}) == 3


def test_parquet_holds_the_same_rows(place):
    pytest.importorskip("pyarrow")
    from dover_eval.evaluation.benchmarks import read_ratings

    ask()
    ask("table.parquet")
    assert read_ratings(Path("table.parquet")) == read_ratings(Path("table.csv"))


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        ("toys", "expected a teacher as module:callable"),
        ("nowhere:x", "nowhere cannot be imported"),
        ("toys:nothing", "toys has no callable nothing"),
        ("toys:length", "options and devices go with a class, got log"),
        ("toys:Broken", "got an unexpected keyword argument 'log'; it takes"),
        ("toys:OfItsOwn", "expected a Linear or a Logistic for Temporal, got Steps"),
    ],
)
def test_a_teacher_that_cannot_be_had_says_why(place, teacher, reason):
    with pytest.raises(TeacherError, match=reason):
        ask(teacher=teacher)
    assert not Path("table.csv").exists()


def test_a_teacher_that_cannot_be_called_says_so_before_any_clip(place):
    with pytest.raises(TeacherError, match=r"toys:Silent has no __call__"):
        label("toys:Silent", [("a", CLIPS / "star_clean.mp4", "a star")], "table.csv")


def test_a_parquet_table_needs_pyarrow_before_a_clip_is_judged(place, monkeypatch):
    from typer.testing import CliRunner

    from dover_eval.cli import app

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "pyarrow" else find(name, *of))
    result = CliRunner().invoke(app, ["label", *COUNTING[:-1], "t.parquet", "--option", "log=log"])
    assert result.exit_code == 1
    assert "pyarrow is not installed: pip install 'dover-eval[parquet]'" in result.stderr
    assert not Path("log").exists()


def test_a_teacher_whose_weights_are_missing_says_so(place):
    with pytest.raises(TeacherError, match=r"toys:Broken cannot be loaded \(OSError: no weights here\)"):
        label("toys:Broken", [("a", CLIPS / "star_clean.mp4", "a star")], "table.csv", scales={"Overall": Linear(0, 1)})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "are needed"),
        (("--teacher", "a:b", "--videos", "clips", "-o", "t.csv"), "either --prompt TEXT or --prompts"),
        (("--teacher", "a:b", "--videos", "clips", "--prompt", "x", "-o", "t.xlsx"), "ends in .csv, .parquet"),
        (("--teacher", "a:b", "--videos", "clips", "--prompt", "x", "-o", "no/t.csv"), "there is no folder no"),
        (("--teacher", "a:b", "--videos", "clips", "--prompt", "x", "-o", "t.csv", "--scale", "x"), "SCORE=WORST"),
        (
            ("--teacher", "a:b", "--videos", "clips", "--prompt", "x", "-o", "t.csv", "--scale", "X=0:1"),
            "a score of Tra",
        ),
        (("--teacher", "a:b", "--videos", "clips", "--prompt", "x", "-o", "t.csv", "--option", "x"), "NAME=VALUE"),
        (
            ("--teacher", "a:b", "--videos", "clips", "--prompt", "x", "-o", "t.csv", *2 * ("--option", "x=1")),
            "--option x is given twice",
        ),
        (("--teacher", "a", "--videos", "clips", "--prompt", "x", "-o", "t.csv"), "expected module:callable"),
        (("--teacher", "a:b", "--videos", "*.mkv", "--prompt", "x", "-o", "t.csv"), "dover-eval: *.mkv: no file"),
    ],
)
def test_what_is_not_understood_is_said(place, arguments, reason):
    from typer.testing import CliRunner

    from dover_eval.cli import app

    done = CliRunner().invoke(app, ["label", *arguments])
    assert done.exit_code == 2
    assert reason in done.output


def test_a_table_that_cannot_be_written_is_a_failure_in_words(place):
    """As on a full disk: no file grows beyond 600 bytes."""
    done = subprocess.run(
        command(*COUNTING, log="log"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "dover-eval: table.csv cannot be written: File too large"
    assert "Traceback" not in done.stderr


def test_clips_of_which_the_teacher_can_tell_nothing_are_counted(place):
    shutil.copy(CLIPS / "star_clean.mp4", place / "clips" / "silent.mp4")
    done = run(*COUNTING, log="log")
    assert done.returncode == 0
    assert "0 failed, 1 that the teacher could not judge" in done.stdout


def test_the_commands_front_door_stays_light():
    code = "import sys, dover_eval.distillation; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
