"""Where weights come from: nowhere, a checkpoint of our own, the published DOVER++, or a ConvNeXt of ImageNet.

ImageNet layouts: timm's (`convnext_tiny`, Apache-2.0 code, weights under their own cards) and torchvision's
(BSD-3-Clause). Inflation: Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dover_eval.hub import EMBEDDED, file_of
from dover_eval.models.convnext3d import ConvNeXt3D
from dover_eval.models.dover import DOVERModel
from dover_eval.training.settings import StartSettings, TrainSettings
from dover_eval.weights import (
    LoadReport,
    WeightsError,
    adapt_dover_checkpoint,
    load_checkpoint_file,
    resolve_weights,
)

logger = logging.getLogger(__name__)

RECORD = "training.json"  # of a run, in the checkpoint's folder
PUBLISHED = "the published DOVER++"  # whose licence holds for all that began with it

CLASSIFIERS = {"timm": "head.fc.", "torchvision": "classifier.2."}
TIMM = (
    (r"stem\.0\.(.+)", r"downsample_layers.0.0.\1"),
    (r"stem\.1\.(.+)", r"downsample_layers.0.1.\1"),
    (r"stages\.(\d)\.downsample\.(\d)\.(.+)", r"downsample_layers.\1.\2.\3"),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.(.+)", r"stages.\1.\2.dwconv.\3"),
    (r"stages\.(\d)\.blocks\.(\d+)\.norm\.(.+)", r"stages.\1.\2.norm.\3"),
    (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc(\d)\.(.+)", r"stages.\1.\2.pwconv\3.\4"),
    (r"stages\.(\d)\.blocks\.(\d+)\.gamma", r"stages.\1.\2.gamma"),
    (r"head\.norm\.(.+)", r"norm.\1"),
)
BLOCK = {"0": "dwconv", "2": "norm", "3": "pwconv1", "5": "pwconv2"}  # torchvision's numbers


def start_model(settings: TrainSettings) -> tuple[DOVERModel, str]:
    """The model that a run begins with, and a sentence on where its weights come from.

    What the source leaves open is drawn from torch's random state, which the caller seeds.

    Raises WeightsError, FileNotFoundError or TextEncoderError where the source does not cover what it should, and
    SettingsError where `settings.model` does not fit a checkpoint's configuration, or the card not its licence.
    """
    model, told = _started(settings)
    if PUBLISHED in told:
        settings.check_licence()
    if not settings.training.train_text_encoder:  # of a checkpoint that has one of its own
        model.text_encoder.requires_grad_(False)
    return model, told


def _started(settings: TrainSettings) -> tuple[DOVERModel, str]:
    start, trained = settings.start, settings.training.train_text_encoder
    if start.kind == "checkpoint":
        return _checkpoint(settings)
    assert start.weights is not None or start.kind == "fresh"
    model = DOVERModel(None, config=settings.model_config(), train_text_encoder=trained)
    if start.kind == "fresh":
        return model, "fresh weights"
    if start.kind == "dover":
        path = resolve_weights(str(start.weights))
        report = adapt_dover_checkpoint(load_checkpoint_file(path), model.dover_model)
        logger.info("DOVER++: %s", report)
        return model, f"the backbone and aesthetic head of {PUBLISHED} ({path.name}), the rest fresh"
    path = _imagenet_file(start)
    layout, report = inflate_convnext(load_checkpoint_file(path), model.dover_model.backbone, start.inflation)
    logger.info("ImageNet ConvNeXt: %s", report)
    return (
        model,
        f"a ConvNeXt of ImageNet ({_called(start)}, {layout} layout, inflated by {start.inflation}), the rest fresh",
    )


def inflate_convnext(
    state: Mapping[str, Tensor], backbone: ConvNeXt3D, inflation: str = "centre"
) -> tuple[str, LoadReport]:
    """Load a two-dimensional ConvNeXt of timm's or torchvision's layout into `backbone`; the layout and a report.

    A kernel (O,I,h,w) becomes (O,I,t,h,w): "mean" spreads it evenly over time; "centre" puts it in the middle of zeros,
    so that a clip of one repeated frame gives that frame's features exactly. A kernel that tiles time (the stem, whose
    size is its stride) has no middle, and is spread either way. Input planes beside RGB begin with no influence.

    Raises WeightsError for another layout, other sizes, or missing tensors.
    """
    layouts = {"timm": "stem.", "torchvision": "features."}
    layout = next((name for name, first in layouts.items() if any(key.startswith(first) for key in state)), None)
    if layout is None:
        found = ", ".join(list(state)[:4])
        raise WeightsError(f"no ConvNeXt of timm (stem.*, stages.*) or torchvision (features.*): it has {found}")
    rename = _timm_name if layout == "timm" else _torchvision_name
    ours = dict(backbone.named_parameters())
    filled: dict[str, str] = {}
    unused, misfits = [], []
    for key, value in state.items():
        name = rename(key)
        if name is None or name not in ours:
            if not key.startswith(CLASSIFIERS[layout]):
                misfits.append(f"{key} has no place here")
            unused.append(key)
            continue
        fitted, how = _inflate(value.float(), ours[name], inflation)
        if fitted.shape != ours[name].shape:
            misfits.append(f"{key} {tuple(value.shape)} for {name} {tuple(ours[name].shape)}")
            continue
        with torch.no_grad():
            ours[name].copy_(fitted)
        filled[name] = how
    missing = tuple(name for name in ours if name not in filled)
    if misfits or missing:
        raise WeightsError(
            f"this {layout} ConvNeXt does not fit: {'; '.join(misfits[:4])} ({len(misfits)} in all); "
            f"missing {', '.join(missing[:4]) or 'nothing'} ({len(missing)}). Its sizes are those of the preset tiny"
        )
    loaded = tuple(name for name, how in filled.items() if not how)
    return layout, LoadReport(loaded, {name: how for name, how in filled.items() if how}, (), tuple(unused), 1.0)


def _inflate(value: Tensor, target: Tensor, inflation: str) -> tuple[Tensor, str]:
    """`value` in the dimensions of `target`, and what was done."""
    if target.ndim != 5:
        return value.flatten() if target.ndim == 1 else value, ""  # torchvision's layer scale is (C,1,1)
    if value.ndim != 4:
        return value, ""
    frames, planes = target.shape[2], target.shape[1] - value.shape[1]
    if planes > 0:
        value = torch.cat([value, value.new_zeros(value.shape[0], planes, *value.shape[2:])], dim=1)
    depthwise = target.shape[1] == 1
    if inflation == "centre" and depthwise:
        inflated = value.new_zeros(*value.shape[:2], frames, *value.shape[2:])
        inflated[:, :, frames // 2] = value
    else:
        inflated = value[:, :, None].expand(-1, -1, frames, -1, -1) / frames
    return inflated, f"inflated to {frames} in time, {inflation if depthwise else 'mean'}"


def _timm_name(key: str) -> str | None:
    for pattern, replacement in TIMM:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return None


def _torchvision_name(key: str) -> str | None:
    """features: 0 the stem, then a stage and a downsampling by turns."""
    if key.startswith("classifier.0."):
        return key.replace("classifier.0.", "norm.")
    match = re.fullmatch(r"features\.(\d)\.(\d+)\.(.+)", key)
    if match is None:
        return None
    layer, index, rest = int(match[1]), match[2], match[3]
    if layer % 2 == 0:
        return f"downsample_layers.{layer // 2}.{index}.{rest}"
    block = f"stages.{layer // 2}.{index}"
    if rest == "layer_scale":
        return f"{block}.gamma"
    inner = re.fullmatch(r"block\.(\d)\.(weight|bias)", rest)
    return f"{block}.{BLOCK[inner[1]]}.{inner[2]}" if inner and inner[1] in BLOCK else None


def _called(start: StartSettings) -> str:
    """The weights without the folders of this machine, which are nothing for a card."""
    path = Path(str(start.weights)).expanduser()
    return path.name if path.exists() else str(start.weights)


def _checkpoint(settings: TrainSettings) -> tuple[DOVERModel, str]:
    start = settings.start
    told = f"the checkpoint {_called(start)}"
    source = EMBEDDED if start.weights == "default" else str(start.weights)
    model = DOVERModel.from_pretrained(source)
    if began := _start_of(source):
        told += f", which began with {began}"
    trained = settings.training.train_text_encoder
    config = settings.model_config(model.config)
    if config == model.config and not trained:
        return model, told
    changed = DOVERModel(None, config=config, train_text_encoder=trained)
    state = changed.state_dict() | model.state_dict()  # a text encoder to train now begins as it is
    try:
        changed.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{start.weights} does not fit with model: {dict(settings.model)}: {error}") from error
    left_fresh = [name for name in set(state) - set(model.state_dict()) if not name.startswith("text_encoder.")]
    if left_fresh:
        told += (
            f"; fresh for {dict(settings.model)} {', '.join(sorted(left_fresh)[:4])} ({len(left_fresh)} tensors in all)"
        )
    return changed, told


def _start_of(source: str | Path) -> str | None:
    """What a checkpoint began with, as its own training recorded it; None where it has no such record."""
    try:
        record = json.loads(file_of(source, RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise WeightsError(f"{source}: its {RECORD} cannot be read ({error})") from error
    return record.get("start") if isinstance(record, dict) else None


def _imagenet_file(start: StartSettings) -> Path:
    path = Path(str(start.weights)).expanduser()
    return path if path.is_file() else file_of(str(start.weights), start.file)
