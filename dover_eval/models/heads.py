"""From features to numbers: DOVER's quality heads, the statistics pool and the MOS head."""

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from dover_eval.models.slabs import in_slabs
from dover_eval.opinion import ASPECTS, MOS_MAX, MOS_MIN

NORM_FLOOR = 1e-6  # for F.normalize, whose own is zero in fp16: there nothing over nothing would be NaN


class QualityHead(nn.Module):
    """DOVER's head: a two-layer MLP at every space-time place; the score is the mean over places.

    (B,C,T,H,W) -> the local scores (B,1,T,H,W). Names and shapes are those of the published checkpoints.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc_hid = nn.Conv3d(dim, hidden, 1)
        self.fc_last = nn.Conv3d(hidden, 1, 1)
        self.act = nn.GELU()

    def forward(self, features: Tensor) -> Tensor:
        return self.fc_last(self.act(self.fc_hid(features)))


class StatisticsPool(nn.Module):
    """Moments of maps over space and time: where distortion shows before semantics do.

    `raw` takes them from maps; `forward` standardises (B,size) of them, to within +-LIMIT, fp32, by `center` and
    `scale`, running means over the batches seen in training. Unlike a batch norm's they are used in training too, so
    that a batch of one trains. In eval mode a clip never depends on its batch; in training `forward` first has them
    `follow` it. Under torch.distributed a batch is that of all processes together, each of which must follow as often.
    """

    MOMENTS = 6  # a channel
    FLOOR = 1e-6
    DETAIL_FLOOR = 1e-4
    MOMENTUM = 0.02
    LIMIT = 10.0
    center: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("fitted", torch.zeros(()))

    def forward(self, raw: Tensor) -> Tensor:
        self.follow(raw)
        return self.standardise(raw)

    def standardise(self, raw: Tensor) -> Tensor:
        """Raw moments less their centre, over their scale, within +-LIMIT."""
        center, scale = self.center, self.scale
        if self.training:  # a later batch moves them, before the gradients of this one may have been asked for
            center, scale = center.clone(), scale.clone()
        return ((raw - center) / scale).clamp(-self.LIMIT, self.LIMIT)

    @torch.no_grad()
    def fit(self, raw: Tensor) -> None:
        """Take centre and scale from the raw moments (N,size) of many clips at once, N >= 2."""
        if len(raw) < 2:
            raise ValueError(f"expected the moments of two clips or more, got {tuple(raw.shape)}")
        self.center.copy_(raw.mean(dim=0))
        self.scale.copy_(raw.std(dim=0).clamp_min(1e-2))
        self.fitted.fill_(1)

    def raw(self, maps: list[Tensor]) -> Tensor:
        """(B, MOMENTS x the channels of all maps), fp32, of maps (B,C,T,H,W).

        Of each channel the mean; the logarithm of the variance; the mean logarithm of the squared deviations, which
        falls behind where flat areas replace detail; the logarithms of the mean squared first difference in time and
        of the second; and the mean logarithm of the first, which falls behind where frames stand still.
        A clip too short for a difference has the floor there.
        """
        return torch.cat([in_slabs(self._moments, x) for x in maps], dim=1)

    def _moments(self, x: Tensor) -> Tensor:
        """(B, MOMENTS x C) of a map (B,C,T,H,W)."""
        x = x.float()
        mean = x.mean(dim=(2, 3, 4), keepdim=True)
        deviations = (x - mean).square()
        moments = [mean.flatten(1), self._log(deviations.mean(dim=(2, 3, 4)))]
        moments.append(torch.log(deviations + self.DETAIL_FLOOR).mean(dim=(2, 3, 4)))
        change = x.diff(dim=2)
        first, second = (d.square().mean(dim=(3, 4)) for d in (change, change.diff(dim=2)))
        moments += [self._log(_mean_or_zero(first)), self._log(_mean_or_zero(second))]
        moments.append(_mean_or_zero(self._log(first)) if first.shape[2] else self._log(_mean_or_zero(first)))
        return torch.cat(moments, dim=1)

    def _log(self, x: Tensor) -> Tensor:
        return torch.log(x + self.FLOOR)

    @torch.no_grad()
    def follow(self, raw: Tensor) -> None:
        """In training: move centre and scale towards those of the raw moments (N,size) of a batch."""
        if not self.training:
            return
        momentum = torch.where(self.fitted > 0, self.MOMENTUM, 1.0)
        mean = raw.mean(dim=0)
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            mean, deviation = _over_processes(raw)
            self.scale.lerp_(deviation.clamp_min(1e-2), momentum)
        elif len(raw) > 1:
            self.scale.lerp_(raw.std(dim=0).clamp_min(1e-2), momentum)
        else:  # a single clip tells how far it is from those before it, and the first one nothing
            variance = self.scale.square().lerp((raw[0] - self.center).square(), self.fitted * self.MOMENTUM)
            self.scale.copy_(variance.sqrt().clamp_min(1e-2))
        self.center.lerp_(mean, momentum)
        self.fitted.fill_(1)


def _over_processes(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (size,) of the rows (N,size) of all processes, whose N may differ."""
    rows = raw.double()  # sums of squares leave of the variance of a narrow moment nothing in fp32
    sums = torch.stack([torch.ones_like(rows), rows, rows.square()]).sum(dim=1)
    distributed.all_reduce(sums)
    count, mean = sums[0], sums[1] / sums[0]
    variance = (sums[2] - count * mean.square()).clamp_min(0) / (count - 1)
    return mean.to(raw.dtype), variance.sqrt().to(raw.dtype)


