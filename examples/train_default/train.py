"""Teaches everything but the backbone, from what it sees (`features.py`): after the readouts in closed form two lessons
by descent, quality and prompts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dover_eval.models.dover import DOVERModel
from dover_eval.opinion import ASPECTS, MOS_MAX, MOS_MIN
from dover_eval.training.synthetic import STRESSES
from examples.train_default.contents import BEST, WORST, caption, matches, near_miss, some_stress
from examples.train_default.features import Seen
from examples.train_default.readouts import fit_readouts, within
from examples.train_default.settings import TrainingSettings

logger = logging.getLogger(__name__)

ALIGNMENT = ASPECTS.index("Alignment")


def start_from(model: DOVERModel, path: Path) -> str:
    """Take from a safetensors file every tensor that has a place of its shape in `model`; says which had none."""
    given, own = load_file(path), model.state_dict()
    fitting = {name: x.float() for name, x in given.items() if name in own and own[name].shape == x.shape}
    model.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of {len(own)} tensors from {path}; fresh: {', '.join(sorted(set(own) - set(fitting)))}"


def train(model: DOVERModel, seen: Sequence[Seen], settings: TrainingSettings) -> DOVERModel:
    """Train `model` in place; it ends with the running mean of its weights, in eval mode."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(seen))
    held = max(2, round(len(seen) * settings.held_back))
    watching, learning = [seen[i] for i in order[:held]], [seen[i] for i in order[held:]]
    fit_readouts(model, learning, settings)
    learn_quality(model, learning, watching, settings)
    learn_prompts(model, learning, watching, rng, settings)
    return model.eval()


