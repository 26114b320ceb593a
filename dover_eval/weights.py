"""Published checkpoints into our modules, with a report of what went where.

Source: https://github.com/VQAssessment/DOVER (`DOVER_plus_plus.pth`, hub repository `teowu/DOVER`). Those weights are
under the S-Lab License 1.0: non-commercial. Nothing of them is part of this package.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dover_eval.config import DOVERConfig
from dover_eval.wording import one_line

if TYPE_CHECKING:
    from dover_eval.models.dover import DOVERModelSimple

logger = logging.getLogger(__name__)

HUB_REPOSITORY = "teowu/DOVER"
PREFIXES = {"aesthetic_backbone.": "backbone.", "aesthetic_head.": "aesthetic_head."}


class WeightsError(RuntimeError):
    """A checkpoint that does not cover what it should, or does not fit."""


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint filled.

    loaded: our keys that were taken as they are. adapted: our keys and what was done to make them fit. missing: our
    keys that the checkpoint does not have. unused: the checkpoint's keys that have no home here. coverage: the share
    of the model's parameters that was filled, 0 to 1.
    """

    loaded: tuple[str, ...]
    adapted: Mapping[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    coverage: float

    def __str__(self) -> str:
        lines = [
            f"{self.coverage:.1%} of the parameters: {len(self.loaded)} tensors loaded, {len(self.adapted)} adapted, "
            f"{len(self.missing)} missing, {len(self.unused)} unused"
        ]
        lines += [f"  adapted {key}: {how}" for key, how in self.adapted.items()]
        lines += [f"  missing {group}" for group in _groups(self.missing)]
        lines += [f"  unused {group}" for group in _groups(self.unused)]
        return "\n".join(lines)


def load_dover_checkpoint(
    path: str | Path,
    config: DOVERConfig | str | Mapping = "dover-plus-plus",
    *,
    min_coverage: float | None = None,
    fresh: Iterable[str] = (),
) -> tuple[DOVERModelSimple, LoadReport]:
    """A published DOVER checkpoint as a `DOVERModelSimple`, in eval mode, and the report of the loading.

    The file is a state dict, or one under "state_dict"; `.pth` or `.safetensors`. The Swin of the technical branch
    (`technical_backbone.*`) has no home here, and the `technical_head.*` that reads it would mean nothing on other
    features: both are reported unused. What the checkpoint leaves open is NaN, unless `fresh` names its part
    ("technical_head", "projection", ...) to be initialised for training.

    Args:
        min_coverage: the least share of the model's parameters that must be filled, 0 to 1; by default the whole
            backbone and aesthetic head must be there.

    Raises:
        WeightsError: less is covered, or a tensor does not fit; the message names the keys.
        FileNotFoundError: no file at `path`, and none to be had from the hub.
    """
    from dover_eval.models.dover import DOVERModelSimple

    model = DOVERModelSimple(config)
    report = adapt_dover_checkpoint(load_checkpoint_file(resolve_weights(path)), model, min_coverage=min_coverage)
    mark_untrained(model, report, fresh=fresh)
    return model.eval(), report


def resolve_weights(path: str | Path) -> Path:
    """`path` where it exists; else the file of that name in the published repository, from the hub's cache or the hub.

    Raises FileNotFoundError with the reason where neither is to be had.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if path.is_dir() or path.suffix not in (".pth", ".safetensors"):  # no name that could be there
        found = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {found}, expected the .pth or .safetensors file of a published checkpoint")
    from huggingface_hub import hf_hub_download

    logger.info("no file %s, fetching %s from %s", path, path.name, HUB_REPOSITORY)
    try:
        return Path(hf_hub_download(HUB_REPOSITORY, path.name))
    except OSError as error:
        raise FileNotFoundError(
            f"no weights at {path}, and {path.name} could not be fetched from the hub's {HUB_REPOSITORY} "
            f"({one_line(error)}). Download it on a machine with a connection and pass its path, "
            "or pass None for fresh weights to train."
        ) from error


def load_checkpoint_file(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint file; pickles are read with `weights_only=True`, always.

    Raises WeightsError for a file that is no state dict of tensors.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever the bytes make of an unpickler: KeyError, struct.error, AssertionError ...
        kind = "safetensors file" if path.suffix == ".safetensors" else "checkpoint that can be read safely"
        raise WeightsError(f"{path} is no {kind}: {_what_it_is(path) or _reason(error)}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for key, value in state.items()
    ):
        raise WeightsError(f"{path} holds a {type(state).__name__}, expected a state dict of dense tensors by name")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _what_it_is(path: Path) -> str | None:
    """What a failed download left instead of a checkpoint, if recognised."""
    with path.open("rb") as file:
        beginning = file.read(64).lstrip().lower()
    if beginning.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, whose file `git lfs pull` fetches"
    if beginning.startswith((b"<!doctype html", b"<html")):
        return "a web page, as a failed download leaves"
    return None


def _reason(error: Exception) -> str:
    """The part that says what was found: torch writes advice around it, to read the file unsafely."""
    told = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    lines = told.partition(". ")[0].strip().splitlines()
    return lines[0] if lines else type(error).__name__


def adapt_dover_checkpoint(
    state: Mapping[str, Tensor], model: DOVERModelSimple, *, min_coverage: float | None = None
) -> LoadReport:
    """Load a published state dict into `model` in place, or raise and leave it as it was.

    See `load_dover_checkpoint`.
    """
    ours = dict(model.named_parameters())
    fitted: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    unused: list[str] = []
    misfits: list[str] = []
    for key, value in state.items():
        name = next((new + key[len(old) :] for old, new in PREFIXES.items() if key.startswith(old)), None)
        if name is None:
            unused.append(key)
        elif name not in ours:
            misfits.append(f"{key} has no place")
        elif not value.is_floating_point():
            misfits.append(f"{key} is {value.dtype}, expected a floating dtype")
        elif not value.isfinite().all():
            misfits.append(f"{key} holds NaN or infinity")
        elif (fit := _fit(value, ours[name])) is None:
            misfits.append(f"{key} {tuple(value.shape)}, expected {tuple(ours[name].shape)}")
        else:
            fitted[name], how = fit
            if how:
                adapted[name] = how
    if misfits:
        raise WeightsError(f"{len(misfits)} tensors do not fit this configuration: " + "; ".join(misfits[:8]))

    missing = tuple(name for name in ours if name not in fitted)
    coverage = sum(ours[name].numel() for name in fitted) / sum(p.numel() for p in ours.values())
    loaded = tuple(name for name in fitted if name not in adapted)
    if min_coverage is None:
        lacking = [name for name in missing if name.startswith(tuple(PREFIXES.values()))]
        if lacking:
            raise WeightsError(
                f"the checkpoint lacks {len(lacking)} tensors of the backbone and the aesthetic head "
                f"({coverage:.1%} of the model is covered): {', '.join(_groups(lacking))}"
            )
    elif coverage < min_coverage:
        raise WeightsError(
            f"the checkpoint covers {coverage:.1%} of the model's parameters, expected at least {min_coverage:.1%}; "
            f"missing: {', '.join(_groups(missing))}"
        )
    with torch.no_grad():
        for name, value in fitted.items():
            ours[name].copy_(value)
    return LoadReport(loaded, adapted, missing, tuple(unused), coverage)


def mark_untrained(
    model: nn.Module, report: LoadReport, *, parts: Iterable[str] = (), fresh: Iterable[str] = ()
) -> tuple[str, ...]:
    """Fill with NaN what `report` says is missing, and the further `parts` of `model`, save those named in `fresh`.

    A number that comes out of weights that were never trained would look like a score; NaN does not. Returns the
    parts that hold NaN now.
    """
    if isinstance(fresh, str):
        raise TypeError(f"expected fresh to be names of parts, such as [{fresh!r}], got the text {fresh!r}")
    fresh = set(fresh)
    names = [name for name, _ in model.named_parameters()]
    prefix = "dover_model." if any(name.startswith("dover_model.") for name in names) else ""
    missing = {prefix + name for name in report.missing}
    missing |= {name for name in names if name.startswith(tuple(f"{part}." for part in parts))}
    known = {_part(name) for name in missing}
    if fresh - known:
        raise ValueError(f"fresh names {sorted(fresh - known)}; the parts left open are {sorted(known)}")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in missing and _part(name) not in fresh:
                parameter.fill_(torch.nan)
    left = tuple(sorted(known - fresh))
    if left:
        logger.warning("no weights for %s: what they give is NaN until they are trained", ", ".join(left))
    return left


def untrained_parts(model: nn.Module) -> tuple[str, ...]:
    """The parts of `model` that hold NaN, as `mark_untrained` left them."""
    return tuple(sorted({_part(name) for name, p in model.named_parameters() if torch.isnan(p.flatten()[:1]).any()}))


def load_safetensors_strict(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint of our own: every key there, none besides, of any floating dtype."""
    state = load_checkpoint_file(path)
    ours = model.state_dict()
    missing, unexpected = sorted(set(ours) - set(state)), sorted(set(state) - set(ours))
    misfits = [k for k in ours if k in state and ours[k].shape != state[k].shape]
    kinds = [k for k in ours if k in state and ours[k].is_floating_point() != state[k].is_floating_point()]
    if missing or unexpected or misfits or kinds:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: missing {missing[:8]} ({len(missing)}), "
            f"unexpected {unexpected[:8]} ({len(unexpected)}), of another shape {misfits[:8]} ({len(misfits)}), "
            f"integers for floats or the reverse {kinds[:8]} ({len(kinds)})"
        )
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsError(f"{path} holds NaN or infinity in {broken[:8]} ({len(broken)}): parts never trained?")
    model.load_state_dict(state)


