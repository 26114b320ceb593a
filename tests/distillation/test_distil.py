"""Distillation from end to end: clips and two teachers in, tables, a student with its card out."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dover_eval import VideoScorer
from tests.training.small import CLIPS, TINY_MODEL

REPOSITORY = Path(__file__).parents[2]
PROMPTS = REPOSITORY / "examples" / "prompts.csv"


def dover(*arguments: object) -> None:
    command = [sys.executable, "-m", "dover_eval", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=280, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_student_learns_from_two_teachers_tables(tmp_path):
    pytest.importorskip("dover_eval.training.settings")
    pytest.importorskip("pytorch_msssim")
    with (tmp_path / "originals.csv").open("w", newline="") as file:
        originals = [(path.name, f"{path.name.split('_')[0]}_clean.mp4") for path in sorted(CLIPS.glob("*.mp4"))]
        csv.writer(file).writerows([("video_name", "reference"), *originals])
    for clip in CLIPS.glob("*_clean.mp4"):
        (tmp_path / clip.name).symlink_to(clip)
    videos = ("--videos", CLIPS, "--prompts", PROMPTS)
    steady, similar = "dover_eval.teachers.temporal:FrameDifference", "dover_eval.teachers.reference:FullReference"
    options = (
        "--option",
        f"references={tmp_path / 'originals.csv'}",
        "--option",
        "metric=ssim",
        "--option",
        "frames=2",
    )
    dover("label", "--teacher", steady, *videos, "-o", tmp_path / "steady.csv", "--workers", 2)
    dover("label", "--teacher", similar, *videos, "-o", tmp_path / "similar.parquet", *options)
    with (tmp_path / "steady.csv").open(newline="") as file:
        temporal = {row["video_name"]: float(row["Temporal_MOS"]) for row in csv.DictReader(file)}
    assert temporal["heart_flickering.mp4"] < 2 < 4 < temporal["heart_blurred.mp4"]

    tables = [
        {"kind": "ratings", "table": "steady.csv", "videos": str(CLIPS)},
        {"kind": "ratings", "table": "similar.parquet", "videos": str(CLIPS)},
    ]
    settings = {
        "output": "student",
        "model": TINY_MODEL,
        "data": {"train": tables, "validation_share": 0, "workers": 0, "cache": "cache"},
        "training": {"steps": 2, "batch_size": 4, "device": "cpu"},
        "card": {"licence": "apache-2.0", "notes": "Taught by frame differences and SSIM."},
    }
    (tmp_path / "distil.yaml").write_text(yaml.safe_dump(settings))
    dover("train", tmp_path / "distil.yaml")
    card = (tmp_path / "student" / "README.md").read_text()
    assert "Taught by frame differences and SSIM." in card
    scores = VideoScorer.from_pretrained(tmp_path / "student", device="cpu").score(CLIPS / "star_clean.mp4", "a star")
    assert scores.ok
