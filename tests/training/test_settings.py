"""The YAML file of a run: everything known, everything of its type, and errors that say where."""

import pytest
import yaml

from dover_eval import DOVERConfig
from dover_eval.config import PRESETS
from dover_eval.training.parse import parse, read_yaml
from dover_eval.training.settings import SettingsError, TrainSettings

SMALLEST = {
    "output": "model",
    "data": {"train": [{"table": "ratings.csv", "videos": "clips"}]},
    "training": {"epochs": 3},
    "card": {"licence": "apache-2.0"},
}


def changed(key, value):
    """`SMALLEST` with one key, dotted, given another value."""
    settings = yaml.safe_load(yaml.safe_dump(SMALLEST))
    *parents, last = key.split(".")
    place = settings
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return settings


def test_the_smallest_file_is_read_and_its_paths_are_its_folders(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(SMALLEST))
    settings = TrainSettings.load(path)
    assert settings.output == str(tmp_path / "model")
    assert settings.data.train[0].table == str(tmp_path / "ratings.csv")
    assert settings.start.kind == "fresh"
    assert settings.model_config() == DOVERConfig()


def test_numbers_without_a_point_are_numbers(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(SMALLEST).replace("epochs: 3", "epochs: 3\n  learning_rate: 1e-3"))
    assert TrainSettings.load(path).training.learning_rate == 1e-3


def test_a_model_is_a_preset_with_changes():
    settings = TrainSettings.parse(changed("model", {"preset": "nano", "num_frames": 8}))
    assert settings.model_config() == PRESETS["nano"].replace(num_frames=8)


def test_changes_to_a_checkpoint_are_held_against_its_own_configuration():
    given = changed("model", {"windows": 3, "frame_size": [16, 24]})
    given["start"] = {"kind": "checkpoint", "weights": "mine"}
    settings = TrainSettings.parse(given)
    checkpoint = DOVERConfig(num_frames=12, stem_kernel=(1, 2, 2))
    assert settings.model_config(checkpoint) == checkpoint.replace(windows=3, frame_size=(16, 24))
    with pytest.raises(SettingsError, match="model, in mine: expected num_frames 8 in windows of equal length, got 3"):
        settings.model_config(checkpoint.replace(num_frames=8))
    with pytest.raises(SettingsError, match=r"model\.window: unknown key"):
        TrainSettings.parse(given | {"model": {"window": 3}})


def test_published_weights_bring_the_stem_that_the_model_is_held_against():
    given = changed("model", {"num_frames": 1}) | {"start": {"kind": "dover", "weights": "a.pth"}}
    with pytest.raises(SettingsError, match="num_frames 1 in 1 windows is shorter than the stem 2"):
        TrainSettings.parse(given | {"card": {"licence": "other", "licence_name": "s-lab-1.0"}})


REFUSED = {
    "training.lerning_rate": (1e-3, "training.lerning_rate: unknown key; expected some of epochs, steps"),
    "trainig": ({}, "trainig: unknown key; expected some of output, data"),
    "data.train": ([{"table": "a.csv"}], r"data.train\[0\].videos: missing"),
    "data.workers": ("two", "data.workers: expected a whole number, got 'two'"),
    "data.validation_share": (1.5, "data: validation_share: expected 0 to 0.9, got 1.5"),
    "training.batch_size": (0, "training: batch_size: expected at least 1, got 0"),
    "training.checkpointing": ("maybe", "training.checkpointing: expected true or false"),
    "training.report_to": (["mlflow"], r"training.report_to\[0\]: expected one of tensorboard, wandb, trackio"),
    "training.seed": (-1, "training: seed: expected 0 to 4294967295, got -1"),
    "training.epochs": (float("inf"), "training: epochs: expected at least 1e-12, got inf"),
    "data.cache_gigabytes": (float("inf"), "data: cache_gigabytes: expected at least 0, got inf"),
    "model.frame_size": ([8, 224], r"model: expected a frame_size \(height, width\) of at least \(32, 32\)"),
    "training.steps": (5, "training: expected either epochs or steps"),
    "losses.preference_model": ("elo", "losses.preference_model: expected one of ties, plain, got 'elo'"),
    "start.kind": ("imagenet", "start: kind imagenet takes weights"),
    "start.weights": ("a.pth", "start: kind fresh takes no weights"),
    "model.dims": ([1, 2], "model: expected four dims"),
    "model.depths": ([3, 3, -9, 3], "model: expected depths of at least 1, got"),
    "model.mos_dim": (0, "model: expected mos_dim of at least 1, got 0"),
    "model.std": ([0.2, 0.0, 0.2], "model: expected a finite mean, std and layer_scale_init, and std above 0"),
    "model.pretset": ("nano", "model.pretset: unknown key; expected some of preset, dims"),
    "model.preset": ("huge", "model.preset: expected one of tiny, dover-plus-plus, nano"),
    "card.licence": (None, "card.licence: expected a text, got None"),
    "card": ({"licence": "other"}, 'card: licence "other" needs a licence_name'),
    "losses": (
        {"smooth_l1": 0, "plcc": 0, "rank": 0, "preference": 0},
        "losses: every loss weighs 0",
    ),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_wrong_is_refused_with_the_file_and_the_key(tmp_path, key):
    value, message = REFUSED[key]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(changed(key, value)))
    with pytest.raises(SettingsError, match=message) as caught:
        TrainSettings.load(path)
    assert str(caught.value).startswith(str(path))


def test_tables_of_an_unknown_kind_or_range_are_refused():
    table = {"table": "a.csv", "videos": "clips"}
    with pytest.raises(SettingsError, match=r"data.train\[0\]: kind: expected one of ratings, pairs, .* got 'votes'"):
        TrainSettings.parse(changed("data.train", [table | {"kind": "votes"}]))
    with pytest.raises(SettingsError, match="two rising numbers"):
        TrainSettings.parse(changed("data.train", [table | {"rating_range": [5, 1]}]))


def test_patience_needs_something_to_judge_on():
    given = changed("training.patience", 3)
    assert TrainSettings.parse(given).training.patience == 3
    given["data"] = given["data"] | {"validation_share": 0}
    with pytest.raises(SettingsError, match=r"training\.patience counts validations"):
        TrainSettings.parse(given)


def test_published_dover_weights_keep_their_licence():
    start = {"kind": "dover", "weights": "DOVER_plus_plus.pth"}
    with pytest.raises(SettingsError, match="stays under their S-Lab License"):
        TrainSettings.parse(changed("start", start))
    other = changed("start", start) | {"card": {"licence": "other", "licence_name": "s-lab-1.0"}}
    assert TrainSettings.parse(other).start.kind == "dover"


NO_MAPPINGS = ("output: [", "output: a\noutput: b\n", "- a\n- b\n", "? [a, b]\n: c\n", "")
NO_VALUES = ("2001-99-99", "9" * 5000, "!!int zz", "!!bool q", "[" * 5000)


@pytest.mark.parametrize("text", [*NO_MAPPINGS, *(f"output: {value}" for value in NO_VALUES)])
def test_what_is_no_mapping_or_no_value_is_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=str(path)):
        TrainSettings.load(path)


def test_a_value_of_many_aliases_is_shown_in_part(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "output:\n- &a0 [x]\n" + "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 6))
    )
    with pytest.raises(SettingsError, match="output: expected a text, got") as caught:
        parse(str, read_yaml(path)["output"], "output", str(path))
    assert len(str(caught.value)) < 400 + len(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read"):
        TrainSettings.load(tmp_path / "none.yaml")
