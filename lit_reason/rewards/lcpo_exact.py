"""`lcpo_exact`: be right in as many tokens as the prompt asks for."""

from __future__ import annotations

import math

from lit_reason.answer import correct
from lit_reason.reward import Reward
from lit_reason.tasks.length_target import target_of
from lit_reason.types import Problem, Rollout, UserError


class LCPOExact(Reward):
    """1[correct] - alpha * |target - L|: right, and as long as the prompt asked for.

    L is the completion's length in tokens, the end-of-sequence token included. The target is what the task
    `length_target` wrote into the prompt with `mode: exact`. Correct means that the task scores the answer 1. Source:
    LCPO-Exact of L1 (arXiv 2503.04697).

    Args:
        alpha: what a token off the target costs; at the paper's 0.0003, 3,333 tokens cost as much as a right answer is
            worth.

    Raises:
        UserError: alpha is not above 0; or a problem has no target, or one for the other mode.
    """

    def __init__(self, *, alpha: float = 0.0003) -> None:
        if not 0 < alpha < math.inf:
            raise UserError(f"reward 'lcpo_exact': alpha must be above 0, got {alpha}")
        self.alpha = alpha

    def setup(self, problem: Problem | None) -> None:
        if problem is not None:
            target_of(problem, reward="lcpo_exact", mode="exact")

    def score(self, rollout: Rollout) -> float:
        target = target_of(rollout.problem, reward="lcpo_exact", mode="exact")
        return correct(rollout) - self.alpha * abs(target - rollout.length)
