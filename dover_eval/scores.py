"""What a scorer gives back: values with their names, errors and fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dover_eval.opinion import ASPECTS, SCORE_NAMES


@dataclass(frozen=True)
class Fingerprint:
    """Everything that decides a score besides the bytes of the clip and the prompt.

    weights: sha256 of the model's weights. configuration: of what reads them otherwise than by default. text_encoder,
    semantic_encoder: sha256 of their weights. num_frames, frame_size, windows, views: the sampling. dtype: of the
    computation. device: its kind. kernel: the path, or paths, of the depthwise convolutions. torch: its version.
    decoder: PyAV's, whose wheel carries FFmpeg. calibration: sha256 of the calibration in use, if any.
    """

    weights: str
    configuration: str
    text_encoder: str
    num_frames: int
    frame_size: tuple[int, int]
    dtype: str
    device: str
    kernel: str
    torch: str
    decoder: str
    windows: int = 1
    views: tuple[str, ...] = ("squash",)
    semantic_encoder: str | None = None
    calibration: str | None = None

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits: equal where two runs are to give equal scores."""
        told = {name: value for name, value in asdict(self).items() if value is not None}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return self.digest


@dataclass(frozen=True, eq=False)
class VideoScores:
    """Scores of N clips, on the CPU.

    values: (N,5) float32 in [1,5], columns `names`; a row of NaN where `errors` has a reason.
    aesthetic_score, technical_score: (N,), DOVER's own heads, unbounded.
    quality_weights: (N,4), what the prompts weigh each aspect with; rows sum to one.
    errors: N reasons or None. sources, prompts: N file names (or positions) and prompts.
    """

    values: Tensor
    aesthetic_score: Tensor
    technical_score: Tensor
    quality_weights: Tensor
    sources: tuple[str, ...]
    prompts: tuple[str, ...]
    errors: tuple[str | None, ...]
    fingerprint: Fingerprint
    names: ClassVar[tuple[str, ...]] = SCORE_NAMES

    def __post_init__(self) -> None:
        count = len(self.sources)
        shapes = {
            "values": (count, len(self.names)),
            "aesthetic_score": (count,),
            "technical_score": (count,),
            "quality_weights": (count, len(ASPECTS)),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape or value.dtype != torch.float32:
                raise ValueError(f"expected {name} {shape} float32, got {tuple(value.shape)} {value.dtype}")
        for name in ("prompts", "errors"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"expected {count} {name}, got {len(getattr(self, name))}")
        numbers = [self.values, self.aesthetic_score[:, None], self.technical_score[:, None], self.quality_weights]
        finite = torch.cat(numbers, dim=1).isfinite().all(dim=1).tolist()
        told = f"the model gave a score that is not finite, in {self.fingerprint.dtype}"
        errors = tuple(e if e or fine else told for e, fine in zip(self.errors, finite, strict=True))
        object.__setattr__(self, "errors", errors)
        if not all(finite):
            good = torch.tensor(finite, device=self.values.device)[:, None]
            object.__setattr__(self, "values", torch.where(good, self.values, torch.nan))

    def column(self, name: str) -> Tensor:
        """(N,) float32 in [1,5] of the score called `name`."""
        if name not in self.names:
            raise ValueError(f"expected one of {', '.join(self.names)}, got {name!r}")
        return self.values[:, self.names.index(name)]

    @property
    def overall(self) -> Tensor:
        """(N,) float32 in [1,5]."""
        return self.column("Overall")

    @property
    def ok(self) -> bool:
        """Whether every clip was scored."""
        return not any(self.errors)

    def __len__(self) -> int:
        return len(self.sources)

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary a clip, fit for JSON: scores are None where there is an error."""
        return [self._row(i) for i in range(len(self))]

    def _row(self, i: int) -> dict[str, Any]:
        failed = self.errors[i] is not None
        number = lambda tensor: None if failed else round(tensor.item(), 6)
        row: dict[str, Any] = {"video_name": self.sources[i], "Prompt": self.prompts[i]}
        row |= {name: number(self.values[i, j]) for j, name in enumerate(self.names)}
        row |= {
            "aesthetic_score": number(self.aesthetic_score[i]),
            "technical_score": number(self.technical_score[i]),
        }
        row |= {f"weight_{name}": number(self.quality_weights[i, j]) for j, name in enumerate(ASPECTS)}
        return row | {"error": self.errors[i], "fingerprint": self.fingerprint.digest}

    def __repr__(self) -> str:
        failed = sum(error is not None for error in self.errors)
        head = f"VideoScores({len(self)} clips, {failed} failed, fingerprint {self.fingerprint})"
        lines = [head, "  " + "  ".join(f"{name:>11}" for name in self.names)]
        for i in range(min(len(self), 10)):
            if self.errors[i]:
                lines.append(f"  {self.sources[i]}: {self.errors[i]}")
            else:
                lines.append("  " + "  ".join(f"{v:11.3f}" for v in self.values[i].tolist()) + f"  {self.sources[i]}")
        if len(self) > 10:
            lines.append(f"  and {len(self) - 10} more")
        return "\n".join(lines)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
