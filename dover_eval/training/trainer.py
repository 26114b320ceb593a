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


@dataclass(frozen=True)
class TrainingSettings:
    """`steps` of `contents` scenes each, drawn by `workers` processes; `warmup` is the share of the steps in which the
    learning rate rises."""

    steps: int = 1500
    contents: int = 8
    workers: int = 1
    seed: int = 0
    learning_rate: float = 1e-3
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
    pair_clip = torch.arange(clips, device=device).repeat_interleave(prompts)
    pair_prompt = torch.arange(prompts, device=device).repeat(clips)
    fused, weights = model.fusion(
        video["tokens"][pair_clip],
        text.tokens[pair_prompt],
        dover_pooled=video["features"][pair_clip],
        text_pooled=text.pooled[pair_prompt],
        text_mask=text.mask[pair_prompt],
    )
    logits = model.mos_predictor.aspect_logits(fused).unflatten(0, (clips, prompts))
    scores = logits.sigmoid() * (MOS_MAX - MOS_MIN) + MOS_MIN
    targets = batch.targets.to(device)
    column = {name: i for i, name in enumerate(ASPECTS)}
    alignment = column["Alignment"]
    own = [name for name in ASPECTS if name != "Alignment"]
    # True captions are few among the pairs: they weigh as much as all the others together.
    fits = batch.fits.to(device)
    importance = torch.where(fits, 0.5 / fits.sum(), 0.5 / (~fits).sum())
    regression = F.smooth_l1_loss(scores, targets, reduction="none", beta=0.5)
    losses = {
        "quality": torch.stack([regression[..., column[name]].mean() for name in own]).sum(),
        "rank": torch.stack([rank_loss(scores[..., column[n]].mean(1), targets[:, 0, column[n]]) for n in own]).sum(),
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
