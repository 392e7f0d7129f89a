"""`kimi_length`: the shorter ones of a group earn more, the longer ones less."""

from __future__ import annotations

from collections.abc import Sequence

from lit_reason.answer import correct
from lit_reason.reward import Reward
from lit_reason.types import Rollout


class KimiLength(Reward):
    """From 0.5 for the shortest completion of a group down to -0.5 for the longest; wrong ones earn 0 at most.

    With min and max over the completions of one problem, lambda = 0.5 - (L - min) / (max - min); a right answer gets
    lambda, a wrong one min(0, lambda), and all get 0 where all are equally long, so also a completion alone. L is the
    length in tokens, the end-of-sequence token included. Correct means that the task scores the answer 1. Source: the
    length penalty of Kimi k1.5 (arXiv 2501.12599), which is not used from the first step on but once a policy is right
    often enough.
    """

    def score_group(self, rollouts: Sequence[Rollout]) -> list[float]:
        shortest = min(rollout.length for rollout in rollouts)
        spread = max(rollout.length for rollout in rollouts) - shortest
        if spread == 0:
            return [0.0] * len(rollouts)
        earned = [0.5 - (rollout.length - shortest) / spread for rollout in rollouts]
        return [share if correct(r) else min(0.0, share) for r, share in zip(rollouts, earned, strict=True)]
