"""`format`: does the completion think between think tags and answer between answer tags?"""

from __future__ import annotations

from lit_reason.answer import graded_format, strict_format
from lit_reason.reward import Reward
from lit_reason.types import Rollout


class Format(Reward):
    """Keeps completions in the form `<think> … </think> <answer> … </answer>`.

    In no-think mode the chat template writes the empty think block into the prompt; a completion that leaves it out is
    then judged as if it began with one. Sources: the format reward of DeepSeek-R1 (arXiv 2501.12948); strict as in
    Logic-RL (2502.14768).

    Args:
        strict: True gives 1.0 when the whole completion has the form, each tag once and in order, nothing but
            whitespace around and between the blocks, else 0.0. False gives the share of the four tags that appear
            exactly once, which a model that knows none of them can climb in steps.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict

    def score(self, rollout: Rollout) -> float:
        text = rollout.text
        if rollout.problem.think is False and "think>" not in text:
            text = f"<think></think>{text}"
        return float(strict_format(text)) if self.strict else graded_format(text)
