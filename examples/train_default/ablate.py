"""What each choice of statistics and views is worth, by the closed-form readout alone, on contents not fitted on.

    python -m examples.train_default.ablate out/default bench/results/default-ablation.json

Reads what the backbone saw (`seen` of a finished run). Each figure is the share of the variance within scenes (between
versions of one clip) that ridge regression explains, on the last 15% of the contents: 1 is all, 0 none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from dover_eval.config import DOVERConfig
from dover_eval.distortions import ASPECT_OF
from dover_eval.models.heads import StatisticsPool
from dover_eval.models.signals import EXPOSURE_STATISTICS, PIXEL_STATISTICS
from examples.train_default.readouts import within
from examples.train_default.settings import TrainingSettings
from examples.train_default.spoil import SPOILED

KINDS = ("mean", "variance", "detail", "first difference", "second difference", "stillness", "pixels", "exposure")


def columns(config: DOVERConfig) -> dict[str, Tensor]:
    """For each column of the moments: its view, its stage (0 the input) and its kind, of `KINDS`."""
    widths = [2 + len(config.signals), *config.dims[:-1]]
    moments = range(StatisticsPool.MOMENTS)
    of_maps = [(stage, kind) for stage, width in enumerate(widths) for kind in moments for _ in range(width)]
    by_view = of_maps + [(0, KINDS.index("pixels"))] * PIXEL_STATISTICS
    rows = [(view, *row) for view in range(len(config.backbone_views)) for row in by_view]
    rows += [(0, 0, KINDS.index("exposure"))] * EXPOSURE_STATISTICS
    return dict(zip(("view", "stage", "kind"), torch.tensor(rows).T, strict=True))


def explained(moments: Tensor, wanted: Tensor, variants: int, ridge: float) -> list[float]:
    """The share of each column of `wanted` (N,K) that moments (N,M) explain within scenes, out of sample."""
    learned = int(len(moments) / variants * 0.85) * variants
    center, scale = moments[:learned].mean(0), moments[:learned].std(0).clamp_min(1e-2)
    x = within(((moments - center) / scale).clamp(-10, 10), variants)
    y = within(wanted, variants)
    gram = x[:learned].T @ x[:learned] + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    rest = y[learned:] - x[learned:] @ torch.linalg.solve(gram, x[:learned].T @ y[:learned])
    return (1 - rest.square().sum(0) / y[learned:].square().sum(0)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    config = DOVERConfig.resolve(json.loads((arguments.folder / "config.json").read_text()))
    shards = sorted((arguments.folder / "seen").glob("seen-*.pt"))
    seen = [s for path in shards for s in torch.load(path, weights_only=False)]
    moments = torch.cat([s.moments for s in seen]).double()
    wanted = torch.cat([torch.cat([s.bad, s.defects], dim=1) for s in seen]).double()
    of = columns(config)
    still, detail = KINDS.index("stillness"), KINDS.index("detail")
    choices = {
        "all": of["view"] >= 0,
        "the whole frame alone": of["view"] == 0,
        "fragments alone": of["view"] == 1,
        "means alone": of["kind"] == 0,
        "without shares of pixels": of["kind"] != KINDS.index("pixels"),
        "without exposure": of["kind"] != KINDS.index("exposure"),
        "without stillness and detail": (of["kind"] != still) & (of["kind"] != detail),
        "input planes alone": of["stage"] == 0,
        "without the third stage": of["stage"] < len(config.dims) - 1,
        "without the input planes": of["stage"] > 0,
    }
    ridge, variants = TrainingSettings.ridge, len(seen[0].moments)
    names = [*SPOILED, *ASPECT_OF]
    table = {}
    for name, chosen in choices.items():
        shares = explained(moments[:, chosen], wanted, variants, ridge)
        table[name] = {"columns": int(chosen.sum())} | {k: round(v, 3) for k, v in zip(names, shares, strict=True)}
        print(f"{name:30s}" + " ".join(f"{k} {v:.2f}" for k, v in zip(names, shares, strict=True)), flush=True)
    told = {
        "command": "python -m examples.train_default.ablate",
        "contents": len(seen),
        "versions": variants,
        "ridge": ridge,
        "explained_within_scenes": table,
    }
    arguments.output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
