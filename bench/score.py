"""Times scoring from end to end: decode, prepare, model; the model by batch size; and the peak memory.

    python -m bench.score [--presets nano tiny dover-plus-plus] [--note TEXT] [--output FILE]

Speed does not depend on the weights, so presets without published ones run with random ones. Results go to
bench/results/score-<device>.json, or where --output says, with the versions and the command.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.record import environment, results_file, save, usual_device

CLIP = Path(__file__).parent.parent / "examples" / "clips" / "star_clean.mp4"
REPEATS = 7
BATCH_SIZES = (1, 2, 4, 8)
# The published implementation at 16x224x224 on two cores took about 0.95 s: compare dover-plus-plus at that size.
CASES = {
    "nano": {},
    "tiny": {"num_frames": 16, "frame_size": (224, 224)},
    "dover-plus-plus": {"num_frames": 16, "frame_size": (224, 224)},
}


def measure(work: Callable[[], Any]) -> dict[str, float]:
    """Median and least seconds of REPEATS runs, after two that warm up."""
    seconds = []
    for i in range(REPEATS + 2):
        start = time.perf_counter()
        work()
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    return {"median_s": round(statistics.median(seconds), 5), "min_s": round(min(seconds), 5)}


def run_case(preset: str) -> dict[str, Any]:
    """One preset in this process; its peak memory is the process's."""
    import torch

    from dover_eval import DOVERConfig, DOVERModel, VideoScorer
    from dover_eval.config import MINILM

    torch.manual_seed(0)
    config = DOVERConfig.resolve(preset).replace(text_encoder_name=MINILM, text_dim=384, **CASES[preset])
    scorer = VideoScorer(DOVERModel(None, config=config))
    clip = scorer.decode(CLIP)
    frames = scorer.prepare(clip)[None]
    prompt = ["a pink star spinning in front of a starry night sky"]

    def model(batch_size: int = 1) -> None:
        scorer.score_prepared(frames.expand(batch_size, *frames.shape[1:]), prompt * batch_size)

    result: dict[str, Any] = {
        "preset": preset,
        "frames": [config.num_frames, *config.frame_size],
        "views": config.views,
        "parameters": sum(p.numel() for p in scorer.model.parameters()),
        "decode": measure(lambda: scorer.decode(CLIP)),
        "prepare": measure(lambda: scorer.prepare(clip)),
        "model": measure(model),
        "score_file": measure(lambda: scorer.score(CLIP, prompt)),
    }
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of a clip at a time
    result["batches"] = {
        size: round(size / measure(lambda size=size: model(size))["median_s"], 2)  # type: ignore[misc]
        for size in BATCH_SIZES
    }
    result["clips_per_second"] = round(1 / result["score_file"]["median_s"], 2)
    result["peak_memory_mb"] = round(memory / 1024)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--note", default="", help="what else ran on the machine, say")
    parser.add_argument("--output", type=Path, help="by default in bench/results, named after the device")
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_case(arguments.one)))
        return
    device = usual_device()
    facts = environment(device, arguments.note, "av", "transformers")
    cases = []
    for preset in arguments.presets:  # each in a process of its own, for its peak memory
        command = [sys.executable, "-m", "bench.score", "--one", preset]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        case = json.loads(done.stdout.splitlines()[-1])
        cases.append(case)
        print(
            f"{preset:16} {case['frames']}  decode {case['decode']['median_s']:.3f} s  "
            f"prepare {case['prepare']['median_s']:.3f} s  model {case['model']['median_s']:.3f} s  "
            f"{case['clips_per_second']:.2f} clips/s  {case['peak_memory_mb']} MB; "
            f"the model by batch size, clips/s: {case['batches']}"
        )
    path = arguments.output or results_file(device, "score")
    save(path, facts | {"clip": f"{CLIP.name}, 32 frames of 160x160", "cases": cases})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
