"""A reward from a plain function of one rollout."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from lit_reason.reward import Reward, Verdict
from lit_reason.types import Rollout


class FunctionReward(Reward):
    """What a function of one rollout becomes when it is given as a reward.

    Args:
        function: (rollout) -> a finite number, a `Judgement`, or None where the reward does not apply; may be async.
    """

    def __init__(self, function: Callable[[Rollout], Verdict | Awaitable[Verdict]]) -> None:
        self.score = function  # type: ignore[assignment, method-assign]  # the method itself, so that it is seen to be async
