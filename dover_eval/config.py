"""Every size of a model and every setting of its sampling, in one serialisable dataclass."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIGNALS = ("rgb", "highpass", "difference", "global_difference")
MOST = 16_384  # of any whole number; sizes beyond would be made until memory ends
VIEWS = ("squash", "fragments", "pictures")

QUARTERS = 4  # of a picture, which take the places of as many frames

BGE_LARGE = "BAAI/bge-large-en-v1.5"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
EFFICIENTNET_LITE0 = "efficientnet-lite0"


def usual_batch_size(device: str) -> int:
    """Clips that go through the model together, on a kind of device such as "cuda", where nobody says how many.

    One on a CPU: eight took 0.8 to 1.2 times as long a clip there, by the model
    (bench/results/score-amd-epyc-2-threads.json), and one is the same to the bit whatever else is scored.
    """
    return 1 if device == "cpu" else 8


@dataclass(frozen=True)
class DOVERConfig:
    """Sizes and settings of `DOVERModel`; `config.json` of a checkpoint holds exactly these fields.

    Backbone
        dims, depths: channels and blocks of the four stages.
        stem_kernel: kernel and stride of the stem, (time, height, width).
        temporal_kernels: k_t of the blocks of a stage, repeated; the published weights use (1, 3, 1).
        layer_scale_init: first value of every block's layer scale.
        drop_path_rate: stochastic depth, rising linearly to this over the blocks, in training only.
        signals: what the stem sees: "rgb", and planes computed from it (see `dover_eval.models.signals`).
    Heads
        head_hidden: hidden channels of the aesthetic and the technical head.
        feature_dim: D of the features that go into the fusion.
        statistics: whether the features read, beside the mean of the last stage, moments of the others.
        token_grid: most (time, height, width) places that the cross-attention looks at.
        fusion_dim, mos_dim: hidden sizes of the fusion and of the MOS head.
    Text
        text_encoder_name, text_dim: the encoder and its width.
        text_encoder_sha256: of the encoder's weights file; a checkpoint refuses any other. None: not trained yet.
        text_encoder_trained: whether the checkpoint holds text encoder weights of its own, trained with the model.
    Semantics
        semantic_encoder_name: a frozen picture classifier that tells what is to be seen (see
            `dover_eval.models.semantic`); None for none, as in the plain specification.
        semantic_encoder_sha256: of its weights; a checkpoint refuses any other. None: not trained yet.
    Sampling
        num_frames, frame_size: what `VideoScorer` resizes a clip to, frames and (height, width).
        windows: 1 samples the frames uniformly in time; more, in that many runs of consecutive frames, uniform in
            time, because motion between frames seconds apart says nothing about flicker or dropped frames.
        views: what each frame becomes, in this order: "squash", the whole frame resized, and "fragments", patches at
            native resolution from fixed places, where blur and compression show, both through one backbone; and
            "pictures", every fourth frame at twice the size, in quarters, for the semantic encoder.
        mean, std: of RGB in [0, 1], subtracted and divided before the model.
    """

    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    stem_kernel: tuple[int, int, int] = (1, 4, 4)
    temporal_kernels: tuple[int, ...] = (1, 3, 1)
    layer_scale_init: float = 1e-6
    drop_path_rate: float = 0.0
    signals: tuple[str, ...] = ("rgb",)

    head_hidden: int = 64
    feature_dim: int = 1024
    statistics: bool = False
    token_grid: tuple[int, int, int] = (8, 7, 7)
    fusion_dim: int = 512
    mos_dim: int = 256

    text_encoder_name: str = BGE_LARGE
    text_dim: int = 1024
    text_encoder_sha256: str | None = None
    text_encoder_trained: bool = False

    semantic_encoder_name: str | None = None
    semantic_encoder_sha256: str | None = None

    num_frames: int = 32
    frame_size: tuple[int, int] = (224, 224)
    windows: int = 1
    views: tuple[str, ...] = ("squash",)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # JSON has no tuples
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if not _is_like(value, field.default):
                raise ValueError(f"expected {field.name} of the same type as {field.default!r}, got {value!r}")
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, int) and abs(number) > MOST for number in numbers):
                raise ValueError(f"expected {field.name} of at most {MOST}, got {reprlib.repr(value)}")
        for name in ("mean", "std", "token_grid"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"expected three numbers in {name}, got {getattr(self, name)}")
        if len(self.dims) != len(self.depths) or len(self.dims) != 4:
            raise ValueError(f"expected four dims and four depths, got {self.dims} and {self.depths}")
        sizes = ("dims", "depths", "token_grid", "head_hidden", "feature_dim", "fusion_dim", "mos_dim", "text_dim")
        for name in sizes:
            found = getattr(self, name)
            if min(found if isinstance(found, tuple) else (found,)) < 1:
                raise ValueError(f"expected {name} of at least 1, got {found}")
        if not all(map(math.isfinite, (*self.mean, *self.std, self.layer_scale_init))) or min(self.std) <= 0:
            raise ValueError(
                f"expected a finite mean, std and layer_scale_init, and std above 0, got {self.mean}, {self.std} and "
                f"{self.layer_scale_init}"
            )
        if len(self.stem_kernel) != 3 or min(self.stem_kernel) < 1:
            raise ValueError(f"expected stem_kernel (time, height, width), each >= 1, got {self.stem_kernel}")
        if not self.temporal_kernels or any(k < 1 or k % 2 == 0 for k in self.temporal_kernels):
            raise ValueError(f"expected odd temporal_kernels, got {self.temporal_kernels}")
        unknown = [name for name in self.signals if name not in SIGNALS]
        if self.signals[:1] != ("rgb",) or unknown or len(set(self.signals)) != len(self.signals):
            raise ValueError(f"expected signals 'rgb' and then any of {SIGNALS[1:]}, got {self.signals}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"expected a drop_path_rate from 0 to below 1, got {self.drop_path_rate}")
        least = tuple(8 * stride for stride in self.stem_kernel[1:])  # three more halvings follow the stem
        if len(self.frame_size) != 2 or any(n < m for n, m in zip(self.frame_size, least, strict=True)):
            raise ValueError(f"expected a frame_size (height, width) of at least {least}, got {self.frame_size}")
        if "fragments" in self.views and any(side % 4 for side in self.frame_size):
            raise ValueError(f"expected a frame_size divisible by the 4x4 fragments, got {self.frame_size}")
        if self.fusion_dim % 8:
            raise ValueError(f"expected a fusion_dim divisible by its 8 heads, got {self.fusion_dim}")
        if self.views not in (VIEWS[:1], VIEWS[:2], VIEWS):
            raise ValueError(f"expected views {VIEWS[:1]}, {VIEWS[:2]} or {VIEWS}, got {self.views}")
        if self.windows < 1 or self.num_frames % self.windows:
            raise ValueError(f"expected num_frames {self.num_frames} in windows of equal length, got {self.windows}")
        if "pictures" in self.views and self.num_frames // self.windows % QUARTERS:
            raise ValueError(
                f"expected num_frames {self.num_frames} in {self.windows} windows of groups of {QUARTERS} "
                "with the view 'pictures'"
            )
        if self.num_frames // self.windows < self.stem_kernel[0]:
            raise ValueError(
                f"num_frames {self.num_frames} in {self.windows} windows is shorter than the stem {self.stem_kernel[0]}"
            )

    @classmethod
    def load(cls, path: Path) -> DOVERConfig:
        """The configuration in a checkpoint's `config.json`. Raises ValueError, with the path, for anything else."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(fields, dict):
                raise ValueError(f"expected an object, got {reprlib.repr(fields)}")
            return cls.resolve(fields)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def resolve(cls, config: str | Mapping[str, Any] | DOVERConfig) -> DOVERConfig:
        """A configuration from a preset's name, a dictionary (`config.json`) or a configuration."""
        if isinstance(config, DOVERConfig):
            return config
        if isinstance(config, str):
            if config not in PRESETS:
                raise ValueError(f"unknown preset {config!r}, expected one of {sorted(PRESETS)}")
            return PRESETS[config]
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(config) - names)
        if unknown:
            raise ValueError(f"unknown fields in the configuration: {unknown}; expected some of {sorted(names)}")
        return cls(**config)

    @property
    def backbone_views(self) -> tuple[str, ...]:
        """The views that the backbone sees."""
        return self.views[:2]

    def replace(self, **changes: Any) -> DOVERConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def _is_like(value: Any, default: Any) -> bool:
    """Whether a field's value is of the type that its default has; None stands for a text that may be missing."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_is_like(item, default[0]) for item in value)
    if default is None:
        return value is None or isinstance(value, str)
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))


PRESETS: dict[str, DOVERConfig] = {
    # The specification.
    "tiny": DOVERConfig(),
    # The same with the published stem, so that published DOVER++ weights fit exactly.
    "dover-plus-plus": DOVERConfig(stem_kernel=(2, 4, 4)),
    # The embedded default: small enough for the wheel and for a loop on a CPU.
    "nano": DOVERConfig(
        dims=(24, 48, 96, 192),
        depths=(2, 2, 4, 2),
        layer_scale_init=0.1,
        signals=SIGNALS,
        statistics=True,
        token_grid=(4, 3, 3),
        fusion_dim=256,
        mos_dim=128,
        text_encoder_name=MINILM,
        text_dim=384,
        semantic_encoder_name=EFFICIENTNET_LITE0,
        num_frames=16,
        windows=2,
        views=VIEWS,
        frame_size=(112, 112),
    ),
}
