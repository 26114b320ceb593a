"""Times scoring of large sets: each stage alone and all together, growth with clips, length and size, and memory.

    python -m bench.scale [--note TEXT]

Stages and growth with length and size are of the embedded model on `examples/clips/star_clean.mp4` and on clips like
it. Growth with the number of clips, and memory, are of a model so small that ten thousand clips take a minute, on
clips of 48x48 pixels: what grows there would be our own. Results go to bench/results/scale-<device>.json, and as a
table into docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.record import environment, results_file, save, usual_device
from bench.score import CLIP

DOCS = Path(__file__).parent.parent / "docs" / "scale.md"
MARKS = ("<!-- bench.scale -->", "<!-- /bench.scale -->")
PROMPT = "a pink star spinning in front of a starry night sky"
ROUNDS = 5
STAGE_CLIPS = 40
COUNTS = (100, 1_000, 10_000)
FRAMES = (32, 64, 128, 256)
SIDES = (160, 320, 640, 1280)
REPEATS = 5
LEAST_R2 = 0.5  # a slope that tells less of the spread is none


def stages() -> dict[str, Any]:
    """Clips a second of decoding alone, of the model alone, and of the run with both; rounds take turns."""
    from dover_eval import VideoScorer
    from dover_eval.config import usual_batch_size
    from dover_eval.files import Clip
    from dover_eval.scale.decoding import decode_ahead, decode_file
    from dover_eval.scale.local import score_batches, score_decoded
    from dover_eval.scale.run import Share, cpu_count, score_set

    scorer = VideoScorer.from_pretrained()
    batch_size = usual_batch_size(scorer.device.type)
    workers = max(1, cpu_count() - 1)
    clips = [Clip(str(CLIP), PROMPT)] * STAGE_CLIPS
    decoded = [decode_file(clips[0], scorer.decode)] * batch_size

    def decode() -> None:
        for _ in decode_ahead(clips, range(STAGE_CLIPS), scorer.decode, workers):
            pass

    def model() -> None:
        for first in range(0, STAGE_CLIPS, batch_size):
            score_decoded(scorer, first, clips[:batch_size], decoded)

    def run() -> None:
        def engine(batches, claim):
            claim(asdict(scorer.fingerprint), str(scorer.fingerprint))
            return score_batches(scorer, clips, batches, batch_size, workers)

        with tempfile.TemporaryDirectory() as folder:
            score_set(
                clips, Path(folder) / "r.parquet", engine,
                batch_size=batch_size, settings={}, share=Share(), resume=False,
            )  # fmt: skip

    work: dict[str, Callable[[], None]] = {"decode": decode, "model": model, "run": run}
    model()
    run()
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            rates[name].append(STAGE_CLIPS / (time.perf_counter() - start))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    return {
        "clips_a_round": STAGE_CLIPS,
        "batch_size": batch_size,
        "workers": workers,
        "clips_per_second": {name: round(rate, 2) for name, rate in middle.items()},
        "of_each_round": {name: [round(rate, 2) for rate in found] for name, found in rates.items()},
        "share_of_the_slower_stage": round(middle["run"] / min(middle["decode"], middle["model"]), 3),
    }


def growth() -> dict[str, Any]:
    """Seconds a clip to decode and to score, by the clip's frames and by its size."""
    from dover_eval import VideoScorer

    scorer = VideoScorer.from_pretrained()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cases = {"frames": [(n, 160) for n in FRAMES], "pixels": [(32, side) for side in SIDES]}
        for name, shapes in cases.items():
            rows = []
            for frames, side in shapes:
                path = Path(folder) / f"{frames}-{side}.mp4"
                write_clip(path, frames, side)
                scorer.score(path, PROMPT)
                clip = scorer.decode(path)
                rows.append({
                    "frames": frames,
                    "side": side,
                    "decode_s": seconds(lambda path=path: scorer.decode(path)),
                    "model_s": seconds(lambda clip=clip: scorer.score([clip], PROMPT, layout="TCHW")),
                })  # fmt: skip
            x = [row["frames"] if name == "frames" else row["side"] ** 2 / 1e6 for row in rows]
            found[name] = {"unit": "frame" if name == "frames" else "megapixel", "rows": rows} | {
                stage: line(x, [row[f"{stage}_s"] for row in rows]) for stage in ("decode", "model")
            }
    return found


def clips_and_memory() -> dict[str, Any]:
    """Seconds and peak memory by the number of clips, each in a process of its own; and a finished set once more."""
    rows: list[dict[str, Any]] = []
    resumed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_small(folder)
        for count in COUNTS:
            manifest = folder / f"{count}.csv"
            texts = (f"tiny{i % 4}.mp4,take {i % 100}" for i in range(count))
            manifest.write_text("\n".join(["video,Prompt", *texts]) + "\n")
            command = [sys.executable, "-m", "bench.scale", "--one", str(manifest), str(folder / "model")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            rows.append({"clips": count} | json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1])
        command = [
            sys.executable, "-m", "dover_eval", "score", str(manifest), "--resume", "--quiet", "--device", "cpu",
            "--model", str(folder / "model"), "-o", str(manifest.with_suffix(".parquet")),
        ]  # fmt: skip
        for _ in range(REPEATS):
            start = time.perf_counter()
            subprocess.run(command, check=True)
            resumed.append(round(time.perf_counter() - start, 3))
    fit = line([row["clips"] for row in rows], [row["seconds"] for row in rows])
    return {
        "rows": rows,
        "seconds": fit,
        "memory_of_10000_over_100": round(rows[-1]["peak_mb"] / rows[0]["peak_mb"], 3),
        "resume_of_a_finished_set": {"clips": COUNTS[-1], "median_s": statistics.median(resumed), "all_s": resumed},
    }


