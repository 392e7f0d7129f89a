"""`length`: a soft limit on how long a completion may be."""

from __future__ import annotations

from lit_reason.reward import Reward
from lit_reason.types import Rollout, UserError


class Length(Reward):
    """A penalty that grows linearly with every token beyond a target, whatever the answer.

    With L the completion's length in tokens, the end-of-sequence token included: 0 for L ≤ target, -(L - target) / span
    up to target + span, -1 beyond. Source: the soft overlong punishment of DAPO (arXiv 2503.14476) with the two bounds
    set by hand.

    Args:
        target: tokens that cost nothing; set it near the length that good completions have.
        span: tokens over which the penalty grows from 0 to -1; a narrow span makes a hard limit.

    Raises:
        UserError: target is negative or span is not positive.
    """

    def __init__(self, *, target: int = 512, span: int = 512) -> None:
        if target < 0:
            raise UserError(f"reward 'length': target must be 0 tokens or more, got {target}")
        if span < 1:
            raise UserError(f"reward 'length': span must be 1 token or more, got {span}")
        self.target = target
        self.span = span

    def score(self, rollout: Rollout) -> float:
        return max(min(self.target - rollout.length, 0) / self.span, -1.0)
