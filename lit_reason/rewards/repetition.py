"""`repetition`: a penalty for saying the same again."""

from __future__ import annotations

import math

from lit_reason.reward import Reward
from lit_reason.types import Rollout, UserError


class Repetition(Reward):
    """-penalty * (1 - different n-grams / n-grams), over the tokens of a completion.

    0 when every run of n tokens is another one, and near -penalty for a loop; also 0 for a completion of fewer than n
    tokens. Tokens, not words: code, digits and languages without spaces are judged alike. Source: the repetition
    penalty of arXiv 2502.03373, for the completion as a whole.

    Args:
        n: tokens of an n-gram. Expressions that rightly come up again are shorter than 20 tokens, loops that run on
            repeat any number; lower it for completions of a few dozen tokens.
        penalty: what a completion that only repeats itself would lose.

    Raises:
        UserError: n is below 1 or penalty negative.
    """

    def __init__(self, *, n: int = 20, penalty: float = 1.0) -> None:
        if n < 1:
            raise UserError(f"reward 'repetition': n must be 1 token or more, got {n}")
        if not 0 <= penalty < math.inf:
            raise UserError(f"reward 'repetition': penalty must be 0 or more, got {penalty}")
        self.n, self.penalty = n, penalty

    def score(self, rollout: Rollout) -> float:
        total = rollout.length - self.n + 1
        if total < 1:
            return 0.0
        tokens = rollout.completion_ids.tolist()
        different = len(set(zip(*(tokens[start:] for start in range(self.n)), strict=False)))
        return self.penalty * (different / total - 1)
