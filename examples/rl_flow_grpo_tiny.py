"""Does training on the reward raise it? A tiny Wan video transformer with random weights, on a CPU, in minutes.

    python examples/rl_flow_grpo_tiny.py --seeds 3 --output bench/results/rl_flow_grpo_tiny.json

(a) GRPO: clips are sampled with noise at every step, so that each step has a probability, and steps towards clips that
    beat others of their prompt are made more probable. Flow-GRPO: Liu et al. 2025, arXiv:2505.05470, eq. 9 and 12.
(b) Direct backpropagation of the reward through the VAE and the last sampling steps. DRaFT: Clark et al. 2024,
    arXiv:2309.17400.

Both are measured on the same held-out noise, before and after, without noise in sampling. The model has seen no video
and makes none worth looking at: what is shown is that the loop works, gradient and all.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from dover_integrations.rewards import DoverReward, RewardMonitor, clip_advantages, group_advantages
from torch import Tensor

from dover_eval import DOVERModel

PROMPTS = ("a red bicycle in the rain", "two dogs run on a beach", "a boat at night")
CHANNELS = 4


@dataclass(frozen=True)
class Settings:
    """group: clips of a prompt in a GRPO step. noise: of stochastic sampling. last_steps: with gradient, in (b).

    latents: time, height and width; 2x4x4 decodes to 5 frames of 32x32.
    """

    latents: tuple[int, int, int] = (2, 4, 4)
    sampling_steps: int = 5
    grpo_steps: int = 120
    backprop_steps: int = 25
    group: int = 8
    noise: float = 0.7
    grpo_lr: float = 5e-3
    backprop_lr: float = 5e-3
    clip_range: float = 0.2
    last_steps: int = 2
    held_out: int = 15


class TinyWan:
    """Transformer and VAE with random weights, prompts as the reward's own text encoder reads them."""

    def __init__(self, seed: int, encode: torch.nn.Module) -> None:
        torch.manual_seed(seed)
        self.transformer = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=encode.dim,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            rope_max_seq_len=32,
        )
        self.vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=CHANNELS,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.0] * CHANNELS,
            latents_std=[1.0] * CHANNELS,
        ).requires_grad_(False)
        self.encode = encode

    def velocity(self, latents: Tensor, sigma: float, prompts: list[str]) -> Tensor:
        """The transformer's velocity at noise level `sigma` in 0-1."""
        timestep = torch.full((len(latents),), 1000 * sigma)
        return self.transformer(latents, timestep, self.encode(prompts).tokens, return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Frames (B,3,T,H,W) in [-1, 1], to which the VAE clamps."""
        return self.vae.decode(latents, return_dict=False)[0]


def sigmas(steps: int) -> list[float]:
    """Noise levels from 1 to 0."""
    return torch.linspace(1, 0, steps + 1).tolist()


def sample(wan: TinyWan, noise: Tensor, prompts: list[str], steps: int, steps_with_gradient: int = 0) -> Tensor:
    """Euler steps along the flow from noise to latents; the last ones keep their graph."""
    levels = sigmas(steps)
    latents = noise
    for i in range(steps):
        with torch.set_grad_enabled(i >= steps - steps_with_gradient):
            latents = latents + wan.velocity(latents, levels[i], prompts) * (levels[i + 1] - levels[i])
    return latents


def step_distribution(
    wan: TinyWan, latents: Tensor, prompts: list[str], i: int, settings: Settings
) -> tuple[Tensor, float]:
    """Mean and standard deviation of the next latents, the flow as a stochastic equation with the same marginals."""
    levels = sigmas(settings.sampling_steps)
    sigma, change = levels[i], levels[i + 1] - levels[i]
    spread = settings.noise * math.sqrt(sigma / (1 - min(sigma, levels[1])))
    velocity = wan.velocity(latents, sigma, prompts)
    drift = velocity + spread**2 / (2 * sigma) * (latents + (1 - sigma) * velocity)
    return latents + drift * change, spread * math.sqrt(-change)


def log_probability(latents: Tensor, mean: Tensor, std: float) -> Tensor:
    """Of latents (B,...) under a normal distribution, a mean over elements: (B,). Constants are left out."""
    return -((latents - mean) ** 2).flatten(1).mean(1) / (2 * std**2)


def train_grpo(wan: TinyWan, reward: DoverReward, monitor: RewardMonitor, settings: Settings, seed: int) -> list[float]:
    """Fine-tune the transformer; the mean reward of every step's clips."""
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.AdamW(wan.transformer.parameters(), lr=settings.grpo_lr, weight_decay=0)
    prompts = [prompt for prompt in PROMPTS for _ in range(settings.group)]
    history = []
    for _ in range(settings.grpo_steps):
        trajectory = [torch.randn(len(prompts), CHANNELS, *settings.latents, generator=generator)]
        old = []
        with torch.no_grad():
            for i in range(settings.sampling_steps):
                mean, std = step_distribution(wan, trajectory[-1], prompts, i, settings)
                trajectory.append(mean + std * torch.randn(mean.shape, generator=generator))
                old.append(log_probability(trajectory[-1], mean, std))
            frames = wan.decode(trajectory[-1])
        scores = reward.scores(frames, prompts)
        rewards = reward.combine(scores)
        advantages = clip_advantages(group_advantages(rewards, prompts))
        monitor.update(frames, scores, prompts)
        history.append(rewards.mean().item())

        optimizer.zero_grad()
        for i in range(settings.sampling_steps):
            mean, std = step_distribution(wan, trajectory[i], prompts, i, settings)
            ratio = (log_probability(trajectory[i + 1], mean, std) - old[i]).exp()
            clipped = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
            loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(wan.transformer.parameters(), 1.0)
        optimizer.step()
    return history


def train_backprop(
    wan: TinyWan, reward: DoverReward, monitor: RewardMonitor, settings: Settings, seed: int
) -> list[float]:
    """Fine-tune the transformer by the gradient of the reward; the mean reward of every step's clips."""
    generator = torch.Generator().manual_seed(2000 + seed)
    optimizer = torch.optim.AdamW(wan.transformer.parameters(), lr=settings.backprop_lr, weight_decay=0)
    prompts = list(PROMPTS)
    history = []
    for _ in range(settings.backprop_steps):
        noise = torch.randn(len(prompts), CHANNELS, *settings.latents, generator=generator)
        latents = sample(wan, noise, prompts, settings.sampling_steps, settings.last_steps)
        frames = wan.decode(latents)
        scores = reward.differentiable_scores(frames, prompts)
        rewards = reward.combine(scores)
        optimizer.zero_grad()
        (-rewards.mean()).backward()
        torch.nn.utils.clip_grad_norm_(wan.transformer.parameters(), 1.0)
        optimizer.step()
        monitor.update(frames, scores)
        history.append(rewards.mean().item())
    return history


@torch.no_grad()
def held_out(wan: TinyWan, reward: DoverReward, settings: Settings) -> tuple[Tensor, Tensor, list[str]]:
    """Rewards, frames and prompts on noise that no training has seen, the same for every model."""
    noise = torch.randn(settings.held_out, CHANNELS, *settings.latents, generator=torch.Generator().manual_seed(99))
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(settings.held_out)]
    frames = wan.decode(sample(wan, noise, prompts, settings.sampling_steps))
    return reward(frames, prompts), frames, prompts


