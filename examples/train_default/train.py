"""Teaches everything but the backbone, from what it sees (`features.py`): readouts in closed form, then descent."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dover_eval.models.dover import DOVERModel
from dover_eval.models.heads import ASPECTS, MOS_MAX, MOS_MIN
from dover_eval.models.semantic import imagenet_classes
from dover_eval.models.sights import SIGHTS
from dover_eval.training.losses import weights_loss
from dover_eval.training.synthetic import COLOURS, MOTIONS, NUMBERS, STRESSES
from examples.train_default.contents import BEST, WORST, AnyScene, caption, matches, near_miss, some_stress
from examples.train_default.features import Seen
from examples.train_default.scenes import Scene

logger = logging.getLogger(__name__)

ALIGNMENT = ASPECTS.index("Alignment")
# What a caption says of a thing, and the values.
ATTRIBUTES = {"colour": tuple(COLOURS), "motion": tuple(MOTIONS), "number": tuple(NUMBERS)}
TEXT_RIDGE = 1.0  # captions tell their attributes plainly


@dataclass(frozen=True)
class TrainingSettings:
    """Of the two lessons: quality, then prompts. Each in `steps` of `batch` contents that a frozen backbone has seen.

    ridge: of the closed-form readouts, on standardised statistics; components: how many main components join them;
    emphasis: of colours and motion over a thousand features of pictures, when they tell an attribute.
    quality_noise and noise: added to readouts and to the places that words look at, in standard deviations, against
    learning clips by heart. held_back: the share of contents that only watches.
    """

    quality_steps: int = 3000
    quality_batch: int = 48
    quality_noise: float = 0.6
    steps: int = 400
    batch: int = 16
    seed: int = 0
    learning_rate: float = 1e-3
    ridge: float = 300.0
    components: int = 64
    emphasis: float = 6.0
    noise: float = 1.0
    weight_decay: float = 0.05
    warmup: float = 0.1
    ema_decay: float = 0.995
    held_back: float = 0.05


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
    readouts = int((projection.weight != 0).any(dim=1).sum())
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
    frozen = [video.backbone, video.statistics_projection, model.fusion.quality, model.mos_predictor.quality]
    if model.semantic_encoder is not None:
        frozen.append(model.fusion.semantic_proj)
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
    for part in frozen:
        part.requires_grad_(True)


@torch.no_grad()
def fit_readouts(model: DOVERModel, seen: Sequence[Seen], settings: TrainingSettings) -> None:
    """Start from the best linear guesses: of every defect's strength, and of what the prompt says of a picture.

    Plain descent from random weights predicts a constant for hundreds of steps, because what tells defects apart lies
    in directions of small variance; ridge regression finds those at once, even on a random backbone. It looks at the
    differences between the versions of one scene: between scenes, texture says more than any defect.
    """
    moments, variants = torch.cat([s.moments for s in seen]), len(seen[0].moments)
    wanted = torch.cat([torch.cat([s.bad, s.defects], dim=1) for s in seen])
    _fit_statistics(model, moments, wanted, variants, settings)
    if model.semantic_encoder is not None:
        _fit_semantics(model, seen, settings)


def _fit_statistics(
    model: DOVERModel, moments: Tensor, wanted: Tensor, variants: int, settings: TrainingSettings
) -> None:
    """What is wanted by ridge regression, from differences within scenes and from all, and the main components."""
    pool = model.dover_model.statistics
    pool.fit(moments)
    x = pool.standardise(moments).double()
    y = wanted.double()
    readouts = [_ridge(within(x, variants), within(y, variants), settings.ridge)]
    readouts += [_ridge(x, y - y.mean(dim=0), settings.ridge)]
    count = min(settings.components, *x.shape)
    readouts += [torch.linalg.eigh(x.T @ x).eigenvectors[:, -count:]] if count else []
    weight = torch.cat(readouts, dim=1)
    weight = weight / (x @ weight).std(dim=0).clamp_min(1e-6)
    projection, places = model.dover_model.statistics_projection, model.dover_model.projection
    told = weight.shape[1]
    if told > len(projection.weight):
        raise ValueError(f"expected at least {told} features for as many readouts, got {len(projection.weight)}")
    projection.weight.zero_()
    projection.bias.zero_()
    projection.weight[:told] = weight.T.float()
    for parameter in (places.weight, places.bias):
        parameter[:told] = 0


def _ridge(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    return torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def _fit_semantics(model: DOVERModel, seen: Sequence[Seen], settings: TrainingSettings) -> None:
    """What is to be seen, brought to the words of prompts: nouns, attributes, and the picture encoder's classes."""
    fusion, rng = model.fusion, np.random.default_rng(settings.seed)
    saw = torch.cat([s.semantics for s in seen if s.semantics is not None])
    fusion.semantics.fit(saw)
    x = fusion.semantics.standardise(saw).double()
    versions = len(saw) // len(seen)
    encode = lambda texts: torch.cat([_pooled(model, texts[i : i + 64]) for i in range(0, len(texts), 64)]).double()
    captions = encode([caption(s.scene, rng, some_stress(rng)) for s in seen])
    usual = captions.mean(dim=0)
    captions = captions - usual

    def scaled(to_text: Tensor) -> Tensor:
        """So that every agreement (of the first versions, with captions in another order) counts alike."""
        return to_text / ((x[::versions] @ to_text) * captions.roll(1, dims=0)).sum(dim=1).std().clamp_min(1e-6)

    nouns = encode([_nouns(s.scene) for s in seen]).repeat_interleave(versions, dim=0)
    to_text = scaled(_ridge(x, nouns - nouns.mean(dim=0), 10 * settings.ridge))
    emphasis = torch.ones(x.shape[1], dtype=x.dtype)
    emphasis[-SIGHTS:] = settings.emphasis
    for attribute, values in ATTRIBUTES.items():
        # Read in the picture and in the caption: where both readings go together, the one fits the other.
        told = [i for i, s in enumerate(seen) if _value(s.scene, attribute) in values]
        one_hot = F.one_hot(torch.tensor([values.index(_value(seen[i].scene, attribute)) for i in told])).double()
        one_hot = one_hot - one_hot.mean(dim=0)
        rows = [i * versions + version for i in told for version in range(versions)]
        shown = _ridge(x[rows] * emphasis, one_hot.repeat_interleave(versions, dim=0), 10 * settings.ridge)
        said = _ridge(captions[told], one_hot, TEXT_RIDGE)
        to_text = to_text + scaled((shown * emphasis[:, None]) @ said.T)
    fusion.semantic_proj.weight.copy_(to_text.T)
    fusion.semantic_proj.bias.zero_()
    fusion.usual_text.copy_(usual)

    names = encode([f"a photo of a {line.split(', ')[0]}" for line in imagenet_classes()])
    classes = slice(saw.shape[1] - SIGHTS - len(names), saw.shape[1] - SIGHTS)  # the probabilities, before the sights
    fusion.prior.zero_()
    fusion.prior[:, classes] = (names - names.mean(dim=0)).T.float()
    fusion.agreement.weight.copy_(0.5 * torch.randn(len(fusion.agreement.weight), 1))


