"""Draws the example clips: one scene untouched, then spoiled in known ways, and once under a caption that is wrong.

    python examples/make_clips.py examples

The scenes are of the combinations that the embedded model's training never drew.
"""

import csv
import sys
from pathlib import Path

import av
import numpy as np

from dover_eval.distortions import distort
from dover_eval.training.synthetic import Scene, draw, is_held_out

RATE = 16
HEART = Scene("yellow", "heart", "right", "stripes", "one")
STAR = Scene("pink", "star", "spinning", "night", "one")
HEART_TEXT = "a yellow heart moving right over a striped wall"
STAR_TEXT = "a pink star spinning in front of a starry night sky"
# File name, scene, prompt, defect and its strength.
CLIPS = (
    ("heart_clean.mp4", HEART, HEART_TEXT, None, 0.0),
    ("heart_blurred.mp4", HEART, HEART_TEXT, "blur", 0.6),
    ("heart_compressed.mp4", HEART, HEART_TEXT, "compress", 0.85),
    ("heart_flickering.mp4", HEART, HEART_TEXT, "flicker", 0.7),
    ("heart_dark.mp4", HEART, HEART_TEXT, "darken", 0.7),
    ("heart_wrong_prompt.mp4", HEART, "three purple triangles falling in front of the sea", None, 0.0),
    ("star_clean.mp4", STAR, STAR_TEXT, None, 0.0),
    ("star_noisy.mp4", STAR, STAR_TEXT, "noise", 0.5),
    ("star_shuffled.mp4", STAR, STAR_TEXT, "shuffle", 0.9),
)


def main(folder: Path) -> None:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for name, scene, _, defect, strength in CLIPS:
        if not is_held_out(scene):
            raise SystemExit(f"{scene} is a scene of the training set")
        frames = draw(scene, np.random.default_rng(7), num_frames=2 * RATE, size=160)
        if defect:
            frames = distort(frames, defect, strength, np.random.default_rng(1))
        with av.open(str(folder / "clips" / name), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "slow"})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    with (folder / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video_name", "Prompt"])
        writer.writerows([name, prompt] for name, _, prompt, _, _ in CLIPS)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples"))
