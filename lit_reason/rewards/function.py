"""A reward from a plain function of one rollout."""

from __future__ import annotations

from collections.abc import Callable

from lit_reason.reward import Reward
from lit_reason.types import Rollout


class FunctionReward(Reward):
    """What a function of one rollout becomes when it is given as a reward.

    Args:
        function: (rollout) -> a finite number, or None where the reward does not apply.
    """

    def __init__(self, function: Callable[[Rollout], float | None]) -> None:
        self.function = function

    def score(self, rollout: Rollout) -> float | None:
        return self.function(rollout)
