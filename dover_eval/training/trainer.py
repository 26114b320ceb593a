"""The loop that teaches a fresh `DOVERModel` from drawn clips."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from dover_eval.models.dover import DOVERModel
from dover_eval.models.heads import ASPECTS, MOS_MAX, MOS_MIN
from dover_eval.training.data import Batch, Content, DrawnContents, collate
from dover_eval.training.losses import matching_loss, rank_loss, weights_loss
from dover_eval.training.synthetic import CHOICES

logger = logging.getLogger(__name__)

RIDGE = 10.0  # of the closed-form readout, on standardised statistics
READOUT_SCALE = 4.0  # so that a dozen guesses are heard among a thousand features


@dataclass(frozen=True)
class TrainingSettings:
    """`steps` of `contents` scenes each, drawn by `workers` processes.

    readout_contents: scenes that the closed-form readout is fitted on before the first step (see `fit_readout`).
    warmup: the share of the steps in which the learning rate rises.
    """

    steps: int = 800
    contents: int = 8
    workers: int = 1
    seed: int = 0
    learning_rate: float = 1e-3
    readout_contents: int = 300
    weight_decay: float = 0.02
    warmup: float = 0.05
    ema_decay: float = 0.995


def train(
    model: DOVERModel, settings: TrainingSettings, on_step: Callable[[int, nn.Module], None] | None = None
) -> DOVERModel:
    """Train `model` in place on its device; it ends with the running mean of its weights, in eval mode.

    `on_step` is called after every step with its number and the model that holds the running mean.
    """
    torch.manual_seed(settings.seed)
    device = next(model.parameters()).device
    data = DrawnContents(model.config, settings.steps * settings.contents, seed=settings.seed)
    # Which attributes a scene has: a teacher for the backbone while matching words is still noise.
    attributes = nn.ModuleDict({name: nn.Linear(model.config.feature_dim, len(c)) for name, c in CHOICES.items()})
    attributes.to(device)
    parameters = [p for p in (*model.parameters(), *attributes.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, settings.steps, pct_start=settings.warmup
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)
    started = time.monotonic()
    model.train()
    if model.config.statistics and settings.readout_contents:
        fit_readout(model, settings)
        logger.info("readout fitted, %.0f s", time.monotonic() - started)
    for step, (contents, batch) in enumerate(_batches(data, settings)):
        frames = batch.frames.to(device)
        losses = _losses(model, attributes, frames, batch, contents)
        optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if on_step:
            on_step(step, average.module)
        if step % 20 == 0 or step == settings.steps - 1:
            parts = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            logger.info("step %d of %d, %.0f s: %s", step, settings.steps, time.monotonic() - started, parts)
    model.load_state_dict(average.module.state_dict())
    return model.eval()


def _within(x: Tensor, variants: int) -> Tensor:
    """Rows less the mean of their content's, `variants` rows a content."""
    grouped = x.unflatten(0, (-1, variants))
    return (grouped - grouped.mean(dim=1, keepdim=True)).flatten(0, 1)


@torch.no_grad()
def fit_readout(model: DOVERModel, settings: TrainingSettings) -> None:
    """Let the first features be the best linear guess of every defect's strength from the statistics.

    Plain descent from random weights predicts a constant for hundreds of steps, because what tells defects apart lies
    in directions of small variance; ridge regression finds those at once, even on a random backbone. It looks at the
    differences between the states of one scene: between scenes, texture says more than any defect.
    """
    device = next(model.parameters()).device
    pool = model.dover_model.statistics
    raw, strengths = [], []
    data = DrawnContents(model.config, settings.readout_contents, seed=settings.seed + 1)
    for contents, batch in _batches(data, settings):
        maps = model.dover_model.forward_stages(batch.frames.to(device))
        raw.append(model.dover_model.moments(maps))
        strengths += [content.defects for content in contents]
    moments = torch.cat(raw)
    pool.fit(moments)
    x = _within(pool.standardise(moments).double(), data.variants)
    y = _within(torch.cat(strengths).to(device).double(), data.variants)
    solution = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], device=device), x.T @ y)
    scaled = READOUT_SCALE * solution / (x @ solution).std(dim=0).clamp_min(1e-6)
    count = y.shape[1]
    projection, places = model.dover_model.statistics_projection, model.dover_model.projection
    projection.weight[:count] = scaled.T.float()
    for parameter in (projection.bias, places.weight, places.bias):
        parameter[:count] = 0


