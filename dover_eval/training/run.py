"""A training run, from its settings to a finished checkpoint: `dover-eval train` in Python."""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from dover_eval import __version__
from dover_eval.evaluation import EvaluationReport
from dover_eval.models.dover import DOVERModel
from dover_eval.replacing import replacing
from dover_eval.scorer import VideoScorer
from dover_eval.training.card import KINDS, write_card
from dover_eval.training.clips import ClipStore
from dover_eval.training.corpus import Corpus, collect
from dover_eval.training.judging import judge
from dover_eval.training.loop import (
    DOVERTrainer,
    callbacks,
    is_over,
    last_checkpoint,
    set_steps,
    training_arguments,
)
from dover_eval.training.objective import Objective
from dover_eval.training.settings import SettingsError, TrainSettings
from dover_eval.training.start import RECORD, start_model
from dover_eval.video.decode import VideoError

logger = logging.getLogger(__name__)

CHECKPOINTS, BEGUN = "checkpoints", "run.json"
RESAMPLES = 1000
# What a resumed run may change: nothing of it decides a weight. The location of its files may change too, see `_kept`.
FREE = {"card", "data.cache", "data.cache_gigabytes", "data.workers", "training.keep", "training.log_every"}
FREE |= {"training.report_to", "output"}
T = TypeVar("T")


@dataclass(frozen=True)
class TrainResult:
    """A finished run: the checkpoint's folder, its record (`training.json`), and the validation's figures, if any."""

    folder: Path
    record: Mapping[str, Any]
    report: EvaluationReport | None


def check(settings: TrainSettings) -> Corpus:
    """All of a run up to its first step: the start, the tables, the clips and the split. Raises as `train` does."""
    _check_machine(settings)
    torch.manual_seed(settings.training.seed)
    model, _ = start_model(settings)
    return _collect(settings, _store(settings, model), model)


