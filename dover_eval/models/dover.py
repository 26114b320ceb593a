"""`DOVERModelSimple`, the video side with DOVER's two heads, and `DOVERModel`, the whole scorer.

Frames here are always (B,3,T,H,W), float, RGB normalised with the configuration's mean and std, as the published
implementation has them; `dover_eval.VideoScorer` makes them from files, arrays and tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, constants
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dover_eval.config import QUARTERS, DOVERConfig
from dover_eval.hub import file_of
from dover_eval.models.convnext3d import ConvNeXt3D
from dover_eval.models.defaults import float32_by_default
from dover_eval.models.fusion import QualityAwareFusion
from dover_eval.models.heads import MOSPredictor, QualityHead, StatisticsPool
from dover_eval.models.semantic import SemanticEncoder, SemanticEncoderError
from dover_eval.models.sights import SIGHTS, sights
from dover_eval.models.signals import EXPOSURE_STATISTICS, PIXEL_STATISTICS, exposure_statistics, pixel_statistics
from dover_eval.models.text import OFFLINE_SHA256, TextEncoder, TextEncoderError, TextFeatures
from dover_eval.video.sample import join_quarters
from dover_eval.weights import (
    LoadReport,
    WeightsError,
    adapt_dover_checkpoint,
    load_checkpoint_file,
    load_safetensors_strict,
    mark_untrained,
    resolve_weights,
    untrained_parts,
)

HUB_OPTIONS = ("revision", "cache_dir", "force_download", "token", "local_files_only", "proxies", "resume_download")
M = TypeVar("M", bound="_HubModel")
HUB = {"library_name": "dover-eval", "tags": ["video-quality-assessment", "video"], "license": "apache-2.0"}


class _HubModel(nn.Module, PyTorchModelHubMixin):
    """huggingface_hub's save, load and push, but strict: a checkpoint that lacks a key is refused."""

    config: DOVERConfig

    @classmethod
    @float32_by_default()
    def from_pretrained(
        cls: type[M],
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: str | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> M:
        """A checkpoint in `save_pretrained`'s form: a folder, or a repository in the hub's cache or on the hub.

        Options of `huggingface_hub.hf_hub_download` (`revision`, `cache_dir`, `token`, ...) go there, others to the
        class. Raises FileNotFoundError where there is none, ValueError for a configuration that cannot be read, and
        WeightsError for weights that do not fit it.
        """
        if not strict:
            raise ValueError("strict=False would score with random weights; it is not offered")
        hub = {option: kwargs.pop(option) for option in HUB_OPTIONS if option in kwargs}
        if "config" not in kwargs:
            path = file_of(pretrained_model_name_or_path, constants.CONFIG_NAME, **hub)
            kwargs["config"] = DOVERConfig.load(path)
        path = file_of(pretrained_model_name_or_path, constants.SAFETENSORS_SINGLE_FILE, **hub)
        model = cls._without_weights(**kwargs)
        load_safetensors_strict(model, path)
        return (model if map_location is None else model.to(map_location)).eval()

    @classmethod
    def _without_weights(cls: type[M], **kwargs: Any) -> M:
        return cls(**kwargs)


class DOVERModelSimple(_HubModel, **HUB):
    """Backbone, aesthetic and technical head, and the features that go into the fusion.

    `config` is a preset's name ("tiny", "dover-plus-plus", "nano"), a `DOVERConfig` or its dictionary. Weights are
    fresh; `from_pretrained`, or `dover_eval.load_dover_checkpoint` for the published layout, brings trained ones.
    """

    def __init__(
        self, config: DOVERConfig | str | Mapping[str, Any] = "tiny", device: str | torch.device | None = None
    ) -> None:
        super().__init__()
        self.config = config = DOVERConfig.resolve(config)
        self._hub_mixin_config = config
        dim = config.dims[-1]
        self.backbone = ConvNeXt3D(config)
        self.aesthetic_head = QualityHead(dim, config.head_hidden)
        self.technical_head = QualityHead(dim, config.head_hidden)
        self.projection = nn.Linear(dim, config.feature_dim)
        if config.statistics:
            channels = 2 + len(config.signals) + sum(config.dims[:-1])
            moments = (StatisticsPool.MOMENTS * channels + PIXEL_STATISTICS) * len(config.backbone_views)
            moments += EXPOSURE_STATISTICS
            self.statistics = StatisticsPool(moments)
            self.statistics_projection = nn.Linear(moments, config.feature_dim)
        if device is not None:
            self.to(device)

    def forward(self, frames: Tensor, *, maps: bool = False) -> dict[str, Tensor]:
        """Features and scores of `frames` (B,3,T,H,W), normalised.

        A model of several views (`config.views`) takes (B,V,3,T,H,W); (B,3,T,H,W) stands for all of its views. One of
        several windows sees T frames as that many runs, if T is divisible by them, and else as one.

        Returns `features` (B,1024), `aesthetic_score` (B,1), `technical_score` (B,1), `backbone_features`
        (B,C,T',H',W') and `tokens` (B,N,1024), the same features at most at `token_grid` places; with `maps` also
        `aesthetic_map` and `technical_map` (B,1,T',H',W'), whose means are the scores. Scores here are DOVER's own,
        unbounded; the five on the 1-5 scale come from `DOVERModel`.
        """
        stages = self.forward_stages(frames)
        # As in DOVER: what a picture is like shows in the whole of it, how well it was made in its pixels.
        features = _join_runs(stages[-1][:, 0])
        local = {
            "aesthetic": self.aesthetic_head(features),
            "technical": self.technical_head(_join_runs(stages[-1][:, -1])),
        }
        frames_, height, width = (
            min(size, most) for size, most in zip(features.shape[2:], self.config.token_grid, strict=True)
        )
        # Contiguous: of a strided operand PyTorch takes another product where the weights ask for gradients than where
        # they do not, and the two round differently.
        places = F.adaptive_avg_pool3d(features, (frames_, height, width)).flatten(2).transpose(1, 2).contiguous()
        pooled = self.projection(features.mean(dim=(2, 3, 4)))
        if self.config.statistics:
            pooled = pooled + self.statistics_projection(self.statistics(self.moments(stages)).to(pooled.dtype))
        output = {
            "features": pooled,
            "aesthetic_score": local["aesthetic"].mean(dim=(2, 3, 4)),
            "technical_score": local["technical"].mean(dim=(2, 3, 4)),
            "backbone_features": features,
            "tokens": self.projection(places),
        }
        if maps:
            output |= {f"{name}_map": scores for name, scores in local.items()}
        return output

    def forward_stages(self, frames: Tensor) -> list[Tensor]:
        """What `ConvNeXt3D.forward_stages` gives, each (B,V,R,C,T',H',W'): by view and by run of frames."""
        if frames.ndim == 5:
            frames = frames[:, None]
        elif frames.ndim != 6 or frames.shape[1] != len(self.config.views):
            raise ValueError(
                f"expected frames (B,3,T,H,W), or (B,{len(self.config.views)},3,T,H,W) with the views "
                f"{self.config.views}, got {tuple(frames.shape)}"
            )
        else:
            frames = frames[:, : len(self.config.backbone_views)]
        runs = _split_runs(frames, self.config.windows)
        return [x.unflatten(0, runs.shape[:3]) for x in self.backbone.forward_stages(runs.flatten(0, 2))]

    def moments(self, stages: list[Tensor]) -> Tensor:
        """The statistics (B,M) of `forward_stages`' maps, before they are standardised.

        By view, moments of the maps, the mean over runs, and `pixel_statistics` of the frames; then
        `exposure_statistics` of the whole frames. Of the last stage there are none: in a trial with them, ridge
        regression explained less on other clips.
        """
        batch, views, runs = stages[0].shape[:3]
        with torch.autocast(stages[0].device.type, enabled=False):
            raw = self.statistics.raw([x.flatten(0, 2) for x in stages[:-2]]).unflatten(0, (batch, views, runs))
            frames = stages[0][:, :, :, :3]
            if torch.is_grad_enabled() and frames.requires_grad:  # cheap to compute again, and large to keep
                pixels, exposure = checkpoint(self._of_pixels, frames, use_reentrant=False)
            else:
                pixels, exposure = self._of_pixels(frames)
            by_view = torch.cat([raw.mean(dim=2), pixels], dim=2)
        return torch.cat([by_view.expand(-1, len(self.config.backbone_views), -1).flatten(1), exposure], dim=1)

    def _of_pixels(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Of frames (B,V,R,3,T,H,W): (B,V,PIXEL_STATISTICS) and (B,EXPOSURE_STATISTICS)."""
        pixels = pixel_statistics(frames.flatten(0, 1), self.config.std).unflatten(0, frames.shape[:2])
        return pixels, exposure_statistics(frames[:, 0], self.config.mean, self.config.std)


def _split_runs(frames: Tensor, count: int) -> Tensor:
    """(B,V,3,T,H,W) -> (B,V,R,3,T/R,H,W): R is `count` where T is divisible by it, and else 1."""
    runs = count if frames.shape[3] % count == 0 else 1
    return frames.unflatten(3, (runs, -1)).movedim(3, 2)


def _join_runs(x: Tensor) -> Tensor:
    """(B,R,C,T,H,W) -> (B,C,R*T,H,W), one run after another."""
    return x.movedim(1, 2).flatten(2, 3)


class DOVERModel(_HubModel, **HUB):
    """Frames and prompts in, five mean-opinion scores out.

    Args:
        dover_weights_path: a published DOVER++ checkpoint; a path that does not exist is fetched from the hub
            (`teowu/DOVER`). It holds the backbone and the aesthetic head, no more: the parts that it leaves open
            (`untrained`) are not random but NaN, and `forward` refuses to score, unless `fresh` names them.
            None asks for fresh weights everywhere, for training.
        text_encoder_name: a folder or a repository; None takes the configuration's. See `TextEncoder.load`.
        device: where the model goes.
        config: a preset's name, a `DOVERConfig` or its dictionary; by default "dover-plus-plus" with published
            weights, "tiny" without.
        fresh: the parts to initialise for training, of "technical_head", "projection", "fusion", "mos_predictor".
        train_text_encoder: give the text encoder gradients, and a place in the checkpoint.

    Raises:
        FileNotFoundError: the weights are neither at the path nor on the hub.
        dover_eval.WeightsError: the checkpoint does not cover what it should.
        TextEncoderError, SemanticEncoderError: no such encoder, or another than the checkpoint was trained with.
    """

    load_report: LoadReport | None = None
    semantic_encoder: SemanticEncoder | None

    def __init__(
        self,
        dover_weights_path: str | Path | None = "DOVER_plus_plus.pth",
        text_encoder_name: str | Path | None = None,
        device: str | torch.device | None = None,
        *,
        config: DOVERConfig | str | Mapping[str, Any] | None = None,
        fresh: Iterable[str] = (),
        train_text_encoder: bool = False,
    ) -> None:
        super().__init__()
        if config is None:
            config = "tiny" if dover_weights_path is None else "dover-plus-plus"
        config = DOVERConfig.resolve(config)
        if train_text_encoder:
            config = config.replace(text_encoder_trained=True)
        encoder = load_text_encoder(config, text_encoder_name)
        self.config = config = config.replace(text_encoder_name=encoder.name, text_dim=encoder.dim)
        self.dover_model = DOVERModelSimple(config)
        semantics = load_semantic_encoder(config)
        object.__setattr__(self, "semantic_encoder", semantics)  # frozen, as the text encoder
        self.fusion = QualityAwareFusion(
            config.feature_dim, config.text_dim, config.fusion_dim, semantics.dim + SIGHTS if semantics else None
        )
        self.mos_predictor = MOSPredictor(config.fusion_dim // 2, config.mos_dim)
        if config.text_encoder_trained:
            self.text_encoder = encoder
        else:  # frozen: moved with the model, but neither trained with it nor saved with it
            object.__setattr__(self, "text_encoder", encoder)
        self._untrained: tuple[str, ...] = ()
        if dover_weights_path is not None:
            state = load_checkpoint_file(resolve_weights(dover_weights_path))
            self.load_report = adapt_dover_checkpoint(state, self.dover_model)
            self._untrained = mark_untrained(self, self.load_report, parts=("fusion", "mos_predictor"), fresh=fresh)
        if device is not None:
            self.to(device)

    @classmethod
    def _without_weights(cls: type[M], **kwargs: Any) -> M:
        return cls(**({"dover_weights_path": None} | kwargs))

    @property
    def _hub_mixin_config(self) -> Any:
        """What `config.json` says: with the text encoder that these weights belong to."""
        config = self.__dict__.get("config")
        semantics = self.__dict__.get("semantic_encoder")
        return config and config.replace(
            text_encoder_sha256=self.text_encoder.sha256,
            semantic_encoder_sha256=semantics.sha256 if semantics else None,
        )

    @_hub_mixin_config.setter
    def _hub_mixin_config(self, value: Any) -> None:
        """The mixin sets it from the constructor's arguments; ours follows from `config`."""

    @property
    def untrained(self) -> tuple[str, ...]:
        """Parts that no checkpoint has filled: they hold NaN, and `forward` refuses."""
        if self._untrained:  # a state dict may have filled them since
            self._untrained = untrained_parts(self)
        return self._untrained

    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,5) in [1,5]: Traditional, Alignment, Aesthetic, Temporal, Overall.

        `frames` (B,3,T,H,W), normalised; one prompt a video. Differentiable with respect to `frames`.
        """
        return self.score_encoded(frames, self._encode(frames, prompts))

    def score_encoded(self, frames: Tensor, text: TextFeatures) -> Tensor:
        """`forward` for prompts that `text_encoder` has read: tensors only, so `torch.compile` takes it whole."""
        if self._untrained and self.untrained:
            raise WeightsError(
                f"no weights for {', '.join(self.untrained)}: published DOVER checkpoints hold the backbone and the "
                "aesthetic head alone. Train these parts (fresh=... initialises them) or load a whole checkpoint."
            )
        fused, weights = self._fuse(self.dover_model(frames), self.semantics(frames), text)
        return self.mos_predictor(fused, weights)

    def semantics(self, frames: Tensor) -> Tensor | None:
        """What is to be seen in the whole frames, (B,D), fp32; None without a semantic encoder.

        What the encoder sees in the middle of each run, the mean over runs, and `sights`, which it does not tell. With
        the view "pictures" it looks at those, at twice the size, else at the frames themselves. In training the
        statistics by which the fusion standardises it follow.
        """
        if self.semantic_encoder is None:
            return None
        by_view = _split_runs(frames[:, None] if frames.ndim == 5 else frames, self.config.windows)
        runs = by_view[:, 0]
        if "pictures" in self.config.views and by_view.shape[1] > 1:
            if by_view.shape[4] % QUARTERS:  # a picture fills as many frames
                raise ValueError(
                    f"expected {QUARTERS} x n frames in each of {by_view.shape[2]} runs, for the view pictures, got "
                    f"frames {tuple(frames.shape)}"
                )
            groups = by_view[:, -1].unflatten(3, (-1, QUARTERS))
            pictures = join_quarters(groups[:, :, :, groups.shape[3] // 2])
        else:
            pictures = runs[:, :, :, runs.shape[3] // 2]
        seen = self.semantic_encoder(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2]).mean(dim=1)
        with torch.autocast(frames.device.type, enabled=False):
            raw = torch.cat([seen, sights(runs, self.config.mean, self.config.std)], dim=1)
        self.fusion.semantics.follow(raw)
        return raw

    @torch.no_grad()
    def get_quality_weights(self, prompts: Sequence[str]) -> Tensor:
        """How much each of the four aspects matters to each prompt: (B,4), rows summing to one."""
        return self.fusion.quality_weights(self.text_encoder(prompts).pooled)

    def extract_features(self, frames: Tensor, prompts: Sequence[str], *, maps: bool = False) -> dict[str, Tensor]:
        """Everything between the pixels and the scores, and the scores.

        `dover_features` (B,1024), `backbone_features` (B,C,T',H',W'), `text_features` (B,text_dim),
        `fused_features` (B,fusion_dim/2), `quality_weights` (B,4), `aesthetic_score` and `technical_score` (B,1),
        `mos` (B,5); with `maps` also `aesthetic_map` and `technical_map` (B,1,T',H',W'), and `attention` (B,8,L,N),
        where each token of the prompt looks.
        """
        text = self._encode(frames, prompts)
        video = self.dover_model(frames, maps=maps)
        fused, weights = self._fuse(video, self.semantics(frames), text)
        output = {name: value for name, value in video.items() if name not in ("features", "tokens")}
        if maps:
            output["attention"] = self.fusion.attention(video["tokens"], text.tokens)
        return output | {
            "dover_features": video["features"],
            "text_features": text.pooled,
            "fused_features": fused,
            "quality_weights": weights,
            "mos": self.mos_predictor(fused, weights),
        }

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Recompute the backbone's activations in the backward pass: much less memory, a third more time.

        By the name that transformers' Trainer calls. The one setting is `frames`, how many at a time (see
        `ConvNeXtBlock3D.forward_checkpointed`); by default a clip's all. Trainer's own `use_reentrant` changes nothing.
        """
        frames = (gradient_checkpointing_kwargs or {}).get("frames", self.config.num_frames)
        if not isinstance(frames, int) or frames < 1:
            raise ValueError(f"expected frames to be a number of frames, 1 or more, got {frames!r}")
        self.dover_model.backbone.checkpoint_frames = frames

    def gradient_checkpointing_disable(self) -> None:
        """Keep the activations for the backward pass."""
        self.dover_model.backbone.checkpoint_frames = None

    def _encode(self, frames: Tensor, prompts: Sequence[str]) -> TextFeatures:
        if isinstance(prompts, str) or len(prompts) != len(frames):
            found = "one text" if isinstance(prompts, str) else f"{len(prompts)} prompts"
            raise ValueError(f"expected a list of {len(frames)} prompts, one a video, got {found}")
        return self.text_encoder(prompts)

    def _fuse(self, video: dict[str, Tensor], semantics: Tensor | None, text: TextFeatures) -> tuple[Tensor, Tensor]:
        return self.fusion(
            video["tokens"],
            text.tokens,
            dover_pooled=video["features"],
            text_pooled=text.pooled,
            text_mask=text.mask,
            semantics=semantics,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DOVERModel:
        super()._apply(fn, recurse)
        if "text_encoder" not in self._modules:
            self.text_encoder._apply(fn)
        if self.semantic_encoder is not None:
            self.semantic_encoder._apply(fn)
        return self


def load_semantic_encoder(config: DOVERConfig) -> SemanticEncoder | None:
    """The encoder that `config` asks for, if any, and exactly the one that its checkpoint was trained with."""
    if config.semantic_encoder_name is None:
        return None
    encoder = SemanticEncoder.load(config.semantic_encoder_name, config)
    trained = config.semantic_encoder_sha256
    if trained is not None and encoder.sha256 != trained:
        raise SemanticEncoderError(
            f"this checkpoint was trained with {encoder.name} of sha256 {trained[:12]}..., "
            f"but the one found has sha256 {encoder.sha256[:12]}...; its scores would mean nothing"
        )
    return encoder


def load_text_encoder(config: DOVERConfig, name: str | Path | None) -> TextEncoder:
    """The encoder that `config` asks for: any that loads for a new model, exactly the one it was trained with else.

    What is exact is the weights' sha256: a name may be a folder of the machine that trained.
    """
    trained = config.text_encoder_sha256
    fallback = trained in (None, OFFLINE_SHA256)
    try:
        encoder = TextEncoder.load(
            name or config.text_encoder_name, fallback=fallback, trainable=config.text_encoder_trained
        )
    except TextEncoderError as error:
        if trained is None:
            raise
        raise TextEncoderError(
            f"{error} This checkpoint needs the encoder whose model.safetensors has sha256 {trained}: where that lies "
            "elsewhere, say so as text_encoder_name, in its config.json or to DOVERModel.from_pretrained."
        ) from error
    if trained is not None and encoder.sha256 != trained:
        raise TextEncoderError(
            f"this checkpoint was trained with {config.text_encoder_name} (sha256 {trained[:12]}...), "
            f"but {encoder.name} has sha256 {encoder.sha256[:12]}...; its scores would mean nothing"
        )
    return encoder
