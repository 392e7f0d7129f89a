"""`cosine`: right answers earn more when short, wrong ones cost less when long."""

from __future__ import annotations

import math

from lit_reason.answer import correct
from lit_reason.reward import Reward
from lit_reason.types import Rollout, UserError


class Cosine(Reward):
    """Between a value for short and one for long completions along half a cosine, a pair of values for right and wrong.

    long + (short - long) / 2 * (1 + cos(pi * min(L / max_tokens, 1))), with L the completion's length in tokens, the
    end-of-sequence token included. Correct means that the task scores the answer 1; no answer is a wrong one. A wrong
    short answer costs most, so that the policy thinks longer where it fails. Source: appendix C.1 of arXiv 2502.03373,
    without its separate penalty for running into the limit: that is `overlong`.

    Args:
        max_tokens: the length from which on a completion counts as long; usually sampling.max_new_tokens.
        correct_short: reward of a right answer of no length.
        correct_long: reward of a right answer of max_tokens and more.
        wrong_short: reward of a wrong answer of no length.
        wrong_long: reward of a wrong answer of max_tokens and more.

    Raises:
        UserError: max_tokens is below 1.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        correct_short: float = 1.0,
        correct_long: float = 0.5,
        wrong_short: float = -1.0,
        wrong_long: float = -0.5,
    ) -> None:
        if max_tokens < 1:
            raise UserError(f"reward 'cosine': max_tokens must be 1 or more, got {max_tokens}")
        self.max_tokens = max_tokens
        self.right = correct_short, correct_long
        self.wrong = wrong_short, wrong_long

    def score(self, rollout: Rollout) -> float:
        short, long = self.right if correct(rollout) else self.wrong
        return long + (short - long) / 2 * (1 + math.cos(math.pi * min(rollout.length / self.max_tokens, 1)))
