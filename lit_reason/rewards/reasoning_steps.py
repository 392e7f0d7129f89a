"""`reasoning_steps`: does the completion visibly go step by step?"""

from __future__ import annotations

import re

from lit_reason.reward import Reward
from lit_reason.types import Rollout, UserError

# Digits and blanks are taken possessively: nothing is ever tried twice, so the search is linear.
_MARKERS = re.compile(r"\bStep \d++:|^[ \t]*+(?:\d++[.)]|[-*•])(?!\S)|\b(?:First|Second|Next|Finally),", re.MULTILINE)


class ReasoningSteps(Reward):
    """The share of `enough` step markers that a completion has, at most 1.

    Markers are "Step 1:", a line that begins with "1." or "1)", a line that begins with the bullet -, * or •, and
    "First,", "Second,", "Next,", "Finally,". They are counted, not read: a model can learn to write markers before
    empty steps, so give it a small weight. Source: `reasoning_steps` of Open R1, with numbered lines counted on every
    line, and bullets only where blank space follows, so that a line that begins with -5 or --- is none.

    Args:
        enough: markers that earn the full reward; Open R1 takes 3.

    Raises:
        UserError: enough is below 1.
    """

    def __init__(self, *, enough: int = 3) -> None:
        if enough < 1:
            raise UserError(f"reward 'reasoning_steps': enough must be 1 marker or more, got {enough}")
        self.enough = enough

    def score(self, rollout: Rollout) -> float:
        found = sum(1 for _ in _MARKERS.finditer(rollout.text))
        return min(found / self.enough, 1.0)
