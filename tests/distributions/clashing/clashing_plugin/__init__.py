"""Offers a name that the template offers, too."""

from lit_reason.reward import Reward


class OtherPhrases(Reward):
    """Rewards every completion that says something alike."""

    def score(self, rollout) -> float:
        return 0.5 if rollout.text else 0.0
