"""Scores a generated video against its prompt: five mean-opinion scores on the 1-5 scale.

>>> from dover_eval import VideoScorer
>>> scorer = VideoScorer.from_pretrained()
>>> scorer.score("clip.mp4", "a red bicycle in the rain").overall

Names are imported when first used: `import dover_eval` alone loads not even torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dover_eval.calibration import Calibration as Calibration
    from dover_eval.calibration import CalibrationError as CalibrationError
    from dover_eval.config import DOVERConfig as DOVERConfig
    from dover_eval.explain import Explanation as Explanation
    from dover_eval.models.convnext3d import ConvNeXt3D as ConvNeXt3D
    from dover_eval.models.dover import DOVERModel as DOVERModel
    from dover_eval.models.dover import DOVERModelSimple as DOVERModelSimple
    from dover_eval.models.fusion import QualityAwareFusion as QualityAwareFusion
    from dover_eval.models.heads import MOSPredictor as MOSPredictor
    from dover_eval.models.semantic import SemanticEncoderError as SemanticEncoderError
    from dover_eval.models.text import TextEncoder as TextEncoder
    from dover_eval.models.text import TextEncoderError as TextEncoderError
    from dover_eval.scorer import VideoScorer as VideoScorer
    from dover_eval.scores import Fingerprint as Fingerprint
    from dover_eval.scores import VideoScores as VideoScores
    from dover_eval.video.decode import VideoError as VideoError
    from dover_eval.weights import LoadReport as LoadReport
    from dover_eval.weights import WeightsError as WeightsError
    from dover_eval.weights import load_dover_checkpoint as load_dover_checkpoint

try:
    __version__ = version("dover-eval")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOME = {
    "Calibration": "dover_eval.calibration",
    "CalibrationError": "dover_eval.calibration",
    "ConvNeXt3D": "dover_eval.models.convnext3d",
    "DOVERConfig": "dover_eval.config",
    "DOVERModel": "dover_eval.models.dover",
    "DOVERModelSimple": "dover_eval.models.dover",
    "Explanation": "dover_eval.explain",
    "Fingerprint": "dover_eval.scores",
    "LoadReport": "dover_eval.weights",
    "MOSPredictor": "dover_eval.models.heads",
    "QualityAwareFusion": "dover_eval.models.fusion",
    "SemanticEncoderError": "dover_eval.models.semantic",
    "TextEncoder": "dover_eval.models.text",
    "TextEncoderError": "dover_eval.models.text",
    "VideoError": "dover_eval.video.decode",
    "VideoScorer": "dover_eval.scorer",
    "VideoScores": "dover_eval.scores",
    "WeightsError": "dover_eval.weights",
    "load_dover_checkpoint": "dover_eval.weights",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
