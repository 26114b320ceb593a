"""The checkpoint that the package carries: what its card says of it is so."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dover_eval import VideoScorer
from dover_eval.results import read_results
from dover_eval.sanity import drawn_clips
from dover_eval.scores import weights_digest
from examples.train_default.measure import defects

ASSETS = Path(str(files("dover_eval"))) / "assets"
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def scorer() -> VideoScorer:
    return VideoScorer.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def measured() -> dict:
    return json.loads((ASSETS / "heldout.json").read_text())


def test_it_is_small(scorer):
    assert sum(p.numel() for p in scorer.model.parameters()) <= 8e6
    assert (ASSETS / "model.safetensors").stat().st_size <= 16e6


def test_the_card_says_what_was_measured(measured):
    card = (ASSETS / "README.md").read_text(encoding="utf-8")
    for name, result in measured["defects"].items():
        rank, moved, others = (
            "{mean:.2f} ({low:.2f} to {high:.2f})".format(**result[key]) for key in ("rank", "moved", "others_moved")
        )
        assert f"| {name} | {result['aspect']} | {rank} | {moved} | {others} |" in card
    for name, told in measured["captions"].items():
        assert f"| {name} | {told['mean']:.0%} (" in card
    assert "No human rated anything" in card
    assert "license: apache-2.0" in card


def test_the_figures_are_those_of_these_weights(scorer, measured):
    assert weights_digest(scorer.model.state_dict()) == measured["weights"]


def test_the_table_of_the_readme_is_what_it_scores(scorer, monkeypatch):
    """In digits that no machine's rounding reaches; in the fingerprint too, of which two versions are a part."""
    monkeypatch.chdir(EXAMPLES.parent)
    table = read_results(EXAMPLES / "scores.csv")
    found = scorer.score(list(table.videos), table.prompts)
    assert np.abs(found.values.numpy() - table.scores).max() < 1e-3
    if (torch.__version__, av.__version__) == ("2.13.0+cpu", "18.1.0"):
        assert table.fingerprint == found.fingerprint.digest


@pytest.mark.slow
def test_defects_and_wrong_captions_are_seen_on_scenes_never_trained_on(scorer):
    """Drawn ones, and few; the bounds leave room for that."""
    clips, captions = drawn_clips(8, scorer.config.num_frames, seed=777)
    chosen = ("blur", "noise", "compress", "flicker", "jitter", "darken")
    for name, result in defects(scorer, clips[:4], captions[:4], 777, names=chosen).items():
        assert result.rank.mean > 0.6, name
        assert result.moved.mean > 0.2, name
    align = lambda texts: scorer.score(clips, texts, layout="THWC").values[:, 1]
    assert (align(captions) > align(captions[1:] + captions[:1])).float().mean() > 0.8


def test_the_example_clips_are_told_apart(scorer):
    with (EXAMPLES / "prompts.csv").open(newline="") as file:
        prompts = {row["video_name"]: row["Prompt"] for row in csv.DictReader(file)}
    scores = scorer.score([EXAMPLES / "clips" / name for name in prompts], list(prompts.values()))
    assert scores.ok
    rows = {Path(row["video_name"]).stem: row for row in scores.to_dicts()}
    clean = rows["heart_clean"]
    assert rows["heart_blurred"]["Traditional"] < clean["Traditional"]
    assert rows["heart_compressed"]["Traditional"] < clean["Traditional"]
    assert rows["heart_flickering"]["Temporal"] < clean["Temporal"] - 0.5
    assert rows["heart_dark"]["Aesthetic"] < clean["Aesthetic"] - 0.5
    assert rows["heart_wrong_prompt"]["Alignment"] < clean["Alignment"] - 1
    assert rows["star_noisy"]["Traditional"] < rows["star_clean"]["Traditional"]
    assert rows["star_shuffled"]["Temporal"] < rows["star_clean"]["Temporal"]


def test_a_wrong_prompt_moves_alignment_and_overall_alone(scorer):
    clip = EXAMPLES / "clips" / "heart_clean.mp4"
    right, wrong = scorer.score(
        [clip, clip], ["a yellow heart moving right over a striped wall", "three purple triangles falling, the sea"]
    ).values
    moved = (right - wrong).abs()
    assert right[1] - wrong[1] > 1
    assert moved[[0, 2, 3]].max() < 1e-5
    assert right[4] > wrong[4]


def test_what_a_prompt_stresses_weighs_more(scorer):
    plain, detail, motion, beauty = scorer.model.get_quality_weights(
        [
            "a dog in a park",
            "a dog in a park, in sharp detail",
            "a dog in a park, smooth motion",
            "a dog, beautiful light",
        ]
    )
    assert detail[0] > plain[0] + 0.05
    assert motion[3] > plain[3] + 0.05
    assert beauty[2] > plain[2] + 0.05


def test_example_clips_score_from_python_deterministically(scorer, example_clip):
    first, second = (scorer.score(example_clip, "a person", batch_size=1) for _ in range(2))
    assert first.ok
    assert torch.equal(first.values, second.values)
    assert ((first.values >= 1) & (first.values <= 5)).all()