def _mean_or_zero(x: Tensor) -> Tensor:
    """The mean of (B,C,T) over time, zero where there is none."""
    return x.mean(dim=2) if x.shape[2] else x.new_zeros(x.shape[:2])


class MOSPredictor(nn.Module):
    """Five mean-opinion scores from the fused features: (B,input_dim) -> (B,5), each in [1, 5].

    Columns: Traditional, Alignment, Aesthetic, Temporal, and Overall, the convex combination of the four with
    `quality_weights`; so Overall lies between the least and the greatest of them. Alignment reads the second half of
    the features, where the prompt is; the other three read the first, so that no prompt can move them.
    """

    def __init__(self, input_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        if input_dim % 2:
            raise ValueError(f"expected an even input_dim, half for the video and half for the prompt, got {input_dim}")
        half = input_dim // 2
        self.quality = nn.Sequential(
            nn.LayerNorm(half), nn.Linear(half, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, len(ASPECTS) - 1)
        )
        self.alignment = nn.Sequential(
            nn.LayerNorm(half), nn.Linear(half, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, 1)
        )

    def forward(self, fused: Tensor, quality_weights: Tensor | None = None) -> Tensor:
        """`fused` (B,input_dim); `quality_weights` (B,4), each row summing to one; None weighs all alike."""
        aspects = self.aspect_logits(fused).float().sigmoid() * (MOS_MAX - MOS_MIN) + MOS_MIN
        if quality_weights is None:
            quality_weights = torch.full_like(aspects, 1 / len(ASPECTS))
        overall = (aspects * quality_weights.float()).sum(dim=1, keepdim=True)
        # Rounding in the weights' sum must not carry the mean past its ends.
        overall = overall.clamp(min=aspects.amin(1, keepdim=True), max=aspects.amax(1, keepdim=True))
        return torch.cat([aspects, overall], dim=1)

    def aspect_logits(self, fused: Tensor) -> Tensor:
        """The four aspects before the sigmoid, (B,4)."""
        video, prompt = fused.chunk(2, dim=-1)
        traditional, aesthetic, temporal = self.quality(video).unbind(dim=-1)
        return torch.stack([traditional, self.alignment(prompt)[..., 0], aesthetic, temporal], dim=-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of x (B,N,D) over the places where mask (B,N) is true, zero where none is."""
    weights = F.normalize(mask.to(x.dtype), p=1, dim=1, eps=NORM_FLOOR)
    return torch.einsum("bnd,bn->bd", x, weights)
