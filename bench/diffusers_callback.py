"""What scoring while sampling costs: the denoiser, the VAE and the scorer, timed apart.

    python -m bench.diffusers_callback                        # a tiny pipeline, on any machine
    python -m bench.diffusers_callback --size wan-1.3b        # Wan 2.1's 1.3B sizes, random weights, on a GPU

Sampling is timed without a callback and with one that scores every tenth step. What the callback adds is its decoding,
which is the VAE's price, and the rest: clean estimate, scoring and bookkeeping. The rest is to stay below a tenth of
sampling, and each scored step decodes once: both are checked, and so is that the latents are bit-equal, before a
time is reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from dover_integrations.diffusers import DoverCallback
from dover_integrations.diffusers.selection import denoisers

from dover_eval import DOVERModel, VideoScorer

RESULTS = Path(__file__).parent / "results"
PROMPT = "a red bicycle in the rain"

SIZES: dict[str, dict[str, Any]] = {
    # Small enough for a CPU, and with a denoiser that takes most of the time, as real ones do.
    "tiny": {
        "transformer": {"num_attention_heads": 8, "attention_head_dim": 48, "ffn_dim": 1024, "num_layers": 8},
        "vae": {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
        "call": {"height": 128, "width": 128, "num_frames": 33},
    },
    # https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B-Diffusers, at its own resolution and length.
    "wan-1.3b": {
        "transformer": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
        "vae": {},
        "call": {"height": 480, "width": 832, "num_frames": 81},
    },
}


def build(size: str, device: torch.device, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        transformer = diffusers.WanTransformer3DModel(**SIZES[size]["transformer"], text_dim=4096)
        vae = diffusers.AutoencoderKLWan(**SIZES[size]["vae"])
    if dtype != torch.float32:
        transformer.to(dtype)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, transformer=transformer.eval(), vae=vae.eval(), scheduler=scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Stopwatch:
    """Wall-clock seconds spent within functions, with the device's queue run empty at both ends."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start
                self.calls[name] = self.calls.get(name, 0) + 1

        return timed


def sample(pipe: Any, arguments: dict[str, Any], callback: DoverCallback | None) -> tuple[torch.Tensor, dict[str, Any]]:
    """Latents, and seconds and calls of each part of one sampling without its own decoding."""
    watch = Stopwatch(pipe.transformer.device)
    decode = pipe.vae.decode
    forwards = [(model, model.forward) for model in denoisers(pipe)]
    pipe.vae.decode = watch.around("decode", decode)
    for model, forward in forwards:
        model.forward = watch.around("denoiser", forward)  # type: ignore[method-assign]
    try:
        start = watch.now()
        generator = torch.Generator().manual_seed(0)
        latents = pipe(**arguments, generator=generator, callback_on_step_end=callback, output_type="latent").frames
        total = watch.now() - start
    finally:
        del pipe.vae.decode
        for model, _ in forwards:
            del model.forward
    parts = {"total": total, "denoiser": watch.seconds["denoiser"], "decode": watch.seconds.get("decode", 0.0)}
    parts["decodes"] = watch.calls.get("decode", 0)
    if callback is not None:
        for name in ("estimate", "score"):
            parts[name] = sum(step.seconds[name] for step in callback.history)
    return latents, parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--untrained", action="store_true", help="a scorer with random weights: as fast, meaningless")
    args = parser.parse_args()

    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pipe = build(args.size, device, dtype)
    torch.manual_seed(0)
    model = DOVERModel(None, config="nano") if args.untrained else None
    scorer = VideoScorer.from_pretrained(device=device) if model is None else VideoScorer(model, device=device)
    embeds = {name: torch.randn(1, 512, 4096, device=device, dtype=dtype) for name in ("prompt", "negative_prompt")}
    arguments = SIZES[args.size]["call"] | {f"{name}_embeds": tensor for name, tensor in embeds.items()}
    arguments |= {"num_inference_steps": args.steps, "guidance_scale": 5.0}
    scored = [step for step in range(args.steps) if (step + 1) % args.every == 0]

    warm_up = arguments | {"num_inference_steps": 2}
    sample(pipe, warm_up, DoverCallback(scorer, PROMPT))
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "scored": []}
    for _ in range(args.repeats):  # alternating, so that a slow moment of the machine meets both
        plain, parts = sample(pipe, arguments, None)
        runs["plain"].append(parts)
        callback = DoverCallback(scorer, PROMPT, every=args.every, last_step=False)
        watched, parts = sample(pipe, arguments, callback)
        runs["scored"].append(parts)
        if not torch.equal(plain, watched):
            raise SystemExit("the callback changed the latents: nothing is reported")
        if parts["decodes"] != len(scored) or any(step.error for step in callback.history):
            raise SystemExit(f"{parts['decodes']} decodes for {len(scored)} scored steps: nothing is reported")

    middle = {
        kind: {name: statistics.median(run[name] for run in of_kind) for name in of_kind[0]}
        for kind, of_kind in runs.items()
    }
    added = [
        (scored_run["total"] - scored_run["decode"] - plain_run["total"]) / plain_run["total"]
        for plain_run, scored_run in zip(runs["plain"], runs["scored"], strict=True)
    ]
    own = (middle["scored"]["estimate"] + middle["scored"]["score"]) / middle["plain"]["total"]
    parameters = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    result = {
        "command": "python -m bench.diffusers_callback " + " ".join(sys.argv[1:]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "pipeline": f"WanPipeline, {parameters / 1e6:.1f} M parameters of the transformer, {dtype}",
        "scorer": repr(scorer),
        "call": SIZES[args.size]["call"] | {"steps": args.steps, "every": args.every, "repeats": args.repeats},
        "seconds": middle,
        "added_beyond_decoding": {"median": statistics.median(added), "of_each_repeat": added},
        "estimate_and_score_share": own,
        "latents_bit_equal": True,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"diffusers_callback_{args.size}_{device.type}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(f"beyond decoding, scoring added {statistics.median(added):.1%} to sampling; written to {path}")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
