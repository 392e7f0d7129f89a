"""Fails to import."""

from a_module_that_nobody_has import nothing

from lit_reason.reward import Reward


class Unfinished(Reward):
    """Would reward, if its module could be imported."""

    def score(self, rollout) -> float:
        return nothing(rollout)
