"""Examples as tensors: rated clips and compared ones side by side in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dover_eval.evaluation import Item, JudgedPair, RatedClip
from dover_eval.opinion import SCORE_NAMES
from dover_eval.training.clips import ClipStore
from dover_eval.training.splits import Identities


class TrainingClips(Dataset):
    """Examples, each with what the model sees of its one or two clips."""

    def __init__(self, examples: Sequence[Item], store: ClipStore, identities: Identities) -> None:
        self.examples, self.store, self.identities = examples, store, identities

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Item, list[Tensor]]:
        example = self.examples[index]
        return example, [self.store.load(path, self.identities[path].sha256) for path in example.videos]


class ScoredClips(Dataset):
    """(path, prompt) to score, with what the model sees of the clip."""

    def __init__(self, keys: Sequence[tuple[str, str]], store: ClipStore, identities: Identities) -> None:
        self.keys, self.store, self.identities = keys, store, identities

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[int, str, Tensor]:
        path, prompt = self.keys[index]
        return index, prompt, self.store.load(path, self.identities[path].sha256)


def collate(items: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """A batch of `TrainingClips` or of `ScoredClips`.

    Of N clips: frames (N,...), as the model reads them; prompts, N texts. To score: rows (N,), their positions. To
    learn from: targets, which are ratings (N,5), NaN where nobody rated, and of P compared pairs first and second (P,),
    the positions of A and of B among the clips; preferences (P,5,3), the shares of A, B and ties; judged (P,5), where
    there are some.
    """
    if isinstance(items[0][0], int):
        rows, prompts, clips = zip(*items, strict=True)
        return {"frames": torch.stack(clips), "prompts": list(prompts), "rows": torch.tensor(rows)}
    frames: list[Tensor] = []
    prompts_of: list[str] = []
    ratings, first, preferences = [], [], []
    for example, clips in items:
        if isinstance(example, RatedClip):
            ratings.append([example.ratings.get(name, torch.nan) for name in SCORE_NAMES])
        else:
            first.append(len(frames))
            preferences.append([preference(example, name) for name in SCORE_NAMES])
            ratings += [[torch.nan] * len(SCORE_NAMES)] * 2
        frames += clips
        prompts_of += [example.prompt] * len(clips)
    shares = torch.tensor(preferences).view(len(first), len(SCORE_NAMES), 3)
    return {
        "frames": torch.stack(frames),
        "prompts": prompts_of,
        "targets": {
            "ratings": torch.tensor(ratings),
            "first": torch.tensor(first, dtype=torch.long),
            "second": torch.tensor(first, dtype=torch.long) + 1,
            "preferences": shares,
            "judged": shares.sum(dim=2) > 0,
        },
    }


def preference(pair: JudgedPair, name: str) -> tuple[float, float, float]:
    """The shares of A, of B and of ties, which sum to one; all 0 where nobody judged."""
    verdict = pair.verdicts.get(name)
    if verdict is None:
        return 0.0, 0.0, 0.0
    if verdict == 0:
        return 0.0, 0.0, 1.0
    share = pair.shares.get(name, 1.0 if verdict > 0 else 0.0)
    return share, 1 - share, 0.0
