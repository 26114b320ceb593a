"""What a training run is told: one YAML file, checked before anything is read or computed.

But for the values by which `model` changes a checkpoint's configuration: they are checked with that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dover_eval.config import PRESETS, DOVERConfig
from dover_eval.evaluation import BENCHMARKS
from dover_eval.opinion import MOS_MAX, MOS_MIN
from dover_eval.training.parse import SettingsError, parse, read_yaml

__all__ = [
    "CardSettings",
    "DataSettings",
    "LoopSettings",
    "LossSettings",
    "SettingsError",
    "StartSettings",
    "TableSettings",
    "TrainSettings",
]


@dataclass(frozen=True)
class StartSettings:
    """Where the weights come from.

    kind: "fresh"; "checkpoint", one of dover-eval's own; "dover", the published DOVER++ aesthetic branch;
        "imagenet", a ConvNeXt of timm or torchvision, inflated in time. What a source leaves open starts fresh.
    weights: for all but "fresh": a folder, a file, or a repository on the hub; a checkpoint may be "default", the
        embedded one.
    file: for "imagenet" from a repository, the file in it.
    inflation: for "imagenet", how a kernel gets its temporal size: "centre" keeps a still clip's response exactly,
        "mean" spreads it evenly.
    """

    kind: Literal["fresh", "checkpoint", "dover", "imagenet"] = "fresh"
    weights: str | None = None
    file: str = "model.safetensors"
    inflation: Literal["centre", "mean"] = "centre"

    def __post_init__(self) -> None:
        if (self.kind == "fresh") != (self.weights is None):
            wanted = "no weights" if self.kind == "fresh" else "weights: a folder, a file or a repository"
            raise ValueError(f"kind {self.kind} takes {wanted}, got {self.weights}")


@dataclass(frozen=True)
class TableSettings:
    """One table and the clips that it names.

    kind: "ratings": `video_name, Prompt` and any of `<score>_MOS`, empty cells where nobody rated; "pairs":
        `prompt, video_a, video_b, aspect, label` with A, B or tie, and where there are votes `share`, A's part of
        them in 0-1; or any other layout that `dover-eval evaluate --list` names. The first two may have a `content`
        column: rows of one content never come apart in a split.
    table: the .csv, .jsonl, .json or .parquet file. videos: the folder that its names are in.
    hub: a data set on the hub that both are paths in; revision: of it.
    rating_range: the ends of the raters' scale, which become 1 and 5.
    unusable: "refuse" a table whose clips are missing or cannot be decoded, or whose prompts cannot be read, or "skip"
        those rows and say how many.
    """

    table: str
    videos: str
    kind: str = "ratings"
    hub: str | None = None
    revision: str | None = None
    rating_range: tuple[float, float] = (MOS_MIN, MOS_MAX)
    unusable: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        if self.kind not in BENCHMARKS:
            raise ValueError(f"kind: expected one of {', '.join(BENCHMARKS)}, got {self.kind!r}")
        if not self.rating_range[0] < self.rating_range[1]:
            raise ValueError(f"expected a rating_range of two rising numbers, got {list(self.rating_range)}")
        if self.revision is not None and self.hub is None:
            raise ValueError("a revision goes with hub")


@dataclass(frozen=True)
class DataSettings:
    """What is learned, and what it is judged on.

    train, validation: tables. Without validation tables, `validation_share` of the training's contents is set
        apart; 0 trains without validation, to the last step.
    near_duplicates: clips of which at most this share of the 256 bits of their looks differs are one content; 0
        compares bytes alone.
    cache, cache_gigabytes: where decoded clips are kept, and how much of them at most, in 1e9 bytes.
    workers: processes that decode.
    """

    train: tuple[TableSettings, ...]
    validation: tuple[TableSettings, ...] = ()
    validation_share: float = 0.1
    near_duplicates: float = 0.06
    cache: str = "~/.cache/dover-eval/clips"
    cache_gigabytes: float = 20.0
    workers: int = 2

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("expected at least one table in train")
        _check_range(self, "validation_share", 0, 0.9)
        _check_range(self, "near_duplicates", 0, 0.4)
        _check_range(self, "cache_gigabytes", 0)
        _check_range(self, "workers", 0)


@dataclass(frozen=True)
class LossSettings:
    """How much each loss weighs; 0 leaves it out. See `dover_eval.training.losses` for what each is.

    Ratings: smooth_l1 (with its beta), plcc, rank, scale. Of these plcc and rank compare the rows of a batch.
    Pairs: preference, by Bradley-Terry; preference_model "ties" (Rao-Kupper) or "plain", where a tie counts half a win
        for each; preference_scale: points of the 1-5 scale that multiply by e the odds that a clip is called the better
        one, against all else; tie_width: the difference, in units of preference_scale, beyond which the better clip
        has a majority of the verdicts, ties among them. At 0.5 a quarter of the verdicts on equal clips are ties.
    contrast: another clip's prompt must lower Alignment by contrast_margin points and leave the other aspects.
    heads: the aesthetic and the technical head follow the Aesthetic and the Traditional score, about 3.
    """

    smooth_l1: float = 1.0
    smooth_l1_beta: float = 0.5
    plcc: float = 0.3
    rank: float = 0.3
    scale: float = 0.0
    preference: float = 1.0
    preference_model: Literal["ties", "plain"] = "ties"
    preference_scale: float = 0.5
    tie_width: float = 0.5
    contrast: float = 0.3
    contrast_margin: float = 1.0
    heads: float = 0.1

    def __post_init__(self) -> None:
        for name in ("smooth_l1", "plcc", "rank", "scale", "preference", "contrast", "heads", "contrast_margin"):
            _check_range(self, name, 0)
        if not self.smooth_l1 + self.plcc + self.rank + self.scale + self.preference:
            raise ValueError("every loss weighs 0: there is nothing to learn")
        for name in ("smooth_l1_beta", "preference_scale", "tie_width"):
            _check_range(self, name, 1e-6)

    def read(self, kind: Literal["ratings", "verdicts"]) -> bool:
        """Whether a loss that weighs something learns from these."""
        return bool(self.preference if kind == "verdicts" else self.smooth_l1 + self.plcc + self.rank + self.scale)


@dataclass(frozen=True)
class LoopSettings:
    """The loop.

    epochs or steps: exactly one of them. batch_size: rows a device and step, a pair being one row of two clips;
    accumulate: batches a step. warmup: the share of the steps in which the learning rate rises, before it falls as a
    cosine. precision: "auto" is bf16 on a GPU and fp32 on a CPU. checkpointing: recompute activations in the
    backward pass, to save memory. fsdp: shard the model over the processes that torchrun starts.
    train_text_encoder: whether it learns too; if not, also one that a checkpoint has trained stays as it is.
    evaluate_every: steps between validations, each with a checkpoint; None is once an epoch. patience: stop after so
    many of them without a better one; None never does. keep: checkpoints that stay, beside the best one.
    device: None is a GPU if there is one. report_to: "tensorboard", "wandb", "trackio".
    """

    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    max_grad_norm: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpointing: bool = False
    fsdp: bool = False
    train_text_encoder: bool = False
    evaluate_every: int | None = None
    patience: int | None = None
    keep: int = 2
    log_every: int = 10
    seed: int = 0
    device: Literal["cpu", "cuda"] | None = None
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"expected either epochs or steps, got {self.epochs} and {self.steps}")
        for name in ("steps", "batch_size", "accumulate", "evaluate_every", "patience", "keep", "log_every"):
            _check_range(self, name, 1)
        for name in ("learning_rate", "max_grad_norm", "epochs"):
            _check_range(self, name, 1e-12)
        _check_range(self, "weight_decay", 0)
        _check_range(self, "warmup", 0, 1)
        _check_range(self, "seed", 0, 2**32 - 1)  # of numpy's


@dataclass(frozen=True)
class CardSettings:
    """What the model card says that the run cannot know.

    licence: of the weights, as the hub names them ("apache-2.0", "cc-by-4.0", "other"). licence_name, licence_link: for
    "other". title; notes: Markdown, on the data and on what the model is for.
    """

    licence: str
    licence_name: str | None = None
    licence_link: str | None = None
    title: str | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        if self.licence == "other" and self.licence_name is None:
            raise ValueError('licence "other" needs a licence_name')


@dataclass(frozen=True)
class TrainSettings:
    """A training run. Paths in the file are relative to its folder.

    output: the folder that becomes the checkpoint; while training, `output/checkpoints` is what a run resumes from.
    model: a `preset` of `DOVERConfig` and any of its fields; with a start that brings a configuration, changes to it.
    """

    output: str
    data: DataSettings
    training: LoopSettings
    card: CardSettings
    start: StartSettings = field(default_factory=StartSettings)
    model: Mapping[str, Any] = field(default_factory=dict)
    losses: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        names = [entry.name for entry in dataclasses.fields(DOVERConfig)]
        if unknown := sorted(set(self.model) - {"preset", *names}):
            raise ValueError(f"model.{unknown[0]}: unknown key; expected some of preset, {', '.join(names)}")
        if self.start.kind == "checkpoint" and "preset" in self.model:
            raise ValueError("model.preset: a checkpoint brings its own configuration; change single fields of it")
        if self.start.kind != "checkpoint":
            self.model_config()
        if self.start.kind == "dover":
            self.check_licence()
        if self.training.patience is not None and not (self.data.validation or self.data.validation_share):
            raise ValueError("training.patience counts validations: give data.validation or a data.validation_share")

    def check_licence(self) -> None:
        """Raises SettingsError where the card does not keep the licence of the published DOVER weights."""
        if self.card.licence != "other":
            raise SettingsError(
                f"card.licence {self.card.licence}: what is trained from the published DOVER weights stays under their "
                'S-Lab License 1.0 (non-commercial); expected licence "other" with that licence_name'
            )

    def model_config(self, checkpoint: DOVERConfig | None = None) -> DOVERConfig:
        """The checkpoint's configuration, or the preset that `model` names or the start needs, as `model` changes it.

        Raises SettingsError where a value does not fit.
        """
        changes = dict(self.model)
        preset = changes.pop("preset", "dover-plus-plus" if self.start.kind == "dover" else "tiny")
        if preset not in PRESETS:
            raise SettingsError(f"model.preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
        try:
            return (checkpoint or PRESETS[preset]).replace(**changes)
        except (ValueError, TypeError) as error:
            changed = f", in {self.start.weights}" if checkpoint else ""
            raise SettingsError(f"model{changed}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> TrainSettings:
        """The settings of a YAML file, with its paths made absolute. Raises SettingsError."""
        path = Path(path)
        return cls.parse(read_yaml(path), source=str(path), folder=path.resolve().parent)

    @classmethod
    def parse(cls, found: Any, *, source: str = "settings", folder: Path | None = None) -> TrainSettings:
        """Settings from a dictionary, as YAML has it; `folder` is what its paths are relative to."""
        settings: TrainSettings = parse(cls, found, "", source)
        return settings if folder is None else settings._in(folder)

    def _in(self, folder: Path) -> TrainSettings:
        place = lambda name: str(folder / Path(name).expanduser())
        local = lambda t: t if t.hub else dataclasses.replace(t, table=place(t.table), videos=place(t.videos))
        data = dataclasses.replace(
            self.data,
            train=tuple(map(local, self.data.train)),
            validation=tuple(map(local, self.data.validation)),
            cache=place(self.data.cache),
        )
        start = self.start
        if start.weights is not None and Path(place(start.weights)).exists():  # else a repository
            start = dataclasses.replace(start, weights=place(start.weights))
        return dataclasses.replace(self, output=place(self.output), data=data, start=start)

    def to_dict(self) -> dict[str, Any]:
        """As YAML would have it."""
        return dataclasses.asdict(self)


def _check_range(settings: Any, name: str, low: float, high: float = float("inf")) -> None:
    value = getattr(settings, name)
    if value is not None and not (low <= value <= high and math.isfinite(value)):
        wanted = f"at least {low:g}" if high == float("inf") else f"{low} to {high}"
        raise ValueError(f"{name}: expected {wanted}, got {value}")