def run_one(manifest: Path, model: Path) -> None:
    """A whole command in this process, as a user types it; its seconds after the imports, and its peak memory."""
    from dover_eval.cli import app
    from dover_eval.cli.loading import load_scorer

    load_scorer(str(model), "cpu")
    with peak_memory() as peak:
        start = time.perf_counter()
        try:
            app(["score", str(manifest), "--model", str(model), "--device", "cpu", "-q", "-o",
                 str(manifest.with_suffix(".parquet"))])  # fmt: skip
        except SystemExit as error:
            if error.code:
                raise
        took = time.perf_counter() - start
    print(json.dumps({"seconds": round(took, 2), "peak_mb": round(peak[0] / 1e6, 1)}))


def prepare_small(folder: Path) -> None:
    """A checkpoint of random weights, as small as one can be, and four clips of 48x48."""
    import torch

    from dover_eval import DOVERConfig, DOVERModel
    from dover_eval.config import MINILM

    torch.manual_seed(0)
    config = DOVERConfig(
        dims=(4, 4, 8, 8), depths=(1, 1, 1, 1), head_hidden=4, token_grid=(1, 1, 1), fusion_dim=16, feature_dim=16,
        mos_dim=8, num_frames=2, frame_size=(32, 32), text_encoder_name=MINILM, text_dim=384,
    )  # fmt: skip
    DOVERModel(None, config=config).save_pretrained(folder / "model")
    for i in range(4):
        write_clip(folder / f"tiny{i}.mp4", 4, 48, seed=i)


def write_clip(path: Path, frames: int, side: int, seed: int = 0) -> None:
    """H.264 of a square that moves over a still texture."""
    import numpy as np

    from dover_eval.video.pixels import write_h264

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (16, 16, 3), dtype=np.uint8)
    ground = np.kron(coarse, np.ones((side // 16, side // 16, 1), dtype=np.uint8))
    clip = np.stack([ground] * frames)
    for i, pixels in enumerate(clip):
        left = (i * side // 32) % (side - side // 4)
        pixels[side // 3 : side // 2, left : left + side // 4] = 250
    write_h264(str(path), clip, rate=16, preset="veryfast")


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The most bytes that this process and its children held together, each shared page counted once (PSS)."""
    import psutil

    peak, over = [0.0], threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not over.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it has just ended
                    continue
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def seconds(work: Callable[[], Any]) -> float:
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return round(statistics.median(found), 5)


def line(x: list[float], y: list[float]) -> dict[str, float]:
    """The straight line through the points, and how well it tells them."""
    import numpy as np

    slope, start = np.polyfit(x, y, 1)
    rest = np.array(y) - (slope * np.array(x) + start)
    spread = np.array(y) - np.mean(y)
    return {
        "slope_s": float(f"{slope:.4g}"),
        "intercept_s": float(f"{start:.4g}"),
        "r2": round(1 - float((rest**2).sum() / max((spread**2).sum(), 1e-18)), 4),
    }


def table(report: dict[str, Any]) -> str:
    """What docs/scale.md tells, in Markdown."""
    stage, growing, clips = report["stages"], report["growth"], report["clips"]
    rates = stage["clips_per_second"]
    lines = [
        f"{report['device']}; `{report['command']}`; {report['clip']}; batches of {stage['batch_size']}, "
        f"{stage['workers']} decoding. {report['note']}".strip(),
        "",
        "| what | measured |",
        "|---|---|",
        f"| decoding alone | {rates['decode']} clips/s |",
        f"| the model alone, from frames in memory | {rates['model']} clips/s |",
        f"| a run with both, into Parquet | {rates['run']} clips/s, {stage['share_of_the_slower_stage']:.0%} of the "
        "slower |",
    ]
    for name, what, unit in (("frames", "frames", "frames"), ("pixels", "side", "pixels square")):
        rows = growing[name]["rows"]
        span = f"clips of {rows[0][what]} to {rows[-1][what]} {unit}"
        for work, title in (("decode", "decoding"), ("model", "the model")):
            lines.append(f"| {title}, {span} | {_slope(growing[name][work], growing[name]['unit'])} |")
    first, last, again = clips["rows"][0], clips["rows"][-1], clips["resume_of_a_finished_set"]
    counts = f"{first['clips']} to {last['clips']:,} clips, smallest model"
    lines += [
        f"| runs of {counts} | {_slope(clips['seconds'], 'clip')} |",
        f"| memory of all processes, {counts} | {first['peak_mb']:.0f} to {last['peak_mb']:.0f} MB |",
        f"| `--resume` on {again['clips']:,} finished rows, the whole command | {again['median_s']:.2f} s |",
    ]
    return "\n".join(lines)


def _slope(fit: dict[str, float], unit: str) -> str:
    if fit["r2"] < LEAST_R2:
        return f"no straight line, R² {fit['r2']:.3f}"
    return f"{1e3 * fit['slope_s']:.3g} ms a {unit} more, R² {fit['r2']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--note", default="", help="what else ran on the machine, say")
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # as `dover-eval score` has it
    if arguments.one:
        run_one(*arguments.one)
        return
    device = usual_device()
    report = environment(device, arguments.note, "av", "transformers", "pyarrow")
    report |= {"clip": f"{CLIP.name}, 32 frames of 160x160", "stages": stages()}
    print(report["stages"])
    report |= {"growth": growth(), "clips": clips_and_memory()}
    print(report["growth"], report["clips"])
    path = results_file(device, "scale")
    save(path, report)
    before_it, rest = DOCS.read_text().split(MARKS[0])
    DOCS.write_text(f"{before_it}{MARKS[0]}\n{table(report)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
