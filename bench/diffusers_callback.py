"""What scoring while sampling costs: the denoiser, the VAE and the scorer, timed apart.

    python -m bench.diffusers_callback                        # a tiny pipeline, on any machine
    python -m bench.diffusers_callback --size wan-1.3b        # Wan 2.1's 1.3B sizes, random weights, on a GPU

Sampling is timed without a callback and with one that scores every tenth step. Besides decoding, which is the VAE's
price, the callback adds clean estimates, scoring and bookkeeping: all that is spent outside of denoiser and VAE, less
what the pipeline spends there without it. That is to stay below a tenth of sampling. Nothing is reported unless the
latents are bit-equal and each scored step decoded once. On a CPU times are of CPU seconds, which other programs do not
stretch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from dover_integrations.diffusers import DoverCallback
from dover_integrations.diffusers.selection import denoisers

from bench.record import environment, results_file, save, usual_device
from dover_eval import DOVERModel, VideoScorer

PROMPT = "a red bicycle in the rain"

SIZES: dict[str, dict[str, Any]] = {
    # Small enough for a CPU, and with a denoiser that takes most of the time, as real ones do.
    "tiny": {
        "transformer": {"num_attention_heads": 6, "attention_head_dim": 48, "ffn_dim": 1024, "num_layers": 6},
        "vae": {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
        "call": {"height": 96, "width": 96, "num_frames": 17},
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
    """Seconds spent within functions: on a GPU by the clock with its queue run empty, on a CPU of CPU time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return time.perf_counter()
        return time.process_time()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start
                self.calls[name] = self.calls.get(name, 0) + 1

        return timed


class Timed:
    """A scorer under the stopwatch."""

    def __init__(self, scorer: VideoScorer, watch: Stopwatch) -> None:
        self.score = watch.around("score", scorer.score)


def sample(
    pipe: Any, arguments: dict[str, Any], scorer: VideoScorer | None, **when: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Latents, and seconds and calls of each part of one sampling without its own decoding."""
    watch = Stopwatch(pipe.transformer.device)
    callback = None if scorer is None else DoverCallback(Timed(scorer, watch), PROMPT, **when)
    forwards = [(model, model.forward) for model in denoisers(pipe)]
    pipe.vae.decode = watch.around("decode", pipe.vae.decode)
    for model, forward in forwards:
        model.forward = watch.around("denoiser", forward)  # type: ignore[method-assign]
    try:
        start = watch.now()
        generator = torch.Generator().manual_seed(0)
        latents = pipe(**arguments, generator=generator, callback_on_step_end=callback, output_type="latent").frames
        parts = {"total": watch.now() - start}
    finally:
        del pipe.vae.decode
        for model, _ in forwards:
            del model.forward
    for name in ("denoiser", "decode", "score"):
        parts[name] = watch.seconds.get(name, 0.0)
    parts["rest"] = parts["total"] - sum(parts[name] for name in ("denoiser", "decode", "score"))
    return latents, parts | {"decodes": watch.calls.get("decode", 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default=usual_device())
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="what else ran on the machine, say")
    args = parser.parse_args()

    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    facts = environment(device.type, args.note, "diffusers")
    pipe = build(args.size, device, dtype)
    torch.manual_seed(0)
    scorer = VideoScorer(DOVERModel(None, config="nano"), device=device)  # speed does not depend on the weights
    embeds = {name: torch.randn(1, 512, 4096, device=device, dtype=dtype) for name in ("prompt", "negative_prompt")}
    arguments = SIZES[args.size]["call"] | {f"{name}_embeds": tensor for name, tensor in embeds.items()}
    arguments |= {"num_inference_steps": args.steps, "guidance_scale": 5.0}
    scored_steps = args.steps // args.every

    sample(pipe, arguments | {"num_inference_steps": 2}, scorer)  # to warm up
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "scored": []}
    for _ in range(args.repeats):  # alternating, so that a slow moment of the machine meets both
        plain, parts = sample(pipe, arguments, None)
        runs["plain"].append(parts)
        watched, parts = sample(pipe, arguments, scorer, every=args.every, last_step=False)
        runs["scored"].append(parts)
        if not torch.equal(plain, watched):
            raise SystemExit("the callback changed the latents: nothing is reported")
        if parts["decodes"] != scored_steps:
            raise SystemExit(f"{parts['decodes']} decodes for {scored_steps} scored steps: nothing is reported")

    middle = {
        kind: {name: round(statistics.median(run[name] for run in of_kind), 4) for name in of_kind[0]}
        for kind, of_kind in runs.items()
    }
    added = [
        (with_it["score"] + with_it["rest"] - without["rest"]) / without["total"]
        for without, with_it in zip(runs["plain"], runs["scored"], strict=True)
    ]
    parameters = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    result = facts | {
        "pipeline": f"WanPipeline, {parameters / 1e6:.1f} M parameters of the transformer, {dtype}",
        "scorer": repr(scorer),
        "call": SIZES[args.size]["call"] | {"steps": args.steps, "every": args.every, "repeats": args.repeats},
        "clock": "wall, synchronised" if device.type == "cuda" else "CPU time of the process",
        "median_seconds": middle,
        "added_beyond_decoding": {
            "median": round(statistics.median(added), 4),
            "of_each_repeat": [round(share, 4) for share in added],
        },
        "latents_bit_equal": True,
    }
    path = results_file(device.type, f"diffusers-callback-{args.size}")
    save(path, result)
    print(json.dumps(result, indent=1))
    print(f"beyond decoding, scoring added {statistics.median(added):.1%} to sampling; written to {path}")


if __name__ == "__main__":
    main()
