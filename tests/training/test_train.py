"""`dover-eval train` on real clips: a checkpoint with its card, early stopping, a kill in the middle, two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from dover_eval import DOVERModel, VideoScorer
from dover_eval.cli import app
from dover_eval.hashing import file_sha256
from dover_eval.scores import weights_digest
from dover_eval.training import run
from dover_eval.training.settings import SettingsError, TrainSettings
from dover_eval.training.start import start_model
from tests.training.small import CLIPS, HEART, HEARTS, MODEL, PAIR_COLUMNS, STARS

RATINGS = {"table": "ratings.csv", "videos": str(CLIPS)}
PAIRS = {"table": "pairs.csv", "videos": str(CLIPS), "kind": "pairs"}
FEW = 20  # resamples, for speed


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(run, "RESAMPLES", FEW)


def train(path, **options):
    return run.train(TrainSettings.load(path), **options)


def test_ratings_and_preferences_become_a_checkpoint_with_its_card(write_settings, write_table, tmp_path):
    hearts = [(HEART, "heart_clean.mp4", "heart_blurred.mp4", "Traditional", "A", "")]
    write_table("heart_pairs.csv", hearts, PAIR_COLUMNS)
    write_table("stars.csv", STARS)
    path = write_settings(
        data__train=[RATINGS, PAIRS | {"table": "heart_pairs.csv"}],
        training__steps=24,
        training__evaluate_every=8,
        training__learning_rate=3e-3,
        training__report_to=["tensorboard"],
        card__licence="cc-by-4.0",
        card__notes="Hearts and *stars*.",
    )
    result = train(path)

    scorer = VideoScorer.from_pretrained(result.folder)
    scores = scorer.score([CLIPS / row[0] for row in STARS], [row[1] for row in STARS])
    assert scores.ok
    assert result.record["fingerprint"]["weights"] == scorer.fingerprint.weights
    losses = [entry["loss"] for entry in result.record["history"] if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert result.record["counts"]["training"]["ratings"]["Overall"] == 5  # one cell is empty
    assert result.record["counts"]["training"]["verdicts"] == {"Traditional": 1}
    assert result.report.aspects["Temporal"].count == 2

    card = (result.folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "cc-by-4.0"
    assert head["library_name"] == "dover-eval"
    assert "Hearts and *stars*." in card
    for table in ("ratings.csv", "heart_pairs.csv", "pairs.csv"):
        assert f"{table} |" in card
        assert file_sha256(tmp_path / table) in card
    assert "| training | ratings.csv | ratings | 6 | 0 | 0 |" in card
    assert str(result.report.aspects["Temporal"].without_ties) in card  # with its interval
    assert "learning_rate 0.003" in card
    assert "Nobody's opinion" not in card
    for told in ("README.md", "training.json"):  # they go to the hub
        assert str(tmp_path) not in (result.folder / told).read_text()
        assert str(CLIPS) not in (result.folder / told).read_text()
    assert json.loads((result.folder / "training.json").read_text())["corpus"] == result.record["corpus"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (result.folder / "checkpoints" / "runs").rglob("events.*")
    log = EventAccumulator(str(events)).Reload()
    assert {"train/loss", "train/loss_plcc", "train/loss_preference", "eval/quality"} <= set(log.Tags()["scalars"])
    assert len(log.Scalars("eval/quality")) == 3


def test_the_best_validation_is_kept_and_a_long_wait_for_a_better_one_stops(write_settings):
    """Weights that do not move cannot get better: the first validation stays the best one."""
    still = {"model__statistics": False, "training__learning_rate": 1e-12}
    path = write_settings(training__steps=40, training__patience=2, **still)
    result = train(path)
    assert result.record["steps"] == 6
    assert result.record["best_step"] == 2
    kept = sorted(path.name for path in (result.folder / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]  # the best one, and two beside it
    best = load_file(result.folder / "checkpoints" / "checkpoint-2" / "model.safetensors")
    kept = load_file(result.folder / "model.safetensors")
    assert all(torch.equal(best[f"model.{name}"], value) for name, value in kept.items())
    assert "the best of its validations, at step 2, was kept" in (result.folder / "README.md").read_text()


def test_without_validation_the_last_step_counts_and_the_card_says_so(write_settings):
    path = write_settings(
        data__validation=[],
        data__validation_share=0,
        data__workers=1,
        training__accumulate=2,
        training__checkpointing=True,
        training__precision="bf16",
    )
    result = train(path)
    assert result.report is None
    assert result.record["precision"] == "bf16"
    card = (result.folder / "README.md").read_text()
    assert "there was no validation" in card
    assert "No validation was set apart." in card
    DOVERModel.from_pretrained(result.folder)
    last = load_file(result.folder / "checkpoints" / "checkpoint-4" / "model.safetensors")
    kept = load_file(result.folder / "model.safetensors")
    assert all(torch.equal(last[f"model.{name}"], value) for name, value in kept.items())


def test_what_nobody_judged_is_said_on_the_card(write_settings, write_table):
    hearts = [(HEART, "heart_clean.mp4", "heart_blurred.mp4", "Temporal", "A", "")]
    write_table("heart_pairs.csv", hearts, PAIR_COLUMNS)
    tables = [RATINGS | {"table": "few.csv"}, PAIRS | {"table": "heart_pairs.csv"}]
    path = write_settings(data__train=tables, losses={"preference": 0})  # what no loss reads teaches nothing either
    write_table("few.csv", [row[:3] for row in HEARTS], ("video_name", "Prompt", "Traditional_MOS"))
    card = (train(path).folder / "README.md").read_text()
    assert "**Nobody's opinion taught Alignment, Aesthetic, Temporal, Overall**" in card


def test_a_validation_whose_clips_are_gone_at_the_end_leaves_a_checkpoint_and_its_card(
    write_settings, tmp_path, monkeypatch
):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, *_ in STARS:
        shutil.copy(CLIPS / name, videos)
    save = run._save

    def save_and_lose(*given):
        save(*given)
        shutil.rmtree(videos)

    monkeypatch.setattr(run, "_save", save_and_lose)
    result = train(write_settings(data__validation=[PAIRS | {"videos": str(videos)}]))
    assert "Nothing: 3 clips of the validation could not be scored again" in (result.folder / "README.md").read_text()
    assert [*result.record["validation"]["failed"]] == ["star_clean.mp4", "star_noisy.mp4", "star_shuffled.mp4"]


def test_a_loss_that_is_no_number_stops_the_run_before_a_checkpoint_has_it(write_settings, tmp_path):
    path = write_settings(
        training__learning_rate=1e30,
        training__max_grad_norm=1e30,
        training__warmup=0,
        training__log_every=100,
    )
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2: lower the learning_rate"):
        train(path)
    assert not list((tmp_path / "model" / "checkpoints").glob("checkpoint-*"))


def test_a_folder_with_something_in_it_is_not_overwritten(write_settings, tmp_path):
    path = write_settings()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="model is not empty"):
        train(path)
    with pytest.raises(SettingsError, match=r"without checkpoints/run\.json it holds no run to resume"):
        train(path, resume=True)


def test_a_run_is_resumed_with_its_own_settings_and_data_alone(write_settings, write_table):
    path = write_settings()
    before = weights_digest(load_file(train(path).folder / "model.safetensors"))
    again = train(path, resume=True)  # over already: nothing is trained, the same checkpoint is written
    assert weights_digest(load_file(again.folder / "model.safetensors")) == before
    train(write_settings(data__workers=1, training__log_every=1), resume=True)  # decide no weight
    with pytest.raises(SettingsError, match=r"other settings.*training.learning_rate was 0.001, is 0.1"):
        train(write_settings(training__learning_rate=0.1), resume=True)
    path = write_settings()
    write_table(rows=[*HEARTS[:-1], (*HEARTS[-1][:-1], 5)])
    with pytest.raises(SettingsError, match="its tables or clips have changed"):
        train(path, resume=True)


def test_a_run_is_resumed_where_its_folder_has_been_moved_to(write_settings, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "clips").symlink_to(CLIPS)
    here = {"videos": "clips"}
    write_settings("project/run.yaml", data__train=[RATINGS | here], data__validation=[PAIRS | here])
    for name in ("ratings.csv", "pairs.csv"):
        shutil.move(tmp_path / name, tmp_path / "project")
    before = weights_digest(load_file(train(tmp_path / "project" / "run.yaml").folder / "model.safetensors"))
    shutil.move(tmp_path / "project", tmp_path / "moved")
    again = train(tmp_path / "moved" / "run.yaml", resume=True)
    assert weights_digest(load_file(again.folder / "model.safetensors")) == before


def test_the_number_of_workers_decides_no_weight(write_settings):
    """Over three epochs, with stochastic depth, whose random numbers come from where a loader's seed does."""
    last = {"data__validation": [], "data__validation_share": 0, "training__steps": 6}
    paths = [write_settings(f"{n}.yaml", output=f"model{n}", data__workers=n, **last) for n in (0, 1)]
    first, second = (weights_digest(load_file(train(path).folder / "model.safetensors")) for path in paths)
    assert first == second


