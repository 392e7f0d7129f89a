"""`math`: is the answer mathematically the gold answer, however it is written?"""

from __future__ import annotations

from typing import Any

from lit_reason.answer import extract_answer
from lit_reason.reward import Judgement, Reward
from lit_reason.types import Rollout, UserError
from lit_reason_math.grading import grade, quick_grade, warm_up


class Math(Reward):
    r"""1.0 for a completion whose answer equals the problem's gold answer, else 0.0; judged by math-verify.

    The answer is the last complete `<answer>…</answer>`, else the last `\boxed{…}`. `\frac{1}{2}`, `0.5` and `50\%` are
    the same, `\{1, 2\}` and `2, 1` too, `x = 5` and `5`. Most answers are judged at once by an exact fast path, the
    others in worker processes with a deadline. A row with a gold answer that math-verify cannot read is left out.
    Statuses: ok, wrong, missing, timeout, unparseable, too_big, unparseable_gold. Source: math-verify
    (https://github.com/huggingface/Math-Verify).

    Args:
        timeout: seconds an answer may take before it counts as wrong; nearly all take less than 0.1.
        float_rounding: decimal places to which decimals are compared, at most 12.
        strict: variables matter and a set is not a tuple; False takes f(x) for f(y).

    Raises:
        UserError: timeout is not positive, or float_rounding not from 0 to 12.
    """

    on_timeout = 0.0  # what a model wrote took too long: leaving the row out would make that a way out
    memory_mb = 2048

    def __init__(self, *, timeout: float = 5.0, float_rounding: int = 6, strict: bool = True) -> None:
        if not timeout > 0:
            raise UserError(f"reward 'math': timeout must be more than 0 seconds, got {timeout}")
        if not 0 <= float_rounding <= 12:
            raise UserError(f"reward 'math': float_rounding must be 0 to 12 places, got {float_rounding}")
        self.deadline = timeout
        self.float_rounding = float_rounding
        self.strict = strict

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has arrived in a worker, where the deadline of its first answer should not pay for late imports."""
        self.__dict__.update(state)
        warm_up()

    def score(self, rollout: Rollout) -> Judgement:
        gold, answer = self.cache_key(rollout)
        return grade(gold, answer, float_rounding=self.float_rounding, strict=self.strict)

    def quick(self, rollout: Rollout) -> Judgement | None:
        gold, answer = self.cache_key(rollout)
        return quick_grade(gold, answer, float_rounding=self.float_rounding, strict=self.strict)

    def cache_key(self, rollout: Rollout) -> tuple[str, str | None]:
        return rollout.problem.answer or "", extract_answer(rollout.text)
