"""Offers a name that is a built-in reward's."""

from lit_reason.reward import Reward


class Generous(Reward):
    """Takes every completion that says something."""

    def score(self, rollout) -> float:
        return float(rollout.text != "")
