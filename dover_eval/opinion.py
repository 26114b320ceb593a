"""What is scored, and on which scale: names and numbers alone, so that nothing need be loaded to know them."""

#: What the prompt's quality weights are over.
ASPECTS = ("Traditional", "Alignment", "Aesthetic", "Temporal")
#: The columns of every table of scores, in order.
SCORE_NAMES = (*ASPECTS, "Overall")
#: The ends of the mean opinion scale.
MOS_MIN, MOS_MAX = 1.0, 5.0
