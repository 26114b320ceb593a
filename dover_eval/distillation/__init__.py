"""Any scorer's verdicts as a rating table, for a model to learn: what a teacher is, and the run that asks it."""

from dover_eval.distillation.label import Labels, LabelsError, label
from dover_eval.distillation.teacher import Linear, Logistic, Scale, Teacher, TeacherError, requires

__all__ = ["Labels", "LabelsError", "Linear", "Logistic", "Scale", "Teacher", "TeacherError", "label", "requires"]