def train(settings: TrainSettings, *, resume: bool = False) -> TrainResult | None:
    """Train as `settings` say and write `settings.output`, which `DOVERModel.from_pretrained` takes.

    Args:
        resume: go on from the last whole checkpoint of a run with the same settings and data, to the same weights as
            if it had not stopped. Where there is none yet, begin; in a folder that holds no run, only if it is empty.

    Under torchrun every process calls this; the first returns the result, the others None.

    Raises:
        SettingsError: the settings do not fit together, or with the run to resume.
        TableError, SplitError: the data cannot be used. See `collect`.
        WeightsError, FileNotFoundError, TextEncoderError, SemanticEncoderError: the start cannot be loaded.
        VideoError: a clip has gone or changed while the run trained.
        FloatingPointError: the loss is no number any more.
    """
    _check_machine(settings)
    loop, output = settings.training, Path(settings.output)
    if loop.fsdp and "LOCAL_RANK" not in os.environ:
        raise SettingsError("training.fsdp shards over the processes that torchrun starts, and this is one by itself")
    folder = output / CHECKPOINTS
    _check_output(output, resume)
    arguments = training_arguments(loop, folder, settings.data.workers, settings.losses.heads > 0)
    torch.manual_seed(loop.seed)
    model, start = start_model(settings)
    model.to(arguments.device)  # its frozen encoders with it, which are no part of what DDP and FSDP see
    if loop.checkpointing:
        model.gradient_checkpointing_enable()
    store = _store(settings, model)
    corpus = _once(lambda: _collect(settings, store, model))
    set_steps(arguments, loop, corpus)
    began = {"settings": settings.to_dict(), "corpus": corpus.digest}
    _once(lambda: _begin(folder, began, resume))
    found = last_checkpoint(folder) if resume else None

    trainer = DOVERTrainer(Objective(model, settings.losses), corpus, store, args=arguments, callbacks=callbacks(loop))
    started = time.monotonic()
    if found and is_over(found[1]):
        path, state = found
        trainer._load_from_checkpoint(str(_best(folder, state) or path))
    else:
        try:
            trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
        except VideoError as error:
            reason = str(error).rsplit("VideoError: ", 1)[-1].strip()  # from a worker it comes after its traceback
            raise VideoError(
                f"{reason}. Once it can be read as it was, --resume goes on from the last checkpoint"
            ) from error
        state = asdict(trainer.state)
    _save(trainer, model, output)
    del trainer
    gc.collect()  # it is in a cycle, and would keep the optimizer's state beside the scorer
    if arguments.process_index != 0:
        return None

    scorer = VideoScorer.from_pretrained(output, device=arguments.device)
    report = _judge(scorer, corpus, loop.batch_size)
    record = {
        "settings": _by_name(settings.to_dict()) | {"card": asdict(settings.card)},
        "start": start,
        "data": corpus.records(),
        "counts": {side: corpus.counts(side) for side in ("training", "validation")},
        "corpus": corpus.digest,
        "steps": state["global_step"],
        "best_step": state["best_global_step"] if corpus.validation else None,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "processes": arguments.world_size,
        "device": _device_name(arguments.device),
        "precision": "bf16" if arguments.bf16 else "fp32",
        "model": _about(model),
        "fingerprint": asdict(scorer.fingerprint),
        "validation": _by_name(report.to_dict()) if report else None,
        "history": [entry for entry in state["log_history"] if "loss" in entry or "eval_quality" in entry],
        "versions": {"dover_eval": __version__} | {name: version(name) for name in ("torch", "transformers")},
    }
    write_card(output, record, report)
    (output / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return TrainResult(output, record, report)


def _check_machine(settings: TrainSettings) -> None:
    """Whether what the settings ask for is installed, and there. Raises SettingsError."""
    if settings.training.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("training.device is cuda, but torch finds no GPU")
    for name in settings.training.report_to:
        if find_spec(name) is None:
            raise SettingsError(f"training.report_to: {name} is not installed: pip install {name}")


def _check_output(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise SettingsError(f"output: {output} is a file, expected a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not resume:
        raise SettingsError(f"output: {output} is not empty. Resume the run that is there (--resume), or name another")
    if not (output / CHECKPOINTS / BEGUN).exists():
        raise SettingsError(
            f"output: {output} is not empty, and without {CHECKPOINTS}/{BEGUN} it holds no run to resume. Name another"
        )


def _begin(folder: Path, began: dict[str, Any], resume: bool) -> None:
    """Note what this run is made of, or compare with what the run to resume was. Raises SettingsError."""
    path = folder / BEGUN
    if resume and path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SettingsError(f"{path} is damaged ({error}): this run cannot be resumed") from error
        old, new = _kept(before["settings"]), _kept(json.loads(json.dumps(began["settings"])))
        changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        if changed:
            told = "; ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed[:4])
            raise SettingsError(f"{folder} holds a run with other settings, which cannot be resumed with these: {told}")
        if before["corpus"] != began["corpus"]:
            raise SettingsError(f"{folder} holds a run on other data: its tables or clips have changed since")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_text(json.dumps(began, indent=1) + "\n", encoding="utf-8")


def _kept(settings: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run may not change, by dotted keys.

    Of tables and clips it is their content, which the corpus's digest tells; of a start on this machine its name.
    """
    free = lambda key: any(key == name or key.startswith(f"{name}.") for name in FREE)
    kept = {key: value for key, value in _flat(_by_name(settings)).items() if not free(key)}
    for side in ("data.train", "data.validation"):
        kept[side] = [{k: v for k, v in table.items() if k not in ("table", "videos")} for table in kept[side]]
    return kept


def _by_name(value: Any) -> Any:
    """Of every absolute path its name alone: folders of this machine mean nothing elsewhere."""
    if isinstance(value, Mapping):
        return {_by_name(key): _by_name(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_by_name(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _flat(settings: Any, key: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary by dotted keys."""
    if not isinstance(settings, dict):
        return {key: settings}
    return {k: v for name, inner in settings.items() for k, v in _flat(inner, f"{key}.{name}" if key else name).items()}


def _once(work: Callable[[], T]) -> T:
    """What the first process makes of `work`, in every process; and its error in every process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return work()
    outcome: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            outcome = [(work(), None)]
        except Exception as reason:
            outcome = [(None, reason)]
    distributed.broadcast_object_list(outcome)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _store(settings: TrainSettings, model: DOVERModel) -> ClipStore:
    return ClipStore(model.config, settings.data.cache, int(settings.data.cache_gigabytes * 1e9))


def _collect(settings: TrainSettings, store: ClipStore, model: DOVERModel) -> Corpus:
    """The corpus. Raises, besides what `collect` does, SettingsError where the losses read nothing of it."""
    corpus = collect(settings.data, store, settings.training.seed, model.text_encoder.fault)
    counts = corpus.counts("training")
    if not any(counts[kind] and settings.losses.read(kind) for kind in KINDS):
        held = " and ".join(kind for kind in KINDS if counts[kind]) or "neither ratings nor verdicts"
        raise SettingsError(f"losses: the training has {held}, and every loss that would read them weighs 0")
    return corpus


def _best(folder: Path, state: Mapping[str, Any]) -> Path | None:
    step = state.get("best_global_step")
    path = folder / f"checkpoint-{step}"
    return path if step and path.is_dir() else None


def _save(trainer: DOVERTrainer, model: DOVERModel, output: Path) -> None:
    """The trained weights as a checkpoint of dover-eval's own, from the first process."""
    if trainer.is_fsdp_enabled:  # the model's own parameters are shards
        state = trainer.accelerator.get_state_dict(trainer.model)
        if trainer.args.process_index == 0:
            model = DOVERModel(None, config=model.config)
            model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    if trainer.args.process_index == 0:
        model.save_pretrained(output)


def _judge(scorer: VideoScorer, corpus: Corpus, batch_size: int) -> EvaluationReport | None:
    """The validation, scored by the finished checkpoint from its files, as a user would."""
    keys = corpus.validation_keys
    if not keys:
        return None
    files, prompts = zip(*keys, strict=True)
    scores = scorer.score([Path(file) for file in files], list(prompts), batch_size=batch_size)
    return judge(corpus.validation, keys, scores.values, resamples=RESAMPLES, fingerprint=str(scorer.fingerprint))


def _about(model: DOVERModel) -> dict[str, Any]:
    config, semantics = model.config, model.semantic_encoder
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_frames": config.num_frames,
        "frame_size": list(config.frame_size),
        "text_encoder": model.text_encoder.name,
        "text_encoder_sha256": model.text_encoder.sha256,
        "text_encoder_trained": config.text_encoder_trained,
        "semantic_encoder": config.semantic_encoder_name,
        "semantic_encoder_sha256": semantics.sha256 if semantics else None,
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
