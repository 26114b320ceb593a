"""Makes the embedded default: moves and spoils pictures, teaches `nano`, measures it on others, writes the card.

    python -m examples.train_default out/default                                      # two hours on two CPU cores
    python -m examples.train_default out/try --contents 50 --most-steps 20 --scenes 3  # the whole path

`README.md` beside this file says what to install first. The folder can go into `dover_eval/assets` as it is. Seeded:
a run on the same machine repeats up to rounding.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dover_eval import DOVERModel, VideoScorer
from dover_eval.inputs import find_videos, match_prompts, read_prompts
from dover_eval.sanity import check_scorer, load_clip
from dover_eval.scores import weights_digest
from examples.train_default import pictures
from examples.train_default.card import write_card
from examples.train_default.features import make
from examples.train_default.measure import measure, right_over_wrong
from examples.train_default.settings import TrainingSettings
from examples.train_default.train import start_from, train

logger = logging.getLogger("train_default")

VARIANTS = 3  # versions of each scene


def store_in_half(folder: Path) -> None:
    """The matrices as fp16, half the size; they are computed with in fp32, and vectors stay so."""
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}, path)


def make_default(asked: argparse.Namespace, settings: TrainingSettings) -> DOVERModel:
    """A trained `nano`; what its backbone saw stays in the folder's `seen`, so that a stopped run goes on."""
    torch.manual_seed(0)
    model = DOVERModel(None, config="nano").eval()
    if asked.start:
        logger.info("%s", start_from(model, asked.start))
    seen = make(
        model, asked.folder / "seen", asked.contents, seed=asked.seed, variants=VARIANTS, processes=asked.processes
    )
    return train(model, seen, settings)


def real_clips(scorer: VideoScorer, folder: Path, title: str) -> dict[str, Any]:
    """`dover-eval sanity`'s report of the clips in `folder`, with the prompts of its prompts.csv, and how many of the
    pairs of a clip with another's prompt have less Alignment than with its own."""
    files = find_videos([str(folder)])
    clips = [load_clip(path, scorer.decode) for path in files]
    prompts = match_prompts(files, read_prompts(folder / "prompts.csv"))
    told = {"title": title, "prompts": prompts, "pairs": right_over_wrong(scorer, clips, prompts)}
    return told | check_scorer(scorer, clips, prompts).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=Path, help="a model.safetensors to begin with, where its tensors fit")
    parser.add_argument("--contents", type=int, default=5000, help="scenes to learn from, in three versions each")
    parser.add_argument("--most-steps", type=int, default=10**6, help="of each lesson, for a quick look")
    parser.add_argument("--seed", type=int, default=11, help="of the scenes")
    parser.add_argument("--processes", type=int, default=2, help="that make and look at clips")
    parser.add_argument("--scenes", type=int, default=24, help="held-out scenes to measure with")
    parser.add_argument("--real", type=Path, help="a folder of real clips with a prompts.csv, for the card")
    parser.add_argument("--real-title", default="Real clips", help="what the card calls them")
    parser.add_argument("--measure-only", action="store_true", help="measure the checkpoint in the folder again")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    pictures.places(), pictures.things()  # what is missing is said now and not in a worker

    record = arguments.folder / "training.json"
    if not arguments.measure_only:
        settings = TrainingSettings()
        settings = replace(
            settings,
            steps=min(settings.steps, arguments.most_steps),
            quality_steps=min(settings.quality_steps, arguments.most_steps),
        )
        started = time.monotonic()
        model = make_default(arguments, settings)
        model.save_pretrained(arguments.folder)
        store_in_half(arguments.folder)
        told = {
            "contents": arguments.contents,
            "variants": VARIANTS,
            "seed": arguments.seed,
            "settings": asdict(settings),
            "start": str(arguments.start) if arguments.start else None,
            "minutes": round((time.monotonic() - started) / 60, 1),
            "device": f"{arguments.processes} processes on a CPU ({torch.backends.cpu.get_cpu_capability()})",
            "things": sum(not thing.held_out for thing in pictures.things()),
            "places": sum(not place.held_out for place in pictures.places()),
        }
        record.write_text(json.dumps(told, indent=1) + "\n")

    scorer = VideoScorer.from_pretrained(arguments.folder, device="cpu")
    figures = {"weights": weights_digest(scorer.model.state_dict())} | measure(scorer, arguments.scenes)
    if arguments.real:
        figures["real"] = real_clips(scorer, arguments.real, arguments.real_title)
    (arguments.folder / "heldout.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_card(arguments.folder, scorer, figures, json.loads(record.read_text()))


if __name__ == "__main__":
    main()
