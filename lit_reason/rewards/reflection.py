"""`reflection`: how often does a completion check itself?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from lit_reason.reward import Reward
from lit_reason.types import Rollout, UserError


class Reflection(Reward):
    """How many phrases of self-checking a completion has, such as "wait" or "let me verify": a metric, of weight 0.

    It is logged like every reward and takes no part in the sum, because a policy that is paid for such phrases writes
    them without checking anything. Whole words, upper or lower case. Sources: the keywords that arXiv 2502.03373 and
    2503.20783 count, less the everyday word "however".

    Args:
        phrases: what is counted; a place where two of them overlap counts once.

    Raises:
        UserError: phrases is empty, or one of them is.
    """

    default_weight: ClassVar[float] = 0.0

    def __init__(
        self,
        *,
        phrases: Sequence[str] = (
            "wait",
            "alternatively",
            "on second thought",
            "let me check",
            "let me verify",
            "check again",
            "verify again",
            "think again",
            "go over the steps",
            "double check",
            "double-check",
            "recheck",
            "retry",
            "rethink",
            "reassess",
            "reconsider",
            "reanalyze",
            "reevaluate",
            "re-evaluate",
            "reexamine",
            "re-examine",
        ),
    ) -> None:
        if isinstance(phrases, str) or not phrases or not all(phrases):
            raise UserError(f"reward 'reflection': phrases must be a list of phrases, none empty, got {phrases!r}")
        self.pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?!\w)", re.IGNORECASE)

    def score(self, rollout: Rollout) -> float:
        return float(sum(1 for _ in self.pattern.finditer(rollout.text)))
