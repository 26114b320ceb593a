"""The loop that teaches the embedded default."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from dover_eval.models.dover import DOVERModel
from dover_eval.models.heads import ASPECTS, MOS_MAX, MOS_MIN
from dover_eval.models.semantic import imagenet_classes
from dover_eval.training.losses import matching_loss, rank_loss, weights_loss
from examples.train_default.contents import ATTRIBUTES, Batch, Content, Contents, collate
from examples.train_default.scenes import Scene

logger = logging.getLogger(__name__)

RIDGE = 100.0  # of the closed-form readouts, on standardised statistics
READOUT_SCALE = 4.0  # so that a dozen guesses are heard among a thousand features


@dataclass(frozen=True)
class TrainingSettings:
    """`steps` of `contents` scenes in `variants` versions each, made by `workers` processes.

    readout_contents: scenes that the closed-form readouts are fitted on before the first step (see `fit_readouts`).
    backbone_rate: the learning rate of a backbone that has been trained before, as a share of `learning_rate`.
    warmup: the share of the steps in which the learning rate rises.
    """

    steps: int = 600
    contents: int = 6
    variants: int = 3
    workers: int = 1
    seed: int = 0
    learning_rate: float = 1e-3
    backbone_rate: float = 0.3
    readout_contents: int = 250
    weight_decay: float = 0.02
    warmup: float = 0.1
    ema_decay: float = 0.99


def train(
    model: DOVERModel, settings: TrainingSettings, on_step: Callable[[int, nn.Module], None] | None = None
) -> DOVERModel:
    """Train `model` in place on its device; it ends with the running mean of its weights, in eval mode.

    `on_step` is called after every step with its number and the model that holds the running mean.
    """
    torch.manual_seed(settings.seed)
    device = next(model.parameters()).device
    started = time.monotonic()
    model.train()
    fit_readouts(model, settings)
    logger.info("readouts fitted, %.0f s", time.monotonic() - started)
    # Which attributes a scene has: a teacher for the backbone while matching words is still noise.
    attributes = nn.ModuleDict({name: nn.Linear(model.config.feature_dim, c) for name, c in ATTRIBUTES.items()})
    attributes.to(device)
    backbone = [p for p in model.dover_model.backbone.parameters() if p.requires_grad]
    known = {id(p) for p in backbone}
    others = [p for p in (*model.parameters(), *attributes.parameters()) if p.requires_grad and id(p) not in known]
    rates = [settings.learning_rate * settings.backbone_rate, settings.learning_rate]
    optimizer = torch.optim.AdamW([{"params": backbone}, {"params": others}], weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, settings.steps, pct_start=settings.warmup)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)
    data = Contents(model.config, settings.steps * settings.contents, seed=settings.seed, variants=settings.variants)
    for step, (_, batch) in enumerate(_batches(data, settings)):
        losses = _losses(model, attributes, batch, settings.variants)
        optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_([*backbone, *others], 1.0)
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


def start_from(model: DOVERModel, path: Path) -> str:
    """Take from a safetensors file every tensor that has a place of its shape in `model`; says which had none."""
    given, own = load_file(path), model.state_dict()
    fitting = {name: x.float() for name, x in given.items() if name in own and own[name].shape == x.shape}
    model.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of {len(own)} tensors from {path}; fresh: {', '.join(sorted(set(own) - set(fitting)))}"


@torch.no_grad()
def fit_readouts(model: DOVERModel, settings: TrainingSettings) -> None:
    """Start from the best linear guesses: of every defect's strength, and of what the prompt says of a picture.

    Plain descent from random weights predicts a constant for hundreds of steps, because what tells defects apart lies
    in directions of small variance; ridge regression finds those at once, even on a random backbone. It looks at the
    differences between the versions of one scene: between scenes, texture says more than any defect.
    """
    device = next(model.parameters()).device
    raw, defects, seen, said = [], [], [], []
    data = Contents(model.config, settings.readout_contents, seed=settings.seed + 1, variants=settings.variants)
    for contents, batch in _batches(data, settings):
        frames = batch.frames.to(device)
        raw.append(model.dover_model.moments(model.dover_model.forward_stages(frames)))
        defects.append(batch.defects)
        if model.semantic_encoder is not None:
            seen.append(model.semantics(frames[:: settings.variants]))
            said += [_what_is_seen(content) for content in contents]
    if model.config.statistics:
        _fit_statistics(model, torch.cat(raw), torch.cat(defects).to(device), settings.variants)
    if model.semantic_encoder is not None:
        _fit_semantics(model, torch.cat([s for s in seen if s is not None]), said)


def _fit_statistics(model: DOVERModel, moments: Tensor, defects: Tensor, variants: int) -> None:
    pool = model.dover_model.statistics
    pool.fit(moments)
    x = _within(pool.standardise(moments).double(), variants)
    y = _within(defects.double(), variants)
    solution = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], device=x.device), x.T @ y)
    scaled = READOUT_SCALE * solution / (x @ solution).std(dim=0).clamp_min(1e-6)
    count = y.shape[1]
    projection, places = model.dover_model.statistics_projection, model.dover_model.projection
    projection.weight[:count] = scaled.T.float()
    for parameter in (projection.bias, places.weight, places.bias):
        parameter[:count] = 0


def _fit_semantics(model: DOVERModel, seen: Tensor, said: list[str]) -> None:
    """The projection into the space of prompts: class names weighed by their probabilities, and a ridge on features."""
    pooled = lambda texts: F.normalize(model.text_encoder.encode_batch(texts).pooled, dim=1)
    encode = lambda texts: torch.cat([pooled(texts[i : i + 64]) for i in range(0, len(texts), 64)])
    names = encode([f"a {line.split(', ')[0]}" for line in imagenet_classes()])
    classes = names - names.mean(dim=0)
    features = seen[:, : -len(names)]
    center, scale = features.mean(dim=0), features.std(dim=0).clamp_min(1e-2)
    x = ((features - center) / scale).double()
    target = encode(said)
    y = (target - target.mean(dim=0)).double()
    # In the space of the clips, of which there are fewer than features.
    gram = x @ x.T + 10 * RIDGE * torch.eye(len(x), device=x.device)
    weight = (x.T @ torch.linalg.solve(gram, y)).float() / scale[:, None]
    projection = model.fusion.semantic_proj
    projection.weight.copy_(torch.cat([weight, classes]).T)
    projection.bias.copy_(-(center @ weight))
    model.fusion.agreement.weight.copy_(0.5 * torch.randn(len(model.fusion.agreement.weight), 1, device=x.device))


def _what_is_seen(content: Content) -> str:
    """The caption's nouns, for the semantic readout."""
    scene = content.scene
    if isinstance(scene, Scene):
        place = scene.place.words[0]
        return f"a {scene.colour or ''} {scene.thing.name}, {place}" if scene.thing is not None else place
    return content.prompts[0]