def _batches(data: DrawnContents, settings: TrainingSettings) -> Iterator[tuple[list[Content], Batch]]:
    loader = DataLoader(
        data,
        settings.contents,
        num_workers=settings.workers,
        collate_fn=lambda contents: (contents, collate(contents)),
        prefetch_factor=4 if settings.workers else None,
    )
    yield from loader


def _losses(
    model: DOVERModel, attributes: nn.ModuleDict, frames: Tensor, batch: Batch, contents: list[Content]
) -> dict[str, Tensor]:
    device = frames.device
    video = model.dover_model(frames)
    text = model.text_encoder.encode_batch(batch.prompts)
    clips, prompts = len(frames), len(batch.prompts)
    # Every clip with every prompt, by expanding: indexing would add up its gradients in no fixed order.
    by_clip = lambda x: x[:, None].expand(clips, prompts, *x.shape[1:]).flatten(0, 1)
    by_prompt = lambda x: x[None].expand(clips, prompts, *x.shape[1:]).flatten(0, 1)
    fused, weights = model.fusion(
        by_clip(video["tokens"]),
        by_prompt(text.tokens),
        dover_pooled=by_clip(video["features"]),
        text_pooled=by_prompt(text.pooled),
        text_mask=by_prompt(text.mask),
    )
    logits = model.mos_predictor.aspect_logits(fused).unflatten(0, (clips, prompts))
    scores = logits.sigmoid() * (MOS_MAX - MOS_MIN) + MOS_MIN
    targets = batch.targets.to(device)
    column = {name: i for i, name in enumerate(ASPECTS)}
    alignment = column["Alignment"]
    own = [name for name in ASPECTS if name != "Alignment"]
    columns = [column[name] for name in own]
    quality = scores[..., columns].mean(dim=1)
    # True captions are few among the pairs: they weigh as much as all the others together.
    fits = batch.fits.to(device)
    importance = torch.where(fits, 0.5 / fits.sum(), 0.5 / (~fits).sum())
    regression = F.smooth_l1_loss(scores, targets, reduction="none", beta=0.5)
    losses = {
        "quality": len(own) * regression[..., columns].mean(),
        # Between the states of one scene the defect is all there is to see: this is what teaches the scale.
        "within": 3
        * F.smooth_l1_loss(
            _within(quality, len(contents[0].frames)),
            _within(targets[:, 0, columns], len(contents[0].frames)),
            beta=0.5,
        ),
        "rank": torch.stack([rank_loss(quality[:, i], targets[:, 0, c]) for i, c in enumerate(columns)]).mean(),
        "alignment": (regression[..., alignment] * importance).sum(),
        "matching": matching_loss(2 * logits[..., alignment], fits),
        "weights": weights_loss(weights[:prompts], batch.weights.to(device)),
        "heads": 0.3
        * (
            F.smooth_l1_loss(video["technical_score"][:, 0], targets[:, 0, column["Traditional"]] - 3)
            + F.smooth_l1_loss(video["aesthetic_score"][:, 0], targets[:, 0, column["Aesthetic"]] - 3)
        ),
    }
    scenes = [content.scene for content in contents for _ in content.frames]
    named = [
        F.cross_entropy(
            attributes[name](video["features"]),
            torch.tensor([choices.index(getattr(scene, name)) for scene in scenes], device=device),
        )
        for name, choices in CHOICES.items()
    ]
    losses["attributes"] = 0.3 * torch.stack(named).sum()
    return losses
