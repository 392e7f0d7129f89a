"""Stage 3: rewards judge rollouts, by name; their weighted sum is the rollout's reward."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from itertools import groupby

from lit_reason.types import Rollout, UserError


class Reward(ABC):
    """Base class of reward plugins (entry-point group `lit_reason.rewards`).

    Implement `score` for a reward that looks at one rollout, or `score_group` for one that compares the rollouts of
    one problem. Options are typed keyword arguments of `__init__`; `weight` is not among them, the trainer keeps it.
    A reward must never raise on what a model wrote: return 0.0 for nonsense, None for "does not apply here".
    """

    def score(self, rollout: Rollout) -> float | None:
        """The reward of one rollout, finite, or None when it does not apply to this row."""
        raise TypeError(f"{type(self).__name__} implements neither 'score' nor 'score_group'")

    def score_group(self, rollouts: Sequence[Rollout]) -> Sequence[float | None]:
        """Rewards of all rollouts of one problem, in their order."""
        return [self.score(rollout) for rollout in rollouts]
