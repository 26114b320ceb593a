"""The best of n videos of a prompt, without sampling all n to the end: the ledger of who was dropped, when and why.

    python examples/best_of_n.py
    python examples/best_of_n.py --prompt "waves at night" --n 6

It runs offline, on a tiny Wan pipeline with random weights (`tiny_wan.py`).
"""

from __future__ import annotations

import argparse

from dover_integrations.diffusers import best_of
from tiny_wan import CALL, example_scorer, tiny_wan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a red bicycle in the rain")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--untrained", action="store_true", help="score with random weights: this means nothing")
    args = parser.parse_args()

    scorer = example_scorer(args.untrained)
    best = best_of(
        tiny_wan(), scorer, args.prompt, args.n, prune_at=(0.3, 0.6), keep=(0.5, 0.5), output_type="pt", **CALL
    )

    print(f'"{args.prompt}": {best}')
    for candidate in best.ledger:
        for judgement in candidate.judgements:
            scores = ", ".join(f"{name} {value:.3f}" for name, value in judgement.scores.items())
            print(
                f"  seed {candidate.seed}, {judgement.steps_done} of {judgement.steps} steps, rank {judgement.rank} of "
                f"{judgement.of} ({judgement.obtained}): {scores}"
            )
    print(f"frames of seed {best.seed}: {tuple(best.output.frames.shape)}, Overall {best.scores.overall.item():.3f}")


if __name__ == "__main__":
    main()