METHODS = {"grpo": train_grpo, "backprop": train_backprop}


def run(method: str, reward: DoverReward, settings: Settings, seed: int) -> dict[str, object]:
    """Train one model; held-out rewards before and after, and what the monitor saw."""
    wan = TinyWan(seed, reward.scorer.model.text_encoder)
    monitor = RewardMonitor(layout=reward.reader.layout, value_range=reward.reader.value_range, baseline=5, window=5)
    before, frames, prompts = held_out(wan, reward, settings)
    monitor.probe(reward, frames, prompts)
    start = time.perf_counter()
    history = METHODS[method](wan, reward, monitor, settings, seed)
    seconds = time.perf_counter() - start
    after, frames, prompts = held_out(wan, reward, settings)
    monitor.probe(reward, frames, prompts)
    first = {name: series["first"][0] for name, series in monitor.state_dict().items()}
    last = {name: (series["last"] or series["first"])[-1] for name, series in monitor.state_dict().items()}
    return {
        "seed": seed,
        "before": before.mean().item(),
        "after": after.mean().item(),
        "clips": len(before),
        "standard_error_of_clips": ((after - before).std() / len(before) ** 0.5).item(),
        "history": history,
        "seconds": seconds,
        "monitor_first": first,
        "monitor_last": last,
        "alarms": copy.copy(monitor.alarms),
    }


def summary(runs: list[dict]) -> dict[str, float]:
    """Means over training seeds, with their standard errors where there are two or more."""
    result = {}
    gains = [run["after"] - run["before"] for run in runs]
    for name, values in {
        "before": [run["before"] for run in runs],
        "after": [run["after"] for run in runs],
        "gain": gains,
    }.items():
        values = torch.tensor(values, dtype=torch.float64)
        result[name] = values.mean().item()
        result[f"{name}_standard_error"] = (values.std() / len(values) ** 0.5).item() if len(values) > 1 else math.nan
    return result


def make_reward(model: str | None, random_reward: bool) -> DoverReward:
    """The embedded reward model, a named one, or random weights where they are asked for."""
    if random_reward:
        torch.manual_seed(0)
        network = DOVERModel(None, config="nano")
        # As initialised it gives every clip nearly the same score; larger weights after the backbone spread them.
        video = network.dover_model
        for part in (video.projection, video.statistics_projection, network.fusion, network.mos_predictor):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    parameter.data.mul_(3)
        return DoverReward(network, layout="BCTHW", value_range=(-1, 1))
    return DoverReward(model, layout="BCTHW", value_range=(-1, 1))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="training runs of each method")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--model", help="checkpoint of the reward; by default the embedded one")
    parser.add_argument("--random-reward", action="store_true", help="a reward with random weights (nano)")
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reward, settings = make_reward(arguments.model, arguments.random_reward), Settings()
    results = {}
    for method in arguments.methods:
        runs = []
        for seed in range(arguments.seeds):
            runs.append(run(method, reward, settings, seed))
            print(f"{method} seed {seed}: {runs[-1]['before']:.4f} -> {runs[-1]['after']:.4f}", flush=True)
            for name in ("motion", "saturation", "contrast", "grid", "group_std", "prompt_sensitivity"):
                if name in runs[-1]["monitor_first"]:
                    first, last = runs[-1]["monitor_first"][name], runs[-1]["monitor_last"][name]
                    print(f"    {name:20} {first:8.4f} -> {last:8.4f}")
            for alarm, message in runs[-1]["alarms"].items():
                print(f"    alarm {alarm}: {message}")
        results[method] = {"summary": summary(runs), "runs": runs}
        figures = results[method]["summary"]
        print(
            f"{method}: held-out reward {figures['before']:.4f} -> {figures['after']:.4f}, gain {figures['gain']:.4f} "
            f"+- {figures['gain_standard_error']:.4f} (standard error over {arguments.seeds} training seeds)"
        )
    if arguments.output:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "reward": "random weights, nano" if arguments.random_reward else arguments.model or "embedded",
            "fingerprint": asdict(reward.scorer.fingerprint),
            "settings": asdict(settings),
            "results": results,
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