def _fit(value: Tensor, target: Tensor) -> tuple[Tensor, str] | None:
    """`value` in the shape of `target` and how it was made so, or None where it cannot be.

    Only the temporal size of a 3D kernel may differ. A patchify kernel (its stride is its size) keeps its response to
    a still clip: summed over time, or spread evenly. A depthwise kernel is centred: zeros around it, or its middle.
    """
    if value.shape == target.shape:
        return value, ""
    same_but_time = (
        value.ndim == target.ndim == 5 and value.shape[:2] + value.shape[3:] == target.shape[:2] + target.shape[3:]
    )
    if not same_but_time:
        return None
    before, after = value.shape[2], target.shape[2]
    change = f"temporal size {before} to {after}"
    if target.shape[1] != 1:
        total = value.sum(dim=2, keepdim=True)
        return total.expand(target.shape) / after, f"{change}, summed over time" + (" and spread" if after > 1 else "")
    margin = abs(before - after) // 2
    if before > after:
        return value[:, :, margin : margin + after], f"{change}, the centre kept"
    fitted = torch.zeros(target.shape, dtype=value.dtype)
    fitted[:, :, margin : margin + before] = value
    return fitted, f"{change}, centred"


def _part(name: str) -> str:
    return name.removeprefix("dover_model.").split(".")[0]


def _groups(keys: Iterable[str]) -> list[str]:
    """Keys by their part, with counts: a Swin's 300 keys are one line."""
    counts: dict[str, list[str]] = {}
    for key in keys:
        counts.setdefault(_part(key), []).append(key)
    return [f"{part}.* ({len(k)})" if len(k) > 4 else ", ".join(k) for part, k in counts.items()]