def _pooled(model: DOVERModel, texts: Sequence[str]) -> Tensor:
    return F.normalize(model.text_encoder.encode_batch(texts).pooled, dim=1)


def _nouns(scene: AnyScene) -> str:
    """What is to be seen in a picture, without motion and number."""
    if isinstance(scene, Scene):
        place = scene.place.words[0]
        return f"a {scene.colour or ''} {scene.thing.name}, {place}" if scene.thing is not None else place
    return caption(scene, np.random.default_rng(0), "none")


def _value(scene: AnyScene, attribute: str) -> str | None:
    return None if isinstance(scene, Scene) and scene.thing is None else getattr(scene, attribute)


def within(x: Tensor, variants: int) -> Tensor:
    """Rows less the mean of their content's, `variants` rows a content."""
    grouped = x.unflatten(0, (-1, variants))
    return (grouped - grouped.mean(dim=1, keepdim=True)).flatten(0, 1)


def _wanted(seen: Sequence[Seen]) -> Tensor:
    """The scores (N x V,3) of quality that are taught."""
    return BEST - (BEST - WORST) * torch.cat([s.bad for s in seen])


def _scores(logits: Tensor) -> Tensor:
    return logits.sigmoid() * (MOS_MAX - MOS_MIN) + MOS_MIN


def quality_losses(scores: Tensor, wanted: Tensor, variants: int) -> Tensor:
    """Of scores (N x V,3). Between the versions of one scene the defect is all there is to see: it sets the scale."""
    apart = F.smooth_l1_loss(within(scores, variants), within(wanted, variants), beta=0.25)
    return 3 * F.smooth_l1_loss(scores, wanted, beta=0.5) + 6 * apart


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
        "weights": weights_loss(weights, asked),
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
