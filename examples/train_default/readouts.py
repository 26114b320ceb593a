"""What is known in closed form before anything is learned by descent: which statistics tell which defect, and which
features of pictures go with which words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dover_eval.models.dover import DOVERModel
from dover_eval.models.semantic import imagenet_classes
from dover_eval.models.sights import COLOUR_SIGHTS, MOTION_SIGHTS, SIGHTS
from dover_eval.training.synthetic import BACKGROUNDS, COLOURS, MOTIONS, NUMBERS
from examples.train_default.contents import AnyScene, caption, some_stress
from examples.train_default.features import Seen
from examples.train_default.scenes import LIGHTS, Scene
from examples.train_default.settings import TrainingSettings

# What a caption may say beside things and places, and the values.
ATTRIBUTES = {"colour": tuple(COLOURS), "motion": tuple(MOTIONS), "number": tuple(NUMBERS), "light": tuple(LIGHTS)}
TEXT_RIDGE = 1.0  # captions tell their attributes plainly


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
        fit_semantics(model, seen, settings)


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
    if len(x) < x.shape[1]:  # the same, by the smaller of both matrices
        return x.T @ torch.linalg.solve(x @ x.T + ridge * torch.eye(len(x), dtype=x.dtype), y)
    return torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def fit_semantics(model: DOVERModel, seen: Sequence[Seen], settings: TrainingSettings) -> None:
    """What is to be seen, brought to the words of prompts: things and places, attributes, the encoder's own classes."""
    fusion, rng = model.fusion, np.random.default_rng(settings.seed)
    saw = torch.cat([s.semantics for s in seen if s.semantics is not None])
    fusion.semantics.fit(saw)
    x = fusion.semantics.standardise(saw).double().unflatten(0, (len(seen), -1))  # (contents,versions,features)
    captions = _encoded(model, [caption(s.scene, rng, some_stress(rng)) for s in seen])
    usual = captions.mean(dim=0)
    fusion.usual_text.copy_(usual)
    _fit_things_and_places(model, seen, x, captions - usual, settings)
    _fit_concepts(model, seen, x, captions - usual, settings)
    _fit_prior(model)
    # To begin with the three agreements count alike; the head that reads them bends them.
    fusion.agreement.weight.copy_(0.5 * torch.randn(len(fusion.agreement.weight), 1))


def _fit_things_and_places(
    model: DOVERModel, seen: Sequence[Seen], x: Tensor, captions: Tensor, settings: TrainingSettings
) -> None:
    """From the picture encoder's features to words for the thing, and apart from it to words for its place: of one
    sentence for both the place, which fills the picture, would take most."""
    layer, encoder = model.fusion.semantic_proj, x[..., :-SIGHTS]
    layer.weight.zero_()
    layer.bias.zero_()
    for told in ([_thing_words(s.scene) for s in seen], [_place_words(s.scene) for s in seen]):
        chosen = [i for i, words in enumerate(told) if words is not None]
        to_text = _readout(encoder[chosen], _encoded(model, [told[i] for i in chosen]), settings.semantic_ridge)
        layer.weight[:, :-SIGHTS] += (to_text / _spread(encoder[:, 0] @ to_text, captions)).T.float()


def _fit_concepts(
    model: DOVERModel, seen: Sequence[Seen], x: Tensor, captions: Tensor, settings: TrainingSettings
) -> None:
    """Values of attributes, read in the picture and in the caption: where both readings go together, both fit."""
    shown, named = model.fusion.concepts_shown.weight, model.fusion.concepts_named.weight
    shown.zero_()
    named.zero_()
    ends = np.cumsum([len(values) for values in ATTRIBUTES.values()])
    for end, (attribute, values) in zip(ends, ATTRIBUTES.items(), strict=True):
        chosen = [i for i, s in enumerate(seen) if _value(s.scene, attribute) in values]
        if not chosen:
            continue
        indices = torch.tensor([values.index(_value(seen[i].scene, attribute)) for i in chosen])
        one_hot = F.one_hot(indices, len(values)).double()
        weight = _looked_at(attribute, x.shape[-1], settings.emphasis)
        used = weight > 0
        looked = x[..., used] * weight[used]
        seeing = _readout(looked[chosen], one_hot, settings.semantic_ridge)
        reading = _ridge(captions[chosen], one_hot - one_hot.mean(dim=0), TEXT_RIDGE)
        seeing = seeing * settings.concept_gain / _spread(looked[:, 0] @ seeing, captions @ reading)
        concepts = slice(end - len(values), end)
        shown[concepts, used] = (seeing * weight[used][:, None]).T.float()
        named[concepts] = reading.T.float()


def _fit_prior(model: DOVERModel) -> None:
    """The words for ImageNet's classes, each by its probability."""
    prior = model.fusion.prior
    names = _encoded(model, [f"a photo of a {line.split(', ')[0]}" for line in imagenet_classes()])
    prior.zero_()
    prior[:, -SIGHTS - len(names) : -SIGHTS] = (names - names.mean(dim=0)).T.float()


def _looked_at(attribute: str, size: int, emphasis: float) -> Tensor:
    """How much each of `size` features counts where an attribute is read: colours alone tell a colour and day from
    night, motion alone a motion; how many things there are shows in both motion and picture."""
    weight = torch.zeros(size, dtype=torch.double)
    sights = weight[-SIGHTS:]
    sights[COLOUR_SIGHTS if attribute in ("colour", "light") else MOTION_SIGHTS] = 1
    if attribute == "number":
        weight *= emphasis
        weight[:-SIGHTS] = 1
    return weight


def _spread(shown: Tensor, named: Tensor) -> Tensor:
    """How far agreements with captions in another order vary: what is divided by it counts as much as the next."""
    return (shown * named.roll(1, dims=0)).sum(dim=1).std().clamp_min(1e-6)


def _readout(x: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """Of `wanted` (contents,K) from features (contents,versions,M): (M,K)."""
    wanted = (wanted - wanted.mean(dim=0)).repeat_interleave(x.shape[1], dim=0)
    return _ridge(x.flatten(0, 1), wanted, ridge)


def _encoded(model: DOVERModel, texts: Sequence[str]) -> Tensor:
    """(N,text_dim), of unit length, fp64."""
    batches = [model.text_encoder.encode_batch(texts[i : i + 64]).pooled for i in range(0, len(texts), 64)]
    return F.normalize(torch.cat(batches), dim=1).double()


def _thing_words(scene: AnyScene) -> str | None:
    if isinstance(scene, Scene):
        return f"a {scene.thing.name}" if scene.thing is not None else None
    return f"a {scene.shape}"


def _place_words(scene: AnyScene) -> str:
    return scene.place.words[0] if isinstance(scene, Scene) else BACKGROUNDS[scene.background][0]


def _value(scene: AnyScene, attribute: str) -> str | None:
    bare = isinstance(scene, Scene) and scene.thing is None and attribute != "light"
    return None if bare else getattr(scene, attribute, None)


def within(x: Tensor, variants: int) -> Tensor:
    """Rows less the mean of their content's, `variants` rows a content."""
    grouped = x.unflatten(0, (-1, variants))
    return (grouped - grouped.mean(dim=1, keepdim=True)).flatten(0, 1)
