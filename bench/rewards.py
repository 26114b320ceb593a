"""Rewards a second: in process, through the queue from eight threads, and over HTTP; and memory with gradients.

    python -m bench.rewards                      # nano with random weights, on a CPU, 16x224x224 uint8 clips
    python -m bench.rewards --model FOLDER --device cuda

Every way is checked against the scorer before it is timed, and all are timed in turns on the same clips, so that a
machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import uvicorn
from dover_integrations.rewards import DoverReward
from dover_integrations.server import DoverRewardClient, ServerSettings, create_app
from torch import Tensor

from bench.record import environment, results_file, save, usual_device
from dover_eval import DOVERModel
from dover_eval.config import PRESETS

THREADS = 8
FRAMES, HEIGHT, WIDTH = 16, 224, 224
SETTINGS: dict[str, Any] = {"layout": "BTCHW", "value_range": (0, 255)}


def make_reward(model: str, device: str, batch_size: int) -> DoverReward:
    """The reward of a checkpoint, or of a preset with random weights, which take as long."""
    torch.manual_seed(0)
    source = DOVERModel(None, config=model) if model in PRESETS else model
    return DoverReward(source, device=device, batch_size=batch_size, **SETTINGS)


def ways_of_asking(
    reward: DoverReward, client: DoverRewardClient, clips: Tensor, prompts: list[str], batch_size: int
) -> dict[str, Callable[[], Tensor]]:
    """Each scores all clips and gives (B,5)."""
    scorer = reward.scorer

    def one_at_a_time(ask: Callable[[Tensor, list[str]], Tensor]) -> Tensor:
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.cat(list(pool.map(lambda i: ask(clips[i : i + 1], prompts[i : i + 1]), range(len(clips)))))

    return {
        "scorer, batched": lambda: scorer.score(clips, prompts, layout="BTCHW", batch_size=batch_size).values,
        "reward, one call": lambda: reward.scores(clips, prompts),
        f"reward, {THREADS} threads of single clips": lambda: one_at_a_time(reward.scores),
        "server, one call": lambda: client.scores(clips, prompts),
        f"server, {THREADS} threads of single clips": lambda: one_at_a_time(client.scores),
    }


def measure(ways: dict[str, Callable[[], Tensor]], clips: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Clips a second of each way, the median over rounds; and its share of the first one, a median of ratios."""
    expected = next(iter(ways.values()))()
    for name, ask in ways.items():
        torch.testing.assert_close(ask(), expected, atol=1e-3, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(ways))
    return {
        name: {
            "clips_per_second": clips / statistics.median(taken),
            "share_of_batched": statistics.median(a / b for a, b in zip(seconds[first], taken, strict=True)),
            "seconds": taken,
        }
        for name, taken in seconds.items()
    }


def measure_memory(model: str, device: str) -> dict[str, float]:
    """Peak MiB above the loaded model for one clip: without gradients, with them, and with checkpointing.

    Each in a process of its own: a process's peak never falls.
    """
    found = {}
    for mode in ("no gradient", "gradient, all activations kept", "gradient, checkpointed"):
        arguments = ["--memory-of", mode, "--device", device, "--model", model]
        done = subprocess.run(
            [sys.executable, "-m", "bench.rewards", *arguments], capture_output=True, text=True, check=True
        )
        found[mode] = float(done.stdout.splitlines()[-1])
    return found


def peak_of(mode: str, model: str, device: str) -> float:
    """Peak MiB of one clip above what the loaded model takes."""
    reward = make_reward(model, device, batch_size=1)
    reward = DoverReward(reward.scorer, layout="BTCHW", value_range=(0, 1), batch_size=1)
    clip = torch.rand(1, FRAMES, 3, HEIGHT, WIDTH, device=device)
    reward(clip[:, :1, :, :32, :32], "a boat")  # loads what is loaded once
    on_gpu = torch.device(device).type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else start_of_peak()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    if mode == "no gradient":
        reward(clip, "a boat")
    else:
        checkpoint_frames = {"checkpoint_frames": None} if "kept" in mode else {}
        reward.differentiable(clip.requires_grad_(), "a boat", **checkpoint_frames).sum().backward()
    return ((torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")) - before) / 2**20


def start_of_peak() -> int:
    """Bytes in memory now, from where the kernel is told to count the peak anew. Linux alone can."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def start_server(reward: DoverReward) -> tuple[uvicorn.Server, str]:
    """The server around the same model, in a thread, on a free port of loopback."""
    app = create_app(reward, ServerSettings())
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano", help="a checkpoint, or a preset, which gets random weights")
    parser.add_argument("--device", default=usual_device())
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="what else ran on the machine, say")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_of(arguments.memory_of, arguments.model, arguments.device))
        return
    device = torch.device(arguments.device).type
    facts = environment(device, arguments.note, "transformers")
    reward = make_reward(arguments.model, arguments.device, arguments.batch_size)
    clips = torch.randint(0, 256, (arguments.clips, FRAMES, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    prompts = [f"clip number {i}" for i in range(arguments.clips)]
    server, url = start_server(reward)
    client = DoverRewardClient(url, **SETTINGS)
    ways = ways_of_asking(reward, client, clips, prompts, arguments.batch_size)
    rates = measure(ways, arguments.clips, arguments.rounds)
    client.close()
    server.should_exit = True
    for name, figures in rates.items():
        print(f"{name:40} {figures['clips_per_second']:8.2f} clips/s  {figures['share_of_batched']:7.1%} of batched")
    memory = measure_memory(arguments.model, arguments.device)
    for mode, mib in memory.items():
        print(f"{mode:40} {mib:8.0f} MiB above the loaded model, one clip")
    document = facts | {
        "model": arguments.model + (", random weights" if arguments.model in PRESETS else ""),
        "clip": [FRAMES, 3, HEIGHT, WIDTH],
        "clips": arguments.clips,
        "batch_size": arguments.batch_size,
        "rates": rates,
        "peak_mib_above_model": memory,
    }
    output = arguments.output or results_file(device, "rewards")
    save(output, document)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
