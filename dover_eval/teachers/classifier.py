"""How well a prompt fits the pictures, as an ImageNet classifier and a text encoder tell it together.

EfficientNet-Lite0, the model's own picture encoder, says how likely each of a thousand things is in a frame;
all-MiniLM-L6-v2 says how near the name of each is to the prompt.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from dover_eval.config import EFFICIENTNET_LITE0, MINILM, DOVERConfig
from dover_eval.distillation import Logistic, Scale
from dover_eval.models.semantic import SemanticEncoder, imagenet_classes
from dover_eval.models.text import TextEncoder
from dover_eval.video.decode import decode_clip


class ImageNetAlignment:
    """Alignment: the names' nearness to the prompt, averaged with the probabilities of what is to be seen.

    Nearness is the cosine with the prompt, standardised over the thousand names, so that 0 is what any picture would
    get and prompts can be compared. It knows things, hardly what they do, and nothing of colours, numbers or motion.

    Args:
        frames: how many are looked at, uniform in time.
        device: of the classifier.
    """

    scales: ClassVar[dict[str, Scale]] = {"Alignment": Logistic(center=0.75, width=0.75)}

    def __init__(self, frames: int = 8, device: str = "cpu") -> None:
        names = imagenet_classes()
        self.frames, self.device, self._count = frames, device, len(names)
        self._seen = SemanticEncoder.load(EFFICIENTNET_LITE0, DOVERConfig(mean=(0, 0, 0), std=(1, 1, 1))).to(device)
        self._text = TextEncoder.load(MINILM, fallback=False)
        self._names = self._text.encode_batch([f"a {name.split(', ')[0]}" for name in names]).pooled
        self.identity = {"classifier": self._seen.sha256, "text_encoder": self._text.sha256}

    @torch.no_grad()
    def __call__(self, path: str, prompt: str) -> dict[str, float]:
        frames = decode_clip(path, self.frames).frames.to(self.device)
        seen = self._seen(frames.float() / 255)[:, -self._count :].mean(dim=0).cpu()  # behind the features
        near = self._names @ self._text([prompt]).pooled[0]
        return {"Alignment": (seen @ ((near - near.mean()) / near.std())).item()}
