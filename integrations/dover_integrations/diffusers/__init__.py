"""Score while sampling: quality scores inside Hugging Face diffusers.

>>> from dover_eval import VideoScorer
>>> from dover_integrations.diffusers import DoverCallback
>>> callback = DoverCallback(VideoScorer.from_pretrained(), prompt, every=10)
>>> video = pipe(prompt, callback_on_step_end=callback).frames
>>> callback.scores.overall
"""

from dover_integrations.diffusers import decoders as decoders  # fills the registry
from dover_integrations.diffusers.callback import DoverCallback
from dover_integrations.diffusers.history import StepScores
from dover_integrations.diffusers.latents import LatentDecoder, latents_to_frames, register_latent_decoder
from dover_integrations.diffusers.modular import DoverScoreStep, insert_score_step
from dover_integrations.diffusers.output import score_pipeline_output
from dover_integrations.diffusers.selection import BestOf, Candidate, best_of
from dover_integrations.diffusers.x0 import CleanEstimate, NoCleanEstimate, predict_x0

__all__ = [
    "BestOf",
    "Candidate",
    "CleanEstimate",
    "DoverCallback",
    "DoverScoreStep",
    "LatentDecoder",
    "NoCleanEstimate",
    "StepScores",
    "best_of",
    "insert_score_step",
    "latents_to_frames",
    "predict_x0",
    "register_latent_decoder",
    "score_pipeline_output",
]
