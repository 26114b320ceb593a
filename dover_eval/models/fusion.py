"""Quality-aware fusion: what the prompt asks for, looked up in what the video shows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dover_eval.models.heads import NORM_FLOOR, StatisticsPool, masked_mean
from dover_eval.opinion import ASPECTS

NUM_HEADS = 8
PRIOR_GAIN = 10.0  # brings a similarity, some tenths, to the size of the features that it joins
CONCEPTS = 32  # which pictures show and prompts name, one for one


class QualityAwareFusion(nn.Module):
    """Fuses video and prompt, and reads from the prompt how much each aspect matters.

    Every word of the prompt asks the space-time places of the video (8-head cross-attention); what it asked for, what
    it found and their product go through a small MLP, and the mean over words joins the mean over places.
    Attention over a single key would be a constant: give sequences, not pooled vectors, where there are any.
    What the video is worth whatever the prompt is the first half of the features, how both go together the second.

    With a `semantic_dim`, what is to be seen in the pictures is brought into the space of prompts, and how much it
    agrees with what this prompt has over the usual one (`usual_text`, zero in a fresh fusion) is added. So is the
    agreement in `CONCEPTS` (colours, motions, numbers), read on both sides: a small space of its own, where what a
    caption says of a thing is not drowned by the thing; and that by `prior`, a map into the space of prompts that is
    given and not trained (the embeddings of a classifier's class names, say; zero in a fresh fusion), which no training
    set can narrow down. Three numbers, because weights for every direction learn the things of a training set by heart.
    """

    prior: Tensor
    usual_text: Tensor

    def __init__(
        self, dover_dim: int = 1024, text_dim: int = 1024, hidden_dim: int = 512, semantic_dim: int | None = None
    ) -> None:
        super().__init__()
        if hidden_dim % NUM_HEADS:
            raise ValueError(f"hidden_dim must be divisible by {NUM_HEADS} heads, got {hidden_dim}")
        self.dover_proj = nn.Linear(dover_dim, hidden_dim)
        self.text_proj = nn.Linear(text_dim, hidden_dim)
        self.quality_classifier = nn.Sequential(
            nn.Linear(text_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, len(ASPECTS))
        )
        self.video_norm = nn.LayerNorm(hidden_dim)
        self.text_norm = nn.LayerNorm(hidden_dim)
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.key_value = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.attended = nn.Linear(hidden_dim, hidden_dim)
        self.match = nn.Sequential(nn.Linear(3 * hidden_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim))
        self.norm = nn.LayerNorm(2 * hidden_dim)
        half = hidden_dim // 4  # of the fused features
        self.mlp = nn.Sequential(nn.Linear(2 * hidden_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, half))
        self.quality = nn.Sequential(nn.Linear(dover_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, half))
        if semantic_dim is not None:
            self.semantics = StatisticsPool(semantic_dim)
            self.semantic_proj = nn.Linear(semantic_dim, text_dim)
            self.register_buffer("prior", torch.zeros(text_dim, semantic_dim))
            self.register_buffer("usual_text", torch.zeros(text_dim))
            self.concepts_shown = nn.Linear(semantic_dim, CONCEPTS, bias=False)
            self.concepts_named = nn.Linear(text_dim, CONCEPTS, bias=False)
            self.agreement = nn.Linear(3, half, bias=False)

    def forward(
        self,
        dover_features: Tensor,
        text_features: Tensor,
        *,
        text_pooled: Tensor | None = None,
        dover_pooled: Tensor | None = None,
        text_mask: Tensor | None = None,
        dover_mask: Tensor | None = None,
        semantics: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fused features (B, hidden_dim // 2) and quality weights (B,4), which sum to one.

        `dover_features` (B,dover_dim) or (B,N,dover_dim); `text_features` (B,text_dim) or (B,L,text_dim). Masks (B,N)
        and (B,L) are true where a token counts. The pooled vectors default to the masked means of the sequences.
        `semantics` (B,semantic_dim) go with a fusion that was made for them. The running statistics are not updated
        here: a batch may be asked about several prompts, and is one batch (`DOVERModel.semantics`).
        """
        video, video_mask = _as_sequence("dover_features", dover_features, dover_mask)
        text, text_mask = _as_sequence("text_features", text_features, text_mask)
        if video.shape[0] != text.shape[0]:
            raise ValueError(f"expected as many videos as prompts, got {video.shape[0]} and {text.shape[0]}")
        if (semantics is None) == hasattr(self, "agreement"):
            raise ValueError(
                f"expected {'semantics' if semantics is None else 'no semantics'}, as this fusion was made"
            )
        if text_pooled is None:
            text_pooled = masked_mean(text, text_mask)
        if dover_pooled is None:
            dover_pooled = masked_mean(video, video_mask)

        places = self.video_norm(self.dover_proj(video))
        words = self.text_norm(self.text_proj(text))
        found = self._attend(words, places, video_mask)
        matched = masked_mean(self.match(torch.cat([words, found, words * found], dim=-1)), text_mask)
        together = self.mlp(self.norm(torch.cat([self.dover_proj(dover_pooled), matched], dim=-1)))
        if semantics is not None:
            together = together + self.agreement(self.agreements(semantics, text_pooled))
        return torch.cat([self.quality(dover_pooled), together], dim=-1), self.quality_weights(text_pooled)

    def agreements(self, semantics: Tensor, text_pooled: Tensor) -> Tensor:
        """How much what is seen (B,semantic_dim) agrees with prompts (B,text_dim): (B,3), by what was learned, by the
        prior and by concepts."""
        meant = _unit(text_pooled) - self.usual_text
        standard = self.semantics.standardise(semantics).to(meant.dtype)
        learned = _unit(self.semantic_proj(standard)) * meant * meant.shape[-1] ** 0.5
        known = _unit(F.linear(semantics.to(meant.dtype), self.prior)) * meant * PRIOR_GAIN
        shared = self.concepts_shown(standard) * self.concepts_named(meant)
        return torch.stack([product.sum(dim=-1) for product in (learned, known, shared)], dim=-1)

    def quality_weights(self, text_pooled: Tensor) -> Tensor:
        """How much each aspect matters to prompts (B,text_dim): (B,4), rows summing to one, fp32."""
        return self.quality_classifier(text_pooled).float().softmax(dim=-1)

    def attention(self, dover_features: Tensor, text_features: Tensor) -> Tensor:
        """Where each word looks: (B,heads,L,N), each word's weights over the places, which sum to one, fp32.

        `dover_features` (B,N,dover_dim), `text_features` (B,L,text_dim), as in `forward`.
        """
        words, places = self.text_norm(self.text_proj(text_features)), self.video_norm(self.dover_proj(dover_features))
        query, key = _heads(self.query(words)), _heads(self.key_value(places).chunk(2, dim=-1)[0])
        return (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).float().softmax(dim=-1)

    def _attend(self, words: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        key, value = map(_heads, self.key_value(places).chunk(2, dim=-1))
        found = F.scaled_dot_product_attention(_heads(self.query(words)), key, value, attn_mask=mask[:, None, None, :])
        return self.attended(found.transpose(1, 2).flatten(2))


def _unit(x: Tensor) -> Tensor:
    """x (B,D) at unit length; zeros stay zeros."""
    return F.normalize(x, dim=-1, eps=NORM_FLOOR)


def _heads(x: Tensor) -> Tensor:
    """(B,N,D) -> (B,heads,N,D/heads)."""
    return x.unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)


def _as_sequence(name: str, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if x.ndim == 2:
        x = x.unsqueeze(1)
    if x.ndim != 3:
        raise ValueError(f"expected {name} (B,D) or (B,N,D), got {tuple(x.shape)}")
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask.shape != x.shape[:2]:
        raise ValueError(f"expected a mask {tuple(x.shape[:2])} for {name}, got {tuple(mask.shape)}")
    return x, mask.bool()
