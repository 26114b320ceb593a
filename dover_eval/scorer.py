"""`VideoScorer`: clips and prompts in, `VideoScores` out."""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import dover_kernels
import torch
from torch import Tensor

from dover_eval.calibration import Calibration
from dover_eval.config import DOVERConfig, usual_batch_size
from dover_eval.hub import EMBEDDED
from dover_eval.models.convnext3d import ConvNeXtBlock3D
from dover_eval.models.dover import DOVERModel
from dover_eval.models.text import check_prompts, prompts_for
from dover_eval.opinion import ASPECTS, SCORE_NAMES
from dover_eval.scores import Fingerprint, VideoScores, weights_digest
from dover_eval.video.decode import VideoError, decode_clip
from dover_eval.video.layout import as_list, as_path, as_paths, split_clips
from dover_eval.video.sample import prepare_clip
from dover_eval.weights import WeightsError

if TYPE_CHECKING:
    from dover_eval.explain import Explanation

# Configuration fields that cannot affect a score: names, initialisation, training.
NOT_OF_A_SCORE = {
    *("text_encoder_name", "text_encoder_sha256", "text_encoder_trained"),
    *("semantic_encoder_name", "semantic_encoder_sha256", "layer_scale_init", "drop_path_rate"),
}
# What scoring takes from the model, and how wide each is.
OUTPUTS = {"mos": len(SCORE_NAMES), "quality_weights": len(ASPECTS), "aesthetic_score": 1, "technical_score": 1}