def test_clips_that_cannot_be_used_are_refused_or_skipped_and_told(write_settings, write_table, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, *_ in HEARTS[:4]:
        (videos / name).symlink_to(CLIPS / name)
    (videos / HEARTS[4][0]).write_bytes((CLIPS / HEARTS[4][0]).read_bytes()[:3000])
    unread = [(name, "แมวสีแดง" if name == HEARTS[3][0] else prompt, *rest) for name, prompt, *rest in HEARTS]
    write_table("unread.csv", unread)
    table = {"table": "unread.csv", "videos": str(videos)}
    done = CliRunner().invoke(app, ["train", str(write_settings(data__train=[table])), "--check"])
    assert done.exit_code == 2
    assert "1 clips are missing, 1 cannot be decoded, and 1 prompts not be read: heart_wrong_prompt.mp4" in done.stderr
    result = train(write_settings(data__train=[table | {"unusable": "skip"}]))
    assert "| training | unread.csv | ratings | 3 | 1 | 1 | 1 |" in (result.folder / "README.md").read_text()
    assert result.record["data"][0]["unreadable"] == (HEARTS[4][0],)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_goes_while_a_run_trains_ends_it_with_its_name_and_the_way_on(
    write_settings, tmp_path, monkeypatch, workers
):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, *_ in HEARTS:
        shutil.copy(CLIPS / name, videos)
    begin = run._begin

    def begin_and_lose(*given):
        begin(*given)
        (videos / "heart_dark.mp4").unlink(missing_ok=True)

    monkeypatch.setattr(run, "_begin", begin_and_lose)
    data = {"data__train": [RATINGS | {"videos": str(videos)}], "data__cache_gigabytes": 0, "data__workers": workers}
    # A cache of its own: another test's may hold the clip.
    path = write_settings(data__cache=str(tmp_path / "cache"), **data)
    done = CliRunner().invoke(app, ["train", str(path)])
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if "heart_dark" in line]
    assert line.startswith(f"dover-eval: {videos / 'heart_dark.mp4'}: ")
    assert line.endswith("--resume goes on from the last checkpoint")
    shutil.copy(CLIPS / "heart_dark.mp4", videos)
    monkeypatch.setattr(run, "_begin", begin)
    done = CliRunner().invoke(app, ["train", str(path), "--resume"])
    assert done.exit_code == 0, done.output