def learn_quality(
    model: DOVERModel, learning: Sequence[Seen], watching: Sequence[Seen], settings: TrainingSettings
) -> None:
    """From the closed-form readouts alone to the three scores that do not ask for the prompt: seconds of descent.

    From nothing else, lest it learns the clips by heart.
    """
    quality, head = model.fusion.quality, model.mos_predictor.quality
    projection = model.dover_model.statistics_projection
    readouts = _readouts(model)
    with torch.no_grad():
        quality[0].weight[:, readouts:] = 0

    def told(seen: Sequence[Seen]) -> tuple[Tensor, Tensor]:
        moments = torch.stack([s.moments for s in seen])
        with torch.no_grad():
            return projection(model.dover_model.statistics.standardise(moments)), _wanted(seen)

    def losses(x: Tensor, wanted: Tensor) -> Tensor:
        return quality_losses(_scores(head(quality(x))).flatten(0, 1), wanted, x.shape[1])

    x, wanted = told(learning)
    parameters = [*quality.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.quality_steps)
    loss = torch.zeros(())
    for _ in range(settings.quality_steps):
        chosen = torch.randint(len(x), (settings.quality_batch,))
        noise = torch.zeros_like(x[chosen])
        noise[..., :readouts] = settings.quality_noise * torch.randn(*noise.shape[:2], readouts)
        loss = losses(x[chosen] + noise, wanted.unflatten(0, x.shape[:2])[chosen].flatten(0, 1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        logger.info("quality: %.3f, held back %.3f", loss, losses(*told(watching)))


def learn_prompts(
    model: DOVERModel,
    learning: Sequence[Seen],
    watching: Sequence[Seen],
    rng: np.random.Generator,
    settings: TrainingSettings,
) -> None:
    """Alignment and the weights of the aspects; the scores of quality stay as they were learned."""
    model.train()
    video = model.dover_model
    # The features that quality reads are the readouts alone: what places say to words must not creep in beside them.
    readouts = _readouts(model)
    kept = lambda gradient: torch.cat([torch.zeros_like(gradient[:readouts]), gradient[readouts:]])
    hooks = [parameter.register_hook(kept) for parameter in video.projection.parameters()]
    frozen = [video.backbone, video.statistics_projection, model.fusion.quality, model.mos_predictor.quality]
    if model.semantic_encoder is not None:
        frozen += [model.fusion.semantic_proj, model.fusion.concepts_shown, model.fusion.concepts_named]
        model.fusion.semantics.eval()  # as it was fitted
    for part in frozen:
        part.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, settings.steps, pct_start=settings.warmup
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)
    started = time.monotonic()
    for step in range(settings.steps):
        chosen = [learning[i] for i in rng.choice(len(learning), settings.batch, replace=False)]
        losses = losses_of(model, chosen, rng, settings.noise)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if step % 100 == 99 or step == settings.steps - 1:
            with torch.no_grad():
                watched = losses_of(average.module, watching[:60], np.random.default_rng(0), 0.0)
            said = lambda parts: " ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            logger.info("step %d, %.0f s: %s", step + 1, time.monotonic() - started, said(losses))
            logger.info("  held back: %s", said(watched))
    model.load_state_dict(average.module.state_dict())
    for hook in hooks:
        hook.remove()
    for part in frozen:
        part.requires_grad_(True)


def _readouts(model: DOVERModel) -> int:
    """How many of the first features are readouts in closed form; that of a defect that was never shown is zero."""
    used = (model.dover_model.statistics_projection.weight != 0).any(dim=1)
    return int(used.nonzero().max()) + 1


def _wanted(seen: Sequence[Seen]) -> Tensor:
    """The scores (N x V,3) of quality that are taught."""
    return BEST - (BEST - WORST) * torch.cat([s.bad for s in seen])


def _scores(logits: Tensor) -> Tensor:
    return logits.sigmoid() * (MOS_MAX - MOS_MIN) + MOS_MIN


def quality_losses(scores: Tensor, wanted: Tensor, variants: int) -> Tensor:
    """Of scores (N x V,3). Between the versions of one scene the defect is all there is to see, so it sets the scale.

    Where levels of different scenes weigh more, a dark place is taken for an underexposed one.
    """
    apart = F.smooth_l1_loss(within(scores, variants), within(wanted, variants), beta=0.25)
    return F.smooth_l1_loss(scores, wanted, beta=0.5) + 8 * apart


def losses_of(model: DOVERModel, seen: Sequence[Seen], rng: np.random.Generator, noise: float) -> dict[str, Tensor]:
    """Every version of every content under a right caption; one of them under a nearly right and another content's."""
    variants, count = len(seen[0].moments), len(seen)
    own = np.arange(count)
    described = [s.scene for s in seen] + [near_miss(s.scene, rng) for s in seen]
    stresses = [some_stress(rng) for _ in described]
    text = model.text_encoder.encode_batch([caption(d, rng, s) for d, s in zip(described, stresses, strict=True)])
    others = (own + rng.integers(1, count, count)) % count
    one = own * variants + rng.integers(0, variants, count)  # version of each content
    # Of every row, first those under right captions: its version, and its caption among `described`.
    clip = torch.from_numpy(np.concatenate([np.arange(count * variants), one, one]))
    which = torch.from_numpy(np.concatenate([own.repeat(variants), count + own, others]))
    share = torch.tensor(
        [matches(seen[i].scene, described[j]) for i, j in zip((clip // variants).tolist(), which.tolist(), strict=True)]
    )
    aligned = torch.where(share == 1, torch.tensor(BEST), WORST + 2.4 * share)

    video = video_of(model, seen)
    tokens = video["tokens"] + noise * video["tokens"].std() * torch.randn_like(video["tokens"])
    semantics = None if seen[0].semantics is None else torch.cat([s.semantics for s in seen if s.semantics is not None])
    fused, weights = model.fusion(
        tokens[clip],
        text.tokens[which],
        dover_pooled=video["features"][clip],
        text_pooled=text.pooled[which],
        text_mask=text.mask[which],
        semantics=None if semantics is None else semantics[clip],
    )
    logits = model.mos_predictor.aspect_logits(fused)[:, ALIGNMENT]
    alignment = _scores(logits)
    right, wanted = slice(count * variants), _wanted(seen)
    near = count * variants + own
    choices = logits[torch.from_numpy(np.stack([one, near, near + count], axis=1))]
    asked = torch.tensor([STRESSES[stress][0] for stress in stresses])[which]
    return {
        "alignment": F.smooth_l1_loss(alignment, aligned, beta=0.5),
        "matching": F.cross_entropy(2 * choices, torch.zeros(count, dtype=torch.long)),
        # A version is no other scene: its defects must not move Alignment.
        "invariance": 4 * within(alignment[right], variants).abs().mean(),
        "weights": F.kl_div(weights.clamp_min(1e-8).log(), asked, reduction="batchmean"),
        "heads": 0.3
        * (
            F.smooth_l1_loss(video["technical_score"], wanted[:, 0] - 3)
            + F.smooth_l1_loss(video["aesthetic_score"], wanted[:, 1] - 3)
        ),
    }


def video_of(model: DOVERModel, seen: Sequence[Seen]) -> dict[str, Tensor]:
    """What `DOVERModelSimple` makes of its backbone's output, from what was kept of that."""
    video = model.dover_model
    pooled = torch.cat([s.pooled for s in seen])
    places = torch.cat([s.places for s in seen]).float()
    standard = video.statistics.standardise(torch.cat([s.moments for s in seen]))
    at_places = lambda head, x: head(x.transpose(1, 2)[..., None, None]).mean(dim=(1, 2, 3, 4))
    return {
        "features": video.projection(pooled[:, 0]) + video.statistics_projection(standard),
        "tokens": video.projection(places),
        "aesthetic_score": at_places(video.aesthetic_head, places),
        "technical_score": at_places(video.technical_head, pooled[:, -1:]),
    }
