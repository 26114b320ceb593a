"""What a small backbone cannot learn in an hour and should not have to: sharpness and change, as input planes."""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def video_signals(frames: Tensor, names: tuple[str, ...]) -> Tensor:
    """`frames` (B,3,T,H,W), normalised RGB, and the planes that `names` asks for after "rgb".

    "highpass": luma minus its 3x3 mean; blur lowers it, noise and blocking raise it.
    "difference": luma minus that of the frame before; "global_difference": its mean over the frame, where
    flicker stands apart from motion. The first frame takes the difference of the second; a still clip has none.

    Returns (B, 2 + len(names), T, H, W).
    """
    if names == ("rgb",):
        return frames
    luma = torch.einsum("bcthw,c->bthw", frames, frames.new_tensor(LUMA)).unsqueeze(1)
    if luma.shape[2] > 1:
        change = luma.diff(dim=2)
        change = torch.cat([change[:, :, :1], change], dim=2)
    else:
        change = torch.zeros_like(luma)
    planes = {"rgb": frames}
    if "highpass" in names:
        flat = luma.transpose(1, 2).flatten(0, 1)
        smooth = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        planes["highpass"] = luma - smooth.unflatten(0, (luma.shape[0], luma.shape[2])).transpose(1, 2)
    if "difference" in names:
        planes["difference"] = change
    if "global_difference" in names:
        planes["global_difference"] = change.mean(dim=(3, 4), keepdim=True).expand_as(change)
    return torch.cat([planes[name] for name in names], dim=1)