COMMAND_ERRORS = {
    "an unknown key": ({"training__stepz": 3}, 2, "training.stepz: unknown key"),
    "a table that is not there": ({"data__train": [RATINGS | {"table": "no.csv"}]}, 2, "no.csv: cannot be read"),
    "the same clips on both sides": ({"data__validation": [RATINGS]}, 2, "with the same bytes"),
    "nothing to judge on": (
        {"data__validation": [RATINGS | {"table": "three.csv"}]},
        2,
        "Overall: 2 rated clips, at least 5 are needed",
    ),
    "weights that are nowhere": (
        {"model": {}, "start": {"kind": "checkpoint", "weights": "./nowhere"}},
        1,
        "no folder ./nowhere",
    ),
    "weights that are none": ({"start": {"kind": "imagenet", "weights": "ratings.csv"}}, 1, "is no checkpoint"),
    "a change that its checkpoint cannot take": (
        {"model": {"windows": 3}, "start": {"kind": "checkpoint", "weights": "default"}},
        2,
        "model, in default: expected num_frames 16 in windows of equal length, got 3",
    ),
    "ratings that no loss reads": (
        {"losses": {"smooth_l1": 0, "plcc": 0, "rank": 0}},
        2,
        "losses: the training has ratings, and every loss that would read them weighs 0",
    ),
    "verdicts that no loss reads": (
        {"losses": {"preference": 0}, "data__train": [PAIRS], "data__validation": [RATINGS]},
        2,
        "losses: the training has verdicts, and every loss that would read them weighs 0",
    ),
    "a GPU that is not there": ({"training__device": "cuda"}, 2, "torch finds no GPU"),
    "a reporter that is not installed": ({"training__report_to": ["wandb"]}, 2, "pip install wandb"),
}


