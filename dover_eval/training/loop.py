"""The loop: transformers' `Trainer` over an `Objective`, judged by the figures of `dover_eval.evaluation`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from dover_eval.opinion import SCORE_NAMES
from dover_eval.training.batches import ScoredClips, TrainingClips, collate
from dover_eval.training.clips import ClipStore
from dover_eval.training.corpus import Corpus
from dover_eval.training.judging import figures, judge, quality
from dover_eval.training.objective import Objective
from dover_eval.training.settings import LoopSettings

QUALITY = "quality"  # what the best checkpoint is chosen by
LONG = 7 * 24 * 3600  # seconds that the other processes wait while the first decodes
STATE = "trainer_state.json"


class DOVERTrainer(Trainer):
    """`Trainer` that scores clips to validate, tells each loss, and stops where the loss is no number."""

    def __init__(self, objective: Objective, corpus: Corpus, store: ClipStore, **kwargs: Any) -> None:
        keys = corpus.validation_keys
        super().__init__(
            objective,
            train_dataset=TrainingClips(corpus.training, store, corpus.identities),
            eval_dataset=ScoredClips(keys, store, corpus.identities),
            data_collator=collate,
            compute_metrics=lambda found: self._figures(found, corpus, keys),
            **kwargs,
        )
        self._parts: dict[str, list[Tensor]] = {}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the losses; each is kept for the log."""
        losses = model(**inputs)
        for name, value in losses.items():
            if name != "loss":
                self._parts.setdefault(name, []).append(value.detach())
        return (losses["loss"], losses) if return_outputs else losses["loss"]

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        """Scores (N,5) of the clips, and their positions (N,)."""
        inputs = self._prepare_inputs(inputs)
        rows = inputs.pop("rows")
        with torch.no_grad():
            return None, model(**inputs)["scores"], rows

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's own, with the mean of each loss since the last time."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                step = self.state.global_step
                raise FloatingPointError(f"the loss is {logs['loss']} at step {step}: lower the learning_rate")
            logs |= {f"loss_{name}": torch.stack(values).mean().item() for name, values in self._parts.items()}
            self._parts = {}
        super().log(logs, start_time)

    def _figures(self, found: EvalPrediction, corpus: Corpus, keys: Sequence[tuple[str, str]]) -> dict[str, float]:
        scores = torch.full((len(keys), len(SCORE_NAMES)), torch.nan)
        scores[torch.as_tensor(found.label_ids)] = torch.as_tensor(found.predictions).float()
        report = judge(corpus.validation, keys, scores, resamples=0)
        return {QUALITY: quality(report)} | figures(report)


def training_arguments(settings: LoopSettings, folder: Path, workers: int, every_parameter_learns: bool) -> Any:
    """What `Trainer` takes; the numbers of steps are set by `set_steps`, once the data are known."""
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    blocks = {"transformer_layer_cls_to_wrap": ["ConvNeXtBlock3D"]}
    sharding: dict[str, Any] = {"fsdp": True, "fsdp_config": blocks} if settings.fsdp else {}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        lr_scheduler_type="cosine",
        optim="adamw_torch",
        bf16=settings.precision == "bf16" or (settings.precision == "auto" and not cpu),
        save_strategy="steps",
        save_total_limit=settings.keep,
        restore_callback_states_from_checkpoint=True,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=cpu,
        dataloader_num_workers=workers,
        # A loader draws its seed from the model's random numbers: a kept one once, and else once an epoch, as without
        # workers and after a resume.
        dataloader_persistent_workers=False,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        label_names=[],
        disable_tqdm=not sys.stderr.isatty(),
        ddp_find_unused_parameters=not every_parameter_learns,
        ddp_timeout=LONG,
        **sharding,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more GPUs are for torchrun: DataParallel cannot split texts
    return arguments


def set_steps(arguments: Any, settings: LoopSettings, corpus: Corpus) -> None:
    """The lengths that depend on the data: of the run, of its warmup, and between validations."""
    batches = math.ceil(len(corpus.training) / (settings.batch_size * arguments.world_size))
    a_epoch = max(math.ceil(batches / settings.accumulate), 1)
    total = settings.steps or math.ceil((settings.epochs or 1) * a_epoch)
    every = min(settings.evaluate_every or a_epoch, total)
    arguments.max_steps = total
    arguments.warmup_steps = math.ceil(settings.warmup * total)
    arguments.eval_steps = arguments.save_steps = every
    if corpus.validation:
        arguments.eval_strategy = IntervalStrategy.STEPS
        arguments.load_best_model_at_end = True
        arguments.save_total_limit = settings.keep + 1  # the best one counts among them
        arguments.metric_for_best_model, arguments.greater_is_better = f"eval_{QUALITY}", True


class LookAtTheLoss(TrainerCallback):
    """Logs the loss, and so checks that it is finite, before its result is validated or saved.

    Doing so at every step would synchronise with the device.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_evaluate or control.should_save


def callbacks(settings: LoopSettings) -> list[Any]:
    """A look at the loss, and early stopping where it is asked for."""
    return [LookAtTheLoss(), *([EarlyStoppingCallback(settings.patience)] if settings.patience else [])]


def last_checkpoint(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """The latest checkpoint that is whole, and its state. One whose writing was cut short has no state to read."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.rsplit("-", 1)[1])):
        try:
            return path, json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
    return None


def is_over(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's run has nothing left to do: its last step, or early stopping."""
    stopped = state["stateful_callbacks"].get("TrainerControl", {}).get("args", {}).get("should_training_stop", False)
    return bool(stopped) or state["global_step"] >= state["max_steps"]
