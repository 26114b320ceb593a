"""The model together with what it is taught: one module, so that DDP and FSDP see a single forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dover_eval.models.dover import DOVERModel
from dover_eval.models.text import TextFeatures
from dover_eval.opinion import ASPECTS, MOS_MAX, MOS_MIN
from dover_eval.prompts import next_different
from dover_eval.training.losses import (
    bradley_terry_loss,
    bradley_terry_ties_loss,
    contrast_loss,
    dover_rank_loss,
    masked_smooth_l1,
    plcc_loss,
    scale_loss,
)
from dover_eval.training.settings import LossSettings


class Objective(nn.Module):
    """A `DOVERModel` and the losses of `settings`."""

    def __init__(self, model: DOVERModel, settings: LossSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        pooler = getattr(model.text_encoder.model, "pooler", None)
        if pooler is not None:  # a BERT's, which nothing reads: DDP would wait for its gradient
            pooler.requires_grad_(False)

    def forward(
        self,
        frames: Tensor,
        prompts: Sequence[str],
        targets: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """`scores` (N,5); with `targets`, `loss` and by name each loss that weighs something. See `collate`."""
        if targets is None:
            return {"scores": self.model(frames, prompts)}
        text = self.model.text_encoder(prompts)
        video, semantics = self.model.dover_model(frames), self.model.semantics(frames)
        scores = self._scores(video, semantics, text)
        losses = self._ratings(scores, targets["ratings"]) | self._preferences(scores, targets)
        weights = self.settings
        if weights.contrast:
            others = next_different(prompts)
            at = torch.tensor([i if j is None else j for i, j in enumerate(others)], device=frames.device)
            other = self._scores(video, semantics, TextFeatures(text.pooled[at], text.tokens[at], text.mask[at]))
            different = torch.tensor([j is not None for j in others], device=frames.device)
            n = len(ASPECTS)
            losses["contrast"] = contrast_loss(scores[:, :n], other[:, :n], different, weights.contrast_margin)
        if weights.heads:
            # DOVER's two heads see the video alone. What they are to say, the scores know; so they mean something
            # whatever the tables hold, and no score of the checkpoint is left as it was drawn.
            middle = (MOS_MIN + MOS_MAX) / 2
            found = torch.cat([video["aesthetic_score"], video["technical_score"]], dim=1)
            wanted = scores[:, [ASPECTS.index("Aesthetic"), ASPECTS.index("Traditional")]].detach() - middle
            losses["heads"] = F.smooth_l1_loss(found.float(), wanted, beta=weights.smooth_l1_beta)
        total = torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()
        return {"loss": total, **losses}

    def _scores(self, video: dict[str, Tensor], semantics: Tensor | None, text: TextFeatures) -> Tensor:
        fused, quality_weights = self.model._fuse(video, semantics, text)
        return self.model.mos_predictor(fused, quality_weights)

    def _ratings(self, scores: Tensor, ratings: Tensor) -> dict[str, Tensor]:
        weights, rated = self.settings, ~ratings.isnan()
        losses = {
            "smooth_l1": lambda: masked_smooth_l1(scores, ratings, rated, weights.smooth_l1_beta),
            "plcc": lambda: plcc_loss(scores, ratings, rated),
            "rank": lambda: dover_rank_loss(scores, ratings, rated),
            "scale": lambda: scale_loss(scores, ratings, rated),
        }
        return {name: loss() for name, loss in losses.items() if getattr(weights, name)}

    def _preferences(self, scores: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights, judged = self.settings, targets["judged"]
        if not weights.preference:
            return {}
        differences = scores[targets["first"]] - scores[targets["second"]]
        log_odds, shares = differences[judged] / weights.preference_scale, targets["preferences"][judged]
        if weights.preference_model == "plain":
            return {"preference": bradley_terry_loss(log_odds, shares)}
        return {"preference": bradley_terry_ties_loss(log_odds, shares, weights.tie_width)}
