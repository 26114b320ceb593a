"""Ratings and preferences of the example clips, as their defects would have them, and a model small enough to train."""

from pathlib import Path

CLIPS = Path(__file__).parents[2] / "examples" / "clips"
HEART = "a yellow heart moving right over a striped wall"
STAR = "a pink star spinning in front of a starry night sky"
RATING_COLUMNS = (
    "video_name",
    "Prompt",
    "Traditional_MOS",
    "Alignment_MOS",
    "Aesthetic_MOS",
    "Temporal_MOS",
    "Overall_MOS",
)
HEARTS = (
    ("heart_clean.mp4", HEART, 4.5, 4.6, 4.4, 4.6, 4.5),
    ("heart_blurred.mp4", HEART, 1.6, 4.4, 3.9, 4.5, 3.4),
    ("heart_compressed.mp4", HEART, 2.4, 4.5, 4.0, 4.3, 3.6),
    ("heart_flickering.mp4", HEART, 3.9, 4.5, 4.0, 1.5, 3.2),
    ("heart_dark.mp4", HEART, 3.8, 3.9, 1.8, 4.5, 3.3),
    ("heart_wrong_prompt.mp4", "three purple triangles falling in front of the sea", 4.4, 1.2, 4.3, 4.6, ""),
)
STARS = (
    ("star_clean.mp4", STAR, 4.4, 4.6, 4.5, 4.5, 4.6),
    ("star_noisy.mp4", STAR, 1.9, 4.4, "", 4.4, 3.2),
    ("star_shuffled.mp4", STAR, 4.1, 4.4, 4.2, 1.3, ""),
)
PAIR_COLUMNS = ("prompt", "video_a", "video_b", "aspect", "label", "share")
STAR_PAIRS = (
    (STAR, "star_clean.mp4", "star_noisy.mp4", "Traditional", "A", 0.9),
    (STAR, "star_shuffled.mp4", "star_clean.mp4", "Temporal", "B", ""),
    (STAR, "star_shuffled.mp4", "star_clean.mp4", "Overall", "B", 0.2),
    (STAR, "star_noisy.mp4", "star_clean.mp4", "Temporal", "tie", ""),
)
# Every part that a model has, each of them small.
TINY_MODEL = {
    "preset": "nano",
    "dims": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "feature_dim": 64,
    "fusion_dim": 32,
    "mos_dim": 16,
    "head_hidden": 8,
    "num_frames": 8,
    "frame_size": [32, 48],
}
# Every feature of the large ones, and stochastic depth, whose random numbers a resumed run must draw again.
MODEL = TINY_MODEL | {"windows": 2, "semantic_encoder_name": None, "drop_path_rate": 0.3}
