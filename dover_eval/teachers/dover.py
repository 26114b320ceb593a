"""The official DOVER, both branches (Wu et al., "Exploring Video Quality Assessment on User Generated Contents", 2023).

Its code is cloned and its weights fetched as its README says. Its weights are under the S-Lab License 1.0, for
non-commercial use: what learns from its verdicts may well inherit that.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

from dover_eval.distillation import Logistic, Scale, requires
from dover_eval.teachers.local import use_clone, weights_digest

WHERE = "https://github.com/VQAssessment/DOVER"
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RGB in 0-255, as its scripts have them
TECHNICAL, AESTHETIC = (0.1107, 0.07355), (-0.08285, 0.03774)  # mean and deviation, in its score-level fusion
WEIGHTS = (0.6104, 0.3896)  # of the technical and the aesthetic score, in that fusion


class OfficialDOVER:
    """Traditional, Aesthetic and Overall, from its technical and its aesthetic branch and their fusion.

    Branches are centred as its own fusion centres them. It draws its fragments at random and so gives one clip several
    scores; here the draw is seeded for every clip.

    Args:
        root: a clone of the repository.
        options: its option file; the weights, the model and the sampling are as that says.
        sampling: the data set in the option file whose sampling is used, as its scripts do.
        device: of the model.
    """

    scales: ClassVar[dict[str, Scale]] = {
        "Traditional": Logistic(*TECHNICAL),
        "Aesthetic": Logistic(*AESTHETIC),
        "Overall": Logistic(0.0, 1.0),
    }

    def __init__(
        self, root: str, options: str = "dover.yml", sampling: str = "val-l1080p", device: str = "cpu"
    ) -> None:
        import torch
        import yaml

        folder = use_clone(root, [options, "dover"], WHERE)
        with requires(f"pip install . in a clone of {WHERE}", "the weights: S-Lab License 1.0, non-commercial"):
            from dover.datasets import (  # type: ignore[import-not-found]
                UnifiedFrameSampler,
                spatial_temporal_view_decomposition,
            )
            from dover.models import DOVER  # type: ignore[import-not-found]
        told = yaml.safe_load((folder / options).read_text(encoding="utf-8"))
        weights = folder / told["test_load_path"]
        self._model: Any = DOVER(**told["model"]["args"]).to(device)
        self._model.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
        self._views = told["data"][sampling]["args"]["sample_types"]
        self._samplers = {name: _sampler(view, UnifiedFrameSampler) for name, view in self._views.items()}
        self._decompose, self._device = spatial_temporal_view_decomposition, device
        self.identity = {"weights": weights_digest(Path(weights).parent)}

    def __call__(self, path: str, prompt: str) -> dict[str, float]:
        import numpy as np
        import torch

        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  (its own generator)
        torch.manual_seed(0)
        views, _ = self._decompose(path, self._views, self._samplers)
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        for name, view in views.items():  # (3,T,H,W) -> (clips,3,T/clips,H,W)
            clips = self._views[name].get("num_clips", 1)
            normal = ((view.permute(1, 2, 3, 0) - mean) / std).permute(3, 0, 1, 2)
            views[name] = normal.unflatten(1, (clips, -1)).transpose(0, 1).to(self._device)
        with torch.no_grad():
            branches = dict(zip(views, (score.mean().item() for score in self._model(views)), strict=True))
        technical, aesthetic = branches["technical"], branches["aesthetic"]
        centred = ((technical - TECHNICAL[0]) / TECHNICAL[1], (aesthetic - AESTHETIC[0]) / AESTHETIC[1])
        overall = sum(weight * value for weight, value in zip(WEIGHTS, centred, strict=True))
        return {"Traditional": technical, "Aesthetic": aesthetic, "Overall": overall}


def _sampler(view: dict[str, int], sampler: Any) -> Any:
    if "t_frag" not in view:
        return sampler(view["clip_len"], view["num_clips"], view["frame_interval"])
    return sampler(view["clip_len"] // view["t_frag"], view["t_frag"], view["frame_interval"], view["num_clips"])
