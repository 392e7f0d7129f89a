"""`accuracy`: is the answer right? The task itself is the judge."""

from __future__ import annotations

from lit_reason.answer import extract_answer
from lit_reason.reward import Reward
from lit_reason.types import Rollout


class Accuracy(Reward):
    """The task's score, in [0, 1], of the answer a completion gives; 1.0 means correct, 0.0 that it gives none.

    A completion that was cut off before its answer was closed gives none. Source: the outcome reward of DeepSeek-R1
    (arXiv 2501.12948), with the partial credit a task may grant.
    """

    def score(self, rollout: Rollout) -> float:
        answer = extract_answer(rollout.text)
        return 0.0 if answer is None else rollout.problem.score(answer)
