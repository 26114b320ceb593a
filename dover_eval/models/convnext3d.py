"""ConvNeXt in three dimensions, the backbone of DOVER's aesthetic branch.

ConvNeXt: Liu et al., "A ConvNet for the 2020s", CVPR 2022. In time: Wu et al., "Exploring Video Quality Assessment
on User Generated Contents from Aesthetic and Technical Perspectives" (DOVER), ICCV 2023. Module names are those of
the published checkpoints, so that their keys are ours; the published weights are under the S-Lab License 1.0.
"""

import itertools
from collections.abc import Iterable
from typing import cast

import torch
from dover_kernels import dwconv3d_layernorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dover_eval.config import DOVERConfig
from dover_eval.models.signals import video_signals
from dover_eval.models.slabs import in_slabs

EPS = 1e-6
SLAB_PLACES = 2048  # at least, in a part of a block's MLP: matrices of fewer rows multiply more slowly


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B,C,T,H,W)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class ConvNeXtBlock3D(nn.Module):
    """`x + drop_path(gamma * pwconv2(GELU(pwconv1(LN(dwconv(x))))))` on (B,C,T,H,W)."""

    def __init__(self, dim: int, temporal_kernel: int, layer_scale_init: float, drop_path: float = 0.0) -> None:
        super().__init__()
        kernel = (temporal_kernel, 7, 7)
        self.dwconv = nn.Conv3d(dim, dim, kernel, padding=(temporal_kernel // 2, 3, 3), groups=dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.drop_path = drop_path

    def forward_checkpointed(self, x: Tensor, slice_frames: int) -> Tensor:
        """The same as `forward`, but backward recomputes the block, `slice_frames` frames at a time.

        Backward then holds the activations of one slice. Slices overlap by what the depthwise kernel reaches in time.
        """
        reach, survival = self.dwconv.weight.shape[2] // 2, self._survival(x)
        slices = []
        for start in range(0, x.shape[2], slice_frames):
            end = min(start + slice_frames, x.shape[2])
            low, high = max(start - reach, 0), min(end + reach, x.shape[2])
            y: Tensor = checkpoint(self, x[:, :, low:high], survival, use_reentrant=False)
            slices.append(y[:, :, start - low : end - low])
        return torch.cat(slices, dim=2)

    def forward(self, x: Tensor, survival: Tensor | None = None) -> Tensor:
        """`survival` (B,1,1,1,1) scales each clip's branch; by default it is drawn in training, and one otherwise."""
        conv, norm = self.dwconv, self.norm
        y = dwconv3d_layernorm(x, conv.weight, cast(Tensor, conv.bias), norm.weight, norm.bias, norm.eps)
        if survival is None:
            survival = self._survival(x)
        x, y = x.permute(0, 2, 3, 4, 1), y.permute(0, 2, 3, 4, 1)
        if survival is None:
            z = in_slabs(self._add_branch, x, y, dims=4, least=SLAB_PLACES)
        else:
            z = self._add_branch(x, y, survival)
        return z.permute(0, 4, 1, 2, 3)

    def _add_branch(self, x: Tensor, y: Tensor, survival: Tensor | None = None) -> Tensor:
        """x (...,C) and, of its convolved and normalised values y, the MLP."""
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y if survival is None else x + y * survival.to(y.dtype)

    def _survival(self, x: Tensor) -> Tensor | None:
        """Stochastic depth: for each clip of x zero, or the inverse of the chance not to be dropped; None where no
        clip is."""
        if not self.training or self.drop_path == 0:
            return None
        keep = 1 - self.drop_path
        return (torch.rand(x.shape[0], 1, 1, 1, 1, device=x.device) < keep) / keep


class ConvNeXt3D(nn.Module):
    """(B,3,T,H,W) -> (B,dims[-1],T',H',W'), channel-normalised.

    T' = T // stem_kernel[0], H' and W' = H and W divided by the stem and three times by two, rounded down.
    With `checkpoint_frames` set, backward recomputes every block, that many frames at a time, to save memory.
    """

    def __init__(self, config: DOVERConfig) -> None:
        super().__init__()
        self.checkpoint_frames: int | None = None
        self.signals = config.signals
        self.stem_kernel = config.stem_kernel
        channels = 2 + len(config.signals)
        dims, depths = config.dims, config.depths
        stem = nn.Conv3d(channels, dims[0], config.stem_kernel, stride=config.stem_kernel)
        self.downsample_layers = nn.ModuleList([nn.Sequential(stem, ChannelLayerNorm(dims[0]))])
        for before, after in itertools.pairwise(dims):
            halve = nn.Conv3d(before, after, (1, 2, 2), stride=(1, 2, 2))
            self.downsample_layers.append(nn.Sequential(ChannelLayerNorm(before), halve))
        last = max(sum(depths) - 1, 1)
        rates = [config.drop_path_rate * i / last for i in range(sum(depths))]  # growing with depth
        self.stages = nn.ModuleList()
        for dim, depth in zip(dims, depths, strict=True):
            kernels = [config.temporal_kernels[i % len(config.temporal_kernels)] for i in range(depth)]
            self.stages.append(
                nn.Sequential(*(ConvNeXtBlock3D(dim, k, config.layer_scale_init, rates.pop(0)) for k in kernels))
            )
        self.norm = nn.LayerNorm(dims[-1], eps=EPS)
        self.apply(_init_weights)

    def forward(self, frames: Tensor) -> Tensor:
        return self.forward_stages(frames)[-1]

    def forward_stages(self, frames: Tensor) -> list[Tensor]:
        """The input of the stem, the output of each stage, and last the normalised output of the backbone."""
        smallest = (self.stem_kernel[0], 8 * self.stem_kernel[1], 8 * self.stem_kernel[2])
        if (
            frames.ndim != 5
            or frames.shape[1] != 3
            or any(n < m for n, m in zip(frames.shape[2:], smallest, strict=True))
        ):
            raise ValueError(
                f"expected frames (B,3,T,H,W) with T >= {smallest[0]}, H >= {smallest[1]} and W >= {smallest[2]}, "
                f"got {tuple(frames.shape)}"
            )
        checkpoint_frames = self.checkpoint_frames if torch.is_grad_enabled() else None
        x = video_signals(frames, self.signals).contiguous(memory_format=torch.channels_last_3d)
        outputs = [x]
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = downsample(x)
            for block in cast(Iterable[ConvNeXtBlock3D], stage):
                x = block.forward_checkpointed(x, checkpoint_frames) if checkpoint_frames else block(x)
            outputs.append(x)
        outputs.append(self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3))
        return outputs


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
