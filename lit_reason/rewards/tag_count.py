"""`tag_count`: a quarter for each of the four tags that is there exactly once."""

from __future__ import annotations

from lit_reason.answer import TAGS, graded_format
from lit_reason.reward import Reward
from lit_reason.types import Rollout

_LINES = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")


class TagCount(Reward):
    """0.25 for each of `<think>`, `</think>`, `<answer>`, `</answer>` that stands in the completion exactly once.

    The order does not matter, so this is a first step for a model that knows none of the tags; use it beside the strict
    `format`. That reward's graded mode counts alike, but grants the think tags to a completion in no-think mode that
    leaves them out; here only what the completion says counts. Source: `tag_count` of Open R1, which counts tags at
    line breaks only.

    Args:
        own_lines: True counts a tag only at the line breaks that Open R1 asks for: `<think>` before one, `</think>` and
            `<answer>` between two, `</answer>` after one. False takes any whitespace, as every built-in task does.
    """

    def __init__(self, *, own_lines: bool = False) -> None:
        self.own_lines = own_lines

    def score(self, rollout: Rollout) -> float:
        if self.own_lines:
            return sum(rollout.text.count(tag) == 1 for tag in _LINES) / len(TAGS)
        return graded_format(rollout.text)
