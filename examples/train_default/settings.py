"""How the default is taught."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSettings:
    """Of the two lessons: quality, then prompts. Each in `steps` of `batch` contents that a frozen backbone has seen.

    ridge: of the closed-form readouts, on standardised statistics; components: how many main components join them;
    semantic_ridge: of those of what is to be seen; emphasis: of motion over two thousand features of pictures, where
    both tell how many things there are; concept_gain: of attributes over things and places, to begin with.
    quality_noise and noise: added to readouts and to the places that words look at, in standard deviations, against
    learning clips by heart. held_back: the share of contents that only watches.
    """

    quality_steps: int = 3000
    quality_batch: int = 48
    quality_noise: float = 0.6
    steps: int = 400
    batch: int = 16
    seed: int = 0
    learning_rate: float = 1e-3
    ridge: float = 300.0
    components: int = 64
    semantic_ridge: float = 3000.0
    emphasis: float = 6.0
    concept_gain: float = 2.0
    noise: float = 1.0
    weight_decay: float = 0.05
    warmup: float = 0.1
    ema_decay: float = 0.995
    held_back: float = 0.05
