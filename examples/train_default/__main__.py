"""Makes the embedded default: moves and spoils pictures, trains `nano`, measures it on others, writes the card.

    python -m examples.train_default out/default                       # hours on two CPU cores
    python -m examples.train_default out/default --steps 20 --scenes 4  # a look at the whole path

`README.md` beside this file says what to install first. The folder can go into `dover_eval/assets` as it is. Seeded:
a run on the same machine repeats up to rounding.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dover_eval import DOVERModel, VideoScorer
from dover_eval.cli.score import find_videos, match_prompts, read_prompts
from dover_eval.sanity import check_scorer, load_clip
from examples.train_default import pictures
from examples.train_default.card import write_card
from examples.train_default.measure import measure
from examples.train_default.train import TrainingSettings, start_from, train

logger = logging.getLogger("train_default")


def store_in_half(folder: Path) -> None:
    """The matrices as fp16, half the size; they are computed with in fp32, and vectors stay so."""
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}, path)


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} thread(s) of a CPU ({torch.backends.cpu.get_cpu_capability()})"


def real_clips(scorer: VideoScorer, folder: Path, prompts: Path, title: str) -> dict[str, Any]:
    """`dover-eval sanity`'s report of the clips in `folder`."""
    files = find_videos([str(folder)])
    clips = [load_clip(path, scorer.decode) for path in files]
    return {"title": title} | check_scorer(scorer, clips, match_prompts(files, read_prompts(prompts))).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=Path, help="a model.safetensors to begin with, where its tensors fit")
    parser.add_argument("--steps", type=int, default=TrainingSettings.steps)
    parser.add_argument("--workers", type=int, default=TrainingSettings.workers)
    parser.add_argument("--seed", type=int, default=TrainingSettings.seed)
    parser.add_argument("--scenes", type=int, default=24, help="held-out scenes to measure with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--real", type=Path, help="a folder of real clips with a prompts.csv, for the card")
    parser.add_argument("--real-title", default="Real clips", help="what the card calls them")
    parser.add_argument("--measure-only", action="store_true", help="measure the checkpoint in the folder again")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    pictures.places(), pictures.things()  # what is missing is said now and not in a worker

    record = arguments.folder / "training.json"
    if not arguments.measure_only:
        settings = TrainingSettings(steps=arguments.steps, workers=arguments.workers, seed=arguments.seed)
        torch.manual_seed(arguments.seed)
        model = DOVERModel(None, config="nano", device="cuda" if torch.cuda.is_available() else "cpu")
        if arguments.start:
            logger.info("%s", start_from(model, arguments.start))
        started = time.monotonic()
        model = train(model, settings)
        model.save_pretrained(arguments.folder)
        store_in_half(arguments.folder)
        told = asdict(settings) | {
            "minutes": round((time.monotonic() - started) / 60, 1),
            "start": str(arguments.start) if arguments.start else None,
            "device": device_name(),
            "things": sum(not thing.held_out for thing in pictures.things()),
            "places": sum(not place.held_out for place in pictures.places()),
        }
        record.write_text(json.dumps(told, indent=1) + "\n")

    scorer = VideoScorer.from_pretrained(arguments.folder)
    figures = {"weights": scorer.fingerprint.weights} | measure(scorer, arguments.scenes)
    if arguments.real:
        figures["real"] = real_clips(scorer, arguments.real, arguments.real / "prompts.csv", arguments.real_title)
    (arguments.folder / "heldout.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_card(arguments.folder, scorer, figures, json.loads(record.read_text()))


if __name__ == "__main__":
    main()
