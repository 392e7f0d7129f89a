"""`lcpo_max`: be right within the number of tokens that the prompt allows."""

from __future__ import annotations

import math

from lit_reason.answer import correct
from lit_reason.reward import Reward
from lit_reason.tasks.length_target import target_of
from lit_reason.types import Problem, Rollout, UserError


class LCPOMax(Reward):
    """1[correct] * clip(alpha * (target - L) + delta, 0, 1): right, and not longer than the prompt allowed.

    L is the completion's length in tokens, the end-of-sequence token included. The target is what the task
    `length_target` wrote into the prompt with `mode: max`. Correct means that the task scores the answer 1. Source:
    LCPO-Max of L1 (arXiv 2503.04697).

    Args:
        alpha: what a token under the limit earns, and one over it costs.
        delta: the reward of a right answer exactly at the limit. With the defaults it is 0 from 1,667 tokens over the
            limit on, and 1 from 1,667 tokens below it.

    Raises:
        UserError: alpha is not above 0 or delta not in [0, 1]; or a problem has no target, or one for the other mode.
    """

    def __init__(self, *, alpha: float = 0.0003, delta: float = 0.5) -> None:
        if not 0 < alpha < math.inf:
            raise UserError(f"reward 'lcpo_max': alpha must be above 0, got {alpha}")
        if not 0 <= delta <= 1:
            raise UserError(f"reward 'lcpo_max': delta must lie between 0 and 1, got {delta}")
        self.alpha, self.delta = alpha, delta

    def setup(self, problem: Problem | None) -> None:
        if problem is not None:
            target_of(problem, reward="lcpo_max", mode="max")

    def score(self, rollout: Rollout) -> float:
        target = target_of(rollout.problem, reward="lcpo_max", mode="max")
        kept = min(max(self.alpha * (target - rollout.length) + self.delta, 0.0), 1.0)
        return kept if correct(rollout) else 0.0
