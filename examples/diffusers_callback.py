"""Scores during sampling: a ledger of each scored step, and an early stop.

    python examples/diffusers_callback.py
    python examples/diffusers_callback.py --prompt "waves at night" --every 4 --plot scores.png
    python examples/diffusers_callback.py --stop-below 4.9 --stop-after 0.5

It runs offline, on a tiny Wan pipeline with random weights (`tiny_wan.py`).
"""

from __future__ import annotations

import argparse

import torch
from dover_integrations.diffusers import DoverCallback
from tiny_wan import CALL, example_scorer, tiny_wan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a red bicycle in the rain")
    parser.add_argument("--every", type=int, default=5, help="score each so many steps")
    parser.add_argument("--stop-below", type=float, help="stop a video whose Overall score is below this")
    parser.add_argument("--stop-after", type=float, default=0.3, help="but not before this fraction of the steps")
    parser.add_argument("--plot", help="an image file for the scores over the steps")
    parser.add_argument("--untrained", action="store_true", help="score with random weights: this means nothing")
    args = parser.parse_args()

    scorer = example_scorer(args.untrained)
    pipe = tiny_wan()
    callback = DoverCallback(
        scorer,
        args.prompt,
        every=args.every,
        stop_below=args.stop_below,
        stop_after=None if args.stop_below is None else args.stop_after,
    )
    generator = torch.Generator().manual_seed(0)
    video = pipe(args.prompt, generator=generator, output_type="pt", callback_on_step_end=callback, **CALL).frames

    print(f'"{args.prompt}": {video.shape[1]} frames of {video.shape[3]}x{video.shape[4]}')
    print(f"{'step':>4} {'sigma':>6}  " + "  ".join(f"{name:>11}" for name in callback.history[0].names) + "  scored")
    for step in callback.history:
        seconds = sum(step.seconds.values())
        scores = "  ".join(f"{value:11.3f}" for value in step.values[0].tolist())
        print(f"{step.step + 1:4} {step.sigma:6.3f}  {scores}  {step.obtained}, {seconds:.2f} s")
    if callback.stopped_at is not None:
        print(f"stopped after step {callback.stopped_at + 1}: Overall below {args.stop_below}")
    if args.plot:
        callback.plot().figure.savefig(args.plot)
        print(f"plot in {args.plot}")


if __name__ == "__main__":
    main()
