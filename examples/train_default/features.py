"""What a frozen backbone sees of many contents, kept in files: making clips costs more than looking at them again.

Shards of contents, made by several processes; a run that was stopped goes on with the shards that are missing.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dover_eval.config import DOVERConfig
from dover_eval.models.dover import DOVERModel
from examples.train_default.contents import AnyScene, Content, make_content


@dataclass(frozen=True)
class Seen:
    """A content without its frames: V versions through the backbone.

    moments (V,M), raw; pooled (V,views,C), the mean of the last stage; places (V,N,C) of the whole frame; semantics
    (V,S) or None; defects (V,D) and bad (V,3) as `Content` has them.
    """

    scene: AnyScene
    moments: Tensor
    pooled: Tensor
    places: Tensor
    semantics: Tensor | None
    defects: Tensor
    bad: Tensor


@torch.no_grad()
def look(model: DOVERModel, content: Content) -> Seen:
    """One content through the backbone of `model`."""
    frames = content.frames.to(next(model.parameters()).device)
    video = model.dover_model
    stages = video.forward_stages(frames)
    whole = stages[-1][:, 0].movedim(1, 2).flatten(2, 3)
    grid = [min(size, most) for size, most in zip(whole.shape[2:], model.config.token_grid, strict=True)]
    semantics = model.semantics(frames)
    return Seen(
        scene=content.scene,
        moments=video.moments(stages).cpu(),
        pooled=stages[-1].mean(dim=(2, 4, 5, 6)).cpu(),
        places=F.adaptive_avg_pool3d(whole, grid).flatten(2).transpose(1, 2).half().cpu(),
        semantics=None if semantics is None else semantics.cpu(),
        defects=content.defects,
        bad=content.bad,
    )


def make(
    model: DOVERModel, folder: Path, count: int, *, seed: int, variants: int, processes: int, shard: int = 50
) -> list[Seen]:
    """`count` contents of `seed` as `model` sees them, `shard` a file; files that `folder` has are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(-(-count // shard))
    missing = [i for i in shards if not _path(folder, i).exists()]
    if missing:
        weights = folder / "backbone.pt"
        torch.save(model.state_dict(), weights)
        jobs = [(model.config, weights, folder, missing[k::processes], shard, seed, variants) for k in range(processes)]
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            pool.starmap(_make_shards, jobs)
    return [seen for i in shards for seen in torch.load(_path(folder, i), weights_only=False)][:count]


def _make_shards(
    config: DOVERConfig, weights: Path, folder: Path, shards: list[int], size: int, seed: int, variants: int
) -> None:
    torch.set_num_threads(1)
    model = DOVERModel(None, config=config).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    for shard in shards:
        indices = range(shard * size, (shard + 1) * size)
        seen = [look(model, make_content(config, i, seed=seed, variants=variants)) for i in indices]
        unfinished = _path(folder, shard).with_suffix(".part")
        torch.save(seen, unfinished)
        unfinished.rename(_path(folder, shard))


def _path(folder: Path, shard: int) -> Path:
    return folder / f"seen-{shard:04d}.pt"