def _within(x: Tensor, variants: int) -> Tensor:
    """Rows less the mean of their content's, `variants` rows a content."""
    grouped = x.unflatten(0, (-1, variants))
    return (grouped - grouped.mean(dim=1, keepdim=True)).flatten(0, 1)


def _batches(data: Contents, settings: TrainingSettings) -> Iterator[tuple[list[Content], Batch]]:
    loader = DataLoader(
        data,
        settings.contents,
        num_workers=settings.workers,
        collate_fn=lambda contents: (contents, collate(contents)),
        prefetch_factor=3 if settings.workers else None,
    )
    yield from loader


def _losses(model: DOVERModel, attributes: nn.ModuleDict, batch: Batch, variants: int) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    frames = batch.frames.to(device)
    video = model.dover_model(frames)
    text = model.text_encoder.encode_batch(batch.prompts)
    with torch.no_grad():
        semantics = model.semantics(frames)
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
        semantics=None if semantics is None else by_clip(semantics),
    )
    logits = model.mos_predictor.aspect_logits(fused).unflatten(0, (clips, prompts))
    scores = logits.sigmoid() * (MOS_MAX - MOS_MIN) + MOS_MIN
    targets = batch.targets.to(device)
    column = {name: i for i, name in enumerate(ASPECTS)}
    alignment = column["Alignment"]
    own = [name for name in ASPECTS if name != "Alignment"]
    columns = [column[name] for name in own]
    quality, wanted = scores[..., columns].mean(dim=1), targets[:, 0, columns]
    # True captions are few among the pairs: they weigh as much as all the others together.
    fits = batch.fits.to(device)
    importance = torch.where(fits, 0.5 / fits.sum(), 0.5 / (~fits).sum())
    regression = F.smooth_l1_loss(scores, targets, reduction="none", beta=0.5)
    losses = {
        "quality": len(own) * regression[..., columns].mean(),
        # Between the versions of one scene the defect is all there is to see: this is what teaches the scale.
        "within": 6 * F.smooth_l1_loss(_within(quality, variants), _within(wanted, variants), beta=0.25),
        "rank": torch.stack([rank_loss(quality[:, i], wanted[:, i]) for i in range(len(columns))]).mean(),
        "alignment": (regression[..., alignment] * importance).sum(),
        "matching": matching_loss(2 * logits[..., alignment], fits),
        "weights": weights_loss(weights[:prompts], batch.weights.to(device)),
        "heads": 0.3
        * (
            F.smooth_l1_loss(video["technical_score"][:, 0], targets[:, 0, column["Traditional"]] - 3)
            + F.smooth_l1_loss(video["aesthetic_score"][:, 0], targets[:, 0, column["Aesthetic"]] - 3)
        ),
    }
    named = [
        F.cross_entropy(attributes[name](video["features"]), classes.to(device), ignore_index=-1, reduction="sum")
        / len(classes)
        for name, classes in batch.classes.items()
    ]
    losses["attributes"] = 0.3 * torch.stack(named).sum()
    return losses
