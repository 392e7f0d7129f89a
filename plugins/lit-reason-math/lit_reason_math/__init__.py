"""Mathematical answers for lit-reason: the reward `math` and the tasks `gsm8k`, `math_dataset` and `deepmath`."""

from lit_reason_math.grading import grade, quick_grade

__all__ = ["grade", "quick_grade"]
