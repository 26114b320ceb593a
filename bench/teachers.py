"""How well the teachers that run here follow known defects, within real clips.

    python -m bench.teachers CLIP... --output bench/results/teachers.json

For every clip, defect and strength: its first frames are spoiled, written as H.264 at a low rate factor and judged. The
figure is Spearman's correlation of the verdict with the defect's absence.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bench.record import environment, results_file, save
from dover_eval.distortions import distort
from dover_eval.teachers.reference import FullReference
from dover_eval.teachers.temporal import FrameDifference, OpticalFlow
from dover_eval.video.decode import all_frames
from dover_eval.video.pixels import write_h264

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TEMPORAL = ("flicker", "drop", "shuffle", "jitter", "freeze")
SPATIAL = ("blur", "noise", "compress")
FRAMES, RATE = 24, 25
X264 = {"crf": "12", "preset": "ultrafast"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="by default in bench/results")
    arguments = parser.parse_args()
    report = environment("cpu", "", "av") | {
        "frames": FRAMES,
        "strengths": STRENGTHS,
        "clips": {clip.name: judge(clip) for clip in arguments.clips},
    }
    save(arguments.output or results_file("cpu", "teachers"), report)
    for name, found in report["clips"].items():
        for teacher, defects in found.items():
            print(name, teacher, {defect: entry["correlation"] for defect, entry in defects.items()})


def judge(clip: Path) -> dict[str, dict[str, Any]]:
    """By teacher and defect: the verdicts by strength, and their correlation with the defect's absence."""
    frames = np.stack([f.permute(1, 2, 0).numpy() for f, _ in itertools.islice(all_frames(clip), FRAMES)])
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_h264(str(place / "pristine.mp4"), frames, rate=RATE, **X264)
        with (place / "references.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("video_name", "reference"), ("spoiled.mp4", "pristine.mp4")])
        similarity = FullReference(str(place / "references.csv"), metric="ssim", frames=4)
        steady = {"FrameDifference": FrameDifference(), "OpticalFlow": OpticalFlow()}
        for defect in (*TEMPORAL, *SPATIAL):
            teachers = steady if defect in TEMPORAL else {"FullReference ssim": similarity}
            verdicts: dict[str, list[float]] = {name: [] for name in teachers}
            for strength in STRENGTHS:
                spoiled = distort(frames, defect, strength, np.random.default_rng(0))
                write_h264(str(place / "spoiled.mp4"), spoiled, rate=RATE, **X264)
                for name, teacher in teachers.items():
                    (value,) = teacher(str(place / "spoiled.mp4"), "").values()
                    verdicts[name].append(round(float(value), 4))
            for name, values in verdicts.items():
                correlation = spearmanr(values, [-strength for strength in STRENGTHS]).statistic
                found.setdefault(name, {})[defect] = {"verdicts": values, "correlation": round(float(correlation), 2)}
    return found


if __name__ == "__main__":
    main()
