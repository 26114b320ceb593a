"""Makes the embedded default: draws clips, spoils them, trains `nano`, measures it on other scenes, writes the card.

    python examples/train_default.py out/default            # about an hour on two CPU cores
    python examples/train_default.py out/default --steps 20  # a look at the whole path

The folder can go into `dover_eval/assets` as it is. Seeded: a run on the same machine repeats up to rounding.
With glibc, MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 saves a fifth of the time.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dover_eval import DOVERModel, VideoScorer
from dover_eval.training.heldout import HeldOutReport, evaluate_held_out
from dover_eval.training.trainer import TrainingSettings, train

CARD = """---
license: apache-2.0
library_name: dover-eval
tags: [video-quality-assessment, video]
---
# dover-eval nano, the embedded default

{parameters:.1f} M parameters, {frames} frames of {height}x{width}; text encoder {encoder}
(sha256 `{sha256}`), which is not part of this checkpoint.

## What it was trained on
Clips that a program drew: {clips} short ones of moving shapes over textures, each with captions that are true by
construction, spoiled in known ways: blur, noise, H.264 at a constant rate factor of 28 to 51, down- and upscaling
(Traditional); flicker, dropped and shuffled frames, jitter (Temporal); under- and overexposure, washed-out colours,
colour casts (Aesthetic). Captions of other scenes, and the own one with a single word wrong, teach Alignment. How
much each aspect weighs in Overall was taught by phrases such as ", in sharp detail" or ", smooth motion".
`examples/train_default.py` in the repository makes it again: {settings}.

**No human rated anything.** The numbers are on the 1-5 scale because they were taught so: {best} for an untouched clip
and its own caption, {worst} for the worst. They are not the opinions of people.

## What it is good for, and what not
It ranks versions of one clip: sharper, steadier, better exposed, better fitting. Read differences, not levels.
It knows ten colours, eight shapes, eight motions and ten backgrounds; Alignment on real footage and free prompts is
outside of what it saw. It learned from clips of a second: in real ones of many seconds the steps between its {frames}
frames are larger, and Temporal comes out low for that alone. Run
`dover-eval sanity` on clips of your own. Aesthetic means exposure and colour, not beauty. Do not use it to compare
models in a paper, to filter people's videos, or as the only reward of a training run.

## Measured on scenes that training never saw
{contents} drawn scenes, of combinations of colour, shape and background that training left out, seed {seed}.
*Rank*: mean Spearman correlation within a scene between the defect's own score and its absence, over five strengths.
*Told apart*: the untouched clip scores higher than the one at half strength. *Moved*: points that the own score falls
from none to full strength, and in absolute value the two other quality scores with it.

| defect | score | rank | told apart | moved | others moved |
|---|---|---|---|---|---|
{table}

The right caption beats that of another scene in {right:.0%} of {pairs} pairs, and one with a single word wrong in
{near:.0%} of {contents}.
"""


def write_card(
    folder: Path, scorer: VideoScorer, report: HeldOutReport, settings: TrainingSettings, contents: int
) -> None:
    from dover_eval.training.data import BEST, WORST

    rows = [
        f"| {name} | {d.aspect} | {d.rank:.2f} | {d.told_apart:.0%} | {d.moved:.2f} | {d.others_moved:.2f} |"
        for name, d in report.defects.items()
    ]
    height, width = scorer.config.frame_size
    card = CARD.format(
        parameters=sum(p.numel() for p in scorer.model.parameters()) / 1e6,
        frames=scorer.config.num_frames,
        height=height,
        width=width,
        encoder=scorer.model.text_encoder.name,
        sha256=scorer.model.text_encoder.sha256,
        clips=f"{settings.steps * settings.contents * 2:,}",
        settings=f"{settings.steps} steps, seed {settings.seed}",
        best=BEST,
        worst=WORST,
        contents=contents,
        seed=report.seed,
        table="\n".join(rows),
        right=report.right_beats_wrong,
        pairs=report.caption_pairs,
        near=report.right_beats_near_miss,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def store_in_half(folder: Path) -> None:
    """The matrices as fp16, half the size; they are computed with in fp32, and vectors stay so."""
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=TrainingSettings.steps)
    parser.add_argument("--workers", type=int, default=TrainingSettings.workers)
    parser.add_argument("--seed", type=int, default=TrainingSettings.seed)
    parser.add_argument("--contents", type=int, default=40, help="held-out scenes to measure with")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    settings = TrainingSettings(steps=arguments.steps, workers=arguments.workers, seed=arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    model = train(DOVERModel(None, config="nano", device=device), settings)
    minutes = (time.monotonic() - started) / 60
    model.save_pretrained(arguments.folder)
    store_in_half(arguments.folder)

    scorer = VideoScorer.from_pretrained(arguments.folder)
    report = evaluate_held_out(scorer, arguments.contents)
    write_card(arguments.folder, scorer, report, settings, arguments.contents)
    measured = {"minutes": round(minutes, 1), "weights": scorer.fingerprint.weights} | report.to_dict()
    (arguments.folder / "heldout.json").write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
