"""How near frames are to the prompt, as CLIP or SigLIP sees it; any checkpoint of theirs that transformers loads.

CLIP: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; its score after
Hessel et al., "CLIPScore", 2021. SigLIP: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023. Licences
are the checkpoints' own (OpenAI's CLIP: MIT; Google's SigLIP: Apache-2.0).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from dover_eval.distillation import Linear, Scale, TeacherError
from dover_eval.models.semantic import CLIP_KINDS
from dover_eval.teachers.local import checkpoint_folder, weights_digest
from dover_eval.video.decode import decode_clip

CLIPSCORE_WEIGHT = 2.5  # Hessel et al. stretch the cosine by it, which rarely exceeds 0.4


class FrameSimilarity:
    """Alignment, in 0-1, the mean over frames.

    With CLIP that is CLIPScore, 2.5 max(cosine, 0), at most 1; with SigLIP its own probability that the pair belongs
    together. Single frames say nothing of motion. Long prompts are cut to what the text encoder reads.

    Args:
        checkpoint: a folder, or a repository on the hub.
        frames: how many are looked at, uniform in time.
        device: of the model.
    """

    scales: ClassVar[dict[str, Scale]] = {"Alignment": Linear(0.0, 1.0)}

    def __init__(self, checkpoint: str = "openai/clip-vit-base-patch32", frames: int = 8, device: str = "cpu") -> None:
        from transformers import AutoConfig, AutoModel, AutoProcessor

        folder = checkpoint_folder(checkpoint)
        self._kind = AutoConfig.from_pretrained(folder).model_type
        if self._kind not in CLIP_KINDS:
            raise TeacherError(f"{checkpoint} is a {self._kind}, expected {', '.join(CLIP_KINDS)}")
        self._model: Any = AutoModel.from_pretrained(folder).float().to(device).eval()
        self._processor: Any = AutoProcessor.from_pretrained(folder)
        self._frames, self._device = frames, device
        self.identity = {"weights": weights_digest(folder)}

    @torch.no_grad()
    def __call__(self, path: str, prompt: str) -> dict[str, float]:
        frames = [frame.permute(1, 2, 0).numpy() for frame in decode_clip(path, self._frames).frames]
        # SigLIP was trained on texts of full length. That is the model's: a tokenizer may not know it.
        padding = True if self._kind == "clip" else "max_length"
        inputs = self._processor(
            text=[prompt],
            images=frames,
            padding=padding,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self._device)
        found = self._model(**inputs)
        if self._kind == "clip":
            scores = (CLIPSCORE_WEIGHT * (found.image_embeds @ found.text_embeds[0])).clamp(0, 1)
        else:
            scores = found.logits_per_image[:, 0].sigmoid()
        return {"Alignment": scores.mean().item()}