@pytest.mark.parametrize("what", COMMAND_ERRORS)
def test_the_command_says_what_is_wrong(write_settings, write_table, what, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changes, status, message = COMMAND_ERRORS[what]
    write_table("three.csv", STARS)
    for options in ([], ["--check"]):
        done = CliRunner().invoke(app, ["train", str(write_settings(**changes)), *options])
        assert done.exit_code == status, done.output
        assert message in " ".join(done.stderr.split())


def test_the_command_says_which_folder_it_cannot_list(write_settings, tmp_path, lock):
    lock(tmp_path / "lost+found")
    done = CliRunner().invoke(app, ["train", str(write_settings(data__train=[RATINGS | {"videos": "."}])), "--check"])
    assert done.exit_code == 2, done.output
    assert "lost+found: a folder that cannot be listed (Permission denied)" in done.stderr


def test_check_tells_the_split_and_trains_nothing(write_settings, tmp_path):
    done = CliRunner().invoke(app, ["train", str(write_settings()), "--check"])
    assert done.exit_code == 0, done.output
    assert "training: 6 rows, 5 clips, 2 prompts"  #
    assert "validation: 3 rows, 3 clips, 1 prompts; 1 verdicts of Traditional" in done.output
    assert not (tmp_path / "model").exists()


# A port of its own choice, and the host as a number: names may not resolve where tests run.
TORCHRUN = ("torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m")


def command(path, *options, launcher=()):
    """The command as a user starts it: processes of its own, one thread each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "dover_eval", "train", str(path), *options],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(write_settings, tmp_path):
    """Stochastic depth, accumulation over the end of an epoch, statistics that follow, and SIGKILL."""
    settings = {"training__steps": 14, "training__accumulate": 2, "training__evaluate_every": 3}
    whole = command(write_settings("whole.yaml", output="whole", **settings))
    finish(whole)

    path = write_settings("cut.yaml", output="cut", data__workers=1, **settings)
    process = command(path)
    state = tmp_path / "cut" / "checkpoints" / "checkpoint-6" / "trainer_state.json"
    deadline = time.monotonic() + 240
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL  # it had not ended by itself
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    (state.parents[1] / "checkpoint-9").mkdir(exist_ok=True)  # and one that it could not finish writing

    finish(command(path, "--resume"))
    for name in ("checkpoints/checkpoint-14/model.safetensors", "model.safetensors"):
        first, second = (load_file(tmp_path / run_ / name) for run_ in ("whole", "cut"))
        assert weights_digest(first) == weights_digest(second)
    records = [json.loads((tmp_path / run_ / "training.json").read_text()) for run_ in ("whole", "cut")]
    assert records[0]["steps"] == records[1]["steps"] == 14
    assert records[0]["best_step"] == records[1]["best_step"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_two_processes_train_as_one_that_accumulates(write_settings, tmp_path, sharded):
    """Over gloo on the CPU: each of two processes takes every second batch, and they agree on the gradient."""
    # No statistics: those of one process follow its batches in turn, and of two both at once. No stochastic depth: the
    # processes draw their own.
    model = MODEL | {"statistics": False, "drop_path_rate": 0.0}
    # Six rows are two batches: of an odd number DDP fills up the last step from the first rows.
    settings = {"model": model, "training__steps": 4, "training__evaluate_every": 4, "training__batch_size": 3}
    finish(command(write_settings("alone.yaml", output="alone", training__accumulate=2, **settings)))
    path = write_settings("together.yaml", output="together", training__fsdp=sharded, **settings)
    finish(command(path, launcher=TORCHRUN))
    record = json.loads((tmp_path / "together" / "training.json").read_text())
    assert record["processes"] == 2
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "together"))
    torch.manual_seed(0)
    start = start_model(TrainSettings.load(path))[0].state_dict()
    moved = sum((first[name] - value).square().sum() for name, value in start.items()).sqrt()
    apart = sum((first[name] - value).square().sum() for name, value in second.items()).sqrt()
    assert moved > 0.1
    assert apart < 0.01 * moved