class VideoScorer:
    """Scores clips against their prompts. Thread-safe; the same clip and prompt always give the same score.

    Args:
        model: a `DOVERModel`; it is put into eval mode, frozen (no parameter asks for gradients) and moved.
        device: by default a GPU if there is one, else the CPU.
        dtype: of the computation: float32, bfloat16 or float16; by default bfloat16 on a GPU and float32 on a CPU
            (bfloat16 without matrix units is many times slower there). Weights stay in float32.
        calibration: maps `score`'s values to one group of raters' opinions; it must have been fitted on this model.
    """

    def __init__(
        self,
        model: DOVERModel,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if model.untrained:
            raise WeightsError(f"no weights for {', '.join(model.untrained)}: this model cannot score yet")
        if found := {p.dtype for p in model.parameters()} - {torch.float32}:
            raise ValueError(f"expected weights in float32, whatever the dtype of the computation, got {found}")
        self.device, self.dtype = placement(device, dtype)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.config = model.config
        self.calibration = calibration
        self._digested: tuple[list[Tensor], list[float], str] = [], [], ""
        if calibration is not None:
            calibration.check(self.fingerprint)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        calibration: str | Path | Calibration | None = None,
        **kwargs: Any,
    ) -> VideoScorer:
        """A checkpoint in `save_pretrained`'s form, a folder or a hub repository; None is the embedded default.

        `calibration` is one, its file, or a folder with `calibration.json`; by default scores are as scored, even
        where there is one beside the checkpoint. What else there is (`revision`, `cache_dir`, `token`, ...) goes to
        `DOVERModel.from_pretrained`.

        Raises:
            FileNotFoundError, OSError: no such checkpoint.
            dover_eval.WeightsError, TextEncoderError, SemanticEncoderError: it is incomplete, or one of its encoders is
                not to be had (all are RuntimeErrors).
            dover_eval.CalibrationError: no such calibration, or it was fitted on another model.
        """
        if isinstance(calibration, str | Path):
            calibration = Calibration.load(calibration)
        name = EMBEDDED if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        model = DOVERModel.from_pretrained(name, **kwargs)
        return cls(model, device=device, dtype=dtype, calibration=calibration)

    def to(self, device: str | torch.device) -> VideoScorer:
        """Move the model. Not while another thread scores. Scores that follow carry the new fingerprint."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def score(
        self,
        videos: Any,
        prompts: str | Sequence[str],
        *,
        layout: str | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> VideoScores:
        """Score `videos` against `prompts`.

        Args:
            videos: a path or several (a list, a generator, a column of pandas); or a tensor or an array with its
                `layout`, such as "BTCHW" or "TCHW", uint8 in 0-255 or float in 0-1; or a list of those.
            prompts: one a clip; a single text goes with every clip.
            batch_size: clips that go through the model together; by default 8 on a GPU and 1 on a CPU.
            progress: called with the number of clips done since its last call.

        A file that cannot be decoded, or a prompt of which the text encoder knows nothing, becomes a row of NaN with
        its reason in `errors`; the others are scored.

        Raises:
            ValueError: the prompts do not fit the clips, one is empty, or a tensor's layout, shape, dtype or range
                is not as said.
            TypeError: `videos` is neither paths, an array or a tensor, nor a list of these, or batch_size no integer.
        """
        if batch_size is None:
            batch_size = usual_batch_size(self.device.type)
        if operator.index(batch_size) < 1:
            raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
        videos = as_list(videos)
        paths = as_paths(videos)
        if paths is None:
            clips: Iterable[Tensor | Path] = split_clips(videos, layout)
            sources = [str(i) for i in range(len(clips))]  # type: ignore[arg-type]
        elif layout is not None and paths:
            raise ValueError(f'files have their own layout: layout="{layout}" goes with arrays and tensors alone')
        else:
            clips, sources = paths, [str(path) for path in paths]
        prompts = prompts_for(len(sources), prompts)

        parts: list[dict[str, Tensor]] = []
        errors: list[str | None] = []
        batch: list[Tensor | None] = []
        for clip, prompt in zip(clips, prompts, strict=True):
            fault = self.model.text_encoder.fault(prompt)
            prepared, error = (None, fault) if fault else self._load(clip)
            batch.append(prepared)
            errors.append(error)
            if len(batch) == batch_size or len(errors) == len(sources):
                parts.append(self._score_batch(batch, prompts[len(errors) - len(batch) : len(errors)]))
                if progress:
                    progress(len(batch))
                batch = []
        parts = parts or [self._score_batch([], [])]
        output = {name: torch.cat([part[name] for part in parts]) for name in OUTPUTS}
        return VideoScores(
            values=output["mos"],
            aesthetic_score=output["aesthetic_score"].squeeze(1),
            technical_score=output["technical_score"].squeeze(1),
            quality_weights=output["quality_weights"],
            sources=tuple(sources),
            prompts=tuple(prompts),
            errors=tuple(errors),
            fingerprint=self.fingerprint,
        )

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises ValueError for a prompt that has nothing to read in it, or no word that the text encoder knows: before
        a clip is made for it, say."""
        check_prompts(prompts)
        for prompt in prompts:
            if fault := self.model.text_encoder.fault(prompt):
                raise ValueError(fault)

    def explain(
        self, video: str | os.PathLike[str], prompt: str, *, windows: int = 24, seconds: float | None = None
    ) -> Explanation:
        """Why a file scores as it does: its scores over time, maps of local quality, and the words that mattered.

        Args:
            windows: how many, at most, of the parts, sliding over the clip, that are scored by themselves.
            seconds: how long each is; by default an eighth of the clip, or as many frames as the model reads if that
                is longer; never longer than the clip.

        Raises:
            dover_eval.VideoError: the file cannot be decoded.
            ValueError: the prompt is empty, or there are to be no windows, or of no length.
            TypeError: `video` is no path.
        """
        from dover_eval.explain import explain_clip

        return explain_clip(self, video, prompt, windows=windows, seconds=seconds)

    @property
    def fingerprint(self) -> Fingerprint:
        """What decides a score besides the clip and the prompt, as it is now."""
        return Fingerprint(
            weights=self._weights_digest(),
            configuration=self._configuration_digest(),
            text_encoder=self.model.text_encoder.sha256,
            num_frames=self.config.num_frames,
            frame_size=self.config.frame_size,
            dtype=str(self.dtype).removeprefix("torch."),
            device=self.device.type,
            kernel=", ".join(sorted({kernel.path for kernel in self.kernels})),
            torch=torch.__version__,
            decoder=av.__version__,
            windows=self.config.windows,
            views=self.config.views,
            semantic_encoder=self.config.semantic_encoder_sha256,
            calibration=self.calibration.digest if self.calibration else None,
        )

    def _weights_digest(self) -> str:
        """Recomputed when a weight has been replaced or written to since; what is written through `.data` counts as
        no new version of a tensor, but shows in its norm or its sum."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        floats = [t.detach().float() for t in tensors]
        sums = torch.stack([*map(torch.linalg.vector_norm, floats), *map(torch.sum, floats)]).tolist()
        state = [*sums, *(0 if t.is_inference() else t._version for t in tensors)]
        known, told, digest = self._digested
        if told != state or any(map(operator.is_not, tensors, known)):
            digest = weights_digest(self.model.state_dict())
            self._digested = tensors, state, digest
        return digest

    def _configuration_digest(self) -> str:
        """Of what is not as by default, so that fields yet to come change no digest."""
        default, text_encoder = asdict(DOVERConfig()), self.model.text_encoder
        told = {name: value for name, value in asdict(self.config).items() if value != default[name]}
        told = {name: value for name, value in told.items() if name not in NOT_OF_A_SCORE}
        told |= {"pooling": text_encoder.pooling, "max_length": text_encoder.max_length}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def kernels(self) -> dict[dover_kernels.KernelPath, list[str]]:
        """Which paths the depthwise convolutions take on this device, and why; and the layers that take each, such as
        "96 channels, 1x7x7"."""
        blocks = (module for module in self.model.modules() if isinstance(module, ConvNeXtBlock3D))
        found: dict[dover_kernels.KernelPath, list[str]] = {}
        for shape in dict.fromkeys(block.dwconv.weight.shape for block in blocks):
            x = torch.empty((1, shape[0], 2, 1, 1), dtype=self.dtype, device=self.device)
            path = dover_kernels.explain(x, torch.empty(shape, device="meta"))
            found.setdefault(path, []).append(f"{shape[0]} channels, {'x'.join(map(str, shape[2:]))}")
        return found

    def decode(self, path: str | Path) -> Tensor:
        """The frames of a file that the model samples: uint8 (num_frames,3,H,W). Raises VideoError."""
        return decode_for(self.config, as_path(path))

    def prepare(self, clip: Tensor) -> Tensor:
        """A clip (T,3,H,W), uint8 in 0-255 or float in 0-1, as the model reads it. Differentiable."""
        return prepare_clip(clip, self.config, self.device)

    def _load(self, clip: Tensor | Path) -> tuple[Tensor | None, str | None]:
        if isinstance(clip, Tensor):
            return self.prepare(clip), None
        try:
            return self.prepare(self.decode(clip)), None
        except VideoError as error:
            return None, str(error)

    def computing(self) -> torch.autocast:
        """What the model is called in: autocast to `dtype`, or none, whatever the caller is in.

        Raises RuntimeError where the model has been put into training mode since: each clip would move its statistics.
        """
        if self.model.training:
            raise RuntimeError("the model is in training mode, in which clips change it: call model.eval() to score")
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @torch.no_grad()
    def score_prepared(self, frames: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`OUTPUTS` of clips that `prepare` has made, stacked: calibrated, float32, on the CPU."""
        with self.computing():
            features = self.model.extract_features(frames, prompts)
        output = {name: features[name].float().cpu() for name in OUTPUTS}
        if self.calibration is not None:
            output["mos"] = self.calibration.apply(output["mos"], output["quality_weights"])
        return output

    def _score_batch(self, batch: list[Tensor | None], prompts: Sequence[str]) -> dict[str, Tensor]:
        """`score_prepared` of a batch; rows of NaN where a clip is None."""
        nan = {
            name: torch.full((len(batch), n), torch.nan, dtype=torch.float32, device="cpu")
            for name, n in OUTPUTS.items()
        }
        good = [i for i, clip in enumerate(batch) if clip is not None]
        if good:
            frames = torch.stack([clip for clip in batch if clip is not None])
            found = self.score_prepared(frames, [prompts[i] for i in good])
            for name, rows in nan.items():
                rows[good] = found[name]
        return nan

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        height, width = self.config.frame_size
        return (
            f"VideoScorer({size:.1f} M parameters, {self.config.num_frames} frames of {height}x{width}, "
            f"{self.model.text_encoder.name}, {self.device.type}, {self.fingerprint.dtype}, {self.fingerprint})"
        )


def decode_for(config: DOVERConfig, path: str | Path) -> Tensor:
    """`VideoScorer.decode` where there is no model, but its configuration."""
    return decode_clip(path, config.num_frames, config.windows).frames


def placement(device: str | torch.device | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """Where a scorer computes, and in what, with `VideoScorer`'s defaults in place of None."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"expected a dtype of float32, bfloat16 or float16, got {dtype}")
    return device, dtype
