"""What is scored, and on which scale: without torch, so that nothing need be loaded to know it."""

#: What the prompt's quality weights are over.
ASPECTS = ("Traditional", "Alignment", "Aesthetic", "Temporal")
#: The columns of every table of scores, in order.
SCORE_NAMES = (*ASPECTS, "Overall")
#: The ends of the mean opinion scale.
MOS_MIN, MOS_MAX = 1.0, 5.0
#: What a number may be off by where it was written with fewer digits, or computed.
ROUNDING = 1e-6


def to_mos(value: float, worst: float, best: float) -> float:
    """`value` on a scale from `worst` to `best`, either of which may be the greater, as a mean opinion in 1-5.

    Raises ValueError for one that is beyond an end by more than rounding.
    """
    share = (value - worst) / (best - worst)
    if not -ROUNDING <= share <= 1 + ROUNDING:
        raise ValueError(f"{value:g} is beyond the scale, worst {worst:g} to best {best:g}")
    return MOS_MIN + (MOS_MAX - MOS_MIN) * min(max(share, 0.0), 1.0)
