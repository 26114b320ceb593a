"""What a model is taught with. All take predictions on the 1-5 scale and are means, so that weights compare."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rank_loss(predicted: Tensor, target: Tensor, margin: float = 0.3) -> Tensor:
    """Every pair of (N,) whose targets differ must come out in that order, by up to `margin`, as in DOVER's ranking.

    The margin asked of a pair is the smaller of `margin` and the difference of its targets. Zero for fewer than two.
    """
    wanted = target[:, None] - target[None, :]
    pairs = wanted > 0
    if not pairs.any():
        return predicted.sum() * 0
    found = predicted[:, None] - predicted[None, :]
    return F.relu(wanted.clamp(max=margin) - found)[pairs].mean()


def matching_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """Cross-entropy over the rows and the columns of (V,P): of all prompts, the clip's own must fit it best.

    `fits` (V,P) marks the pairs that belong together; a row or a column without one is left out.
    """
    losses = []
    for scores, positive in ((logits, fits), (logits.T, fits.T)):
        rows = positive.any(dim=1)
        if rows.any():
            matched = torch.where(positive[rows], scores[rows], -torch.inf).logsumexp(dim=1)
            losses.append((scores[rows].logsumexp(dim=1) - matched).mean())
    return torch.stack(losses).mean() if losses else logits.sum() * 0


def weights_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of predicted quality weights (P,4) from the target's."""
    return F.kl_div(predicted.clamp_min(1e-8).log(), target, reduction="batchmean")
