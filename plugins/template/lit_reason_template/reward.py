"""`phrases`: how often does a completion use certain phrases?"""

from __future__ import annotations

from collections.abc import Sequence

from lit_reason.reward import Reward
from lit_reason.types import Rollout, UserError


class Phrases(Reward):
    """Rewards phrases in a completion, such as those of a model that checks itself; discourages with a negative weight.

    The reward is the number of occurrences, letter case aside, divided by `enough`, and at most 1.

    Args:
        phrases: what to look for.
        enough: occurrences that give the full reward of 1.

    Raises:
        UserError: `phrases` is empty or holds an empty phrase, or `enough` is less than 1.
    """

    def __init__(self, *, phrases: Sequence[str] = ("wait", "let me check"), enough: int = 3) -> None:
        if not phrases or not all(phrases):
            raise UserError("reward 'phrases': phrases must hold at least one phrase, and none may be empty")
        if enough < 1:
            raise UserError(f"reward 'phrases': enough must be 1 or more, got {enough}")
        self.phrases = [phrase.lower() for phrase in phrases]
        self.enough = enough

    def score(self, rollout: Rollout) -> float:
        text = rollout.text.lower()
        found = sum(text.count(phrase) for phrase in self.phrases)
        return min(found / self.enough, 1.0)
