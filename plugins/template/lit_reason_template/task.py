"""`arithmetic_sequence`: how does 3, 7, 11 go on?"""

from __future__ import annotations

import random

from lit_reason.task import Split, Task
from lit_reason.types import Problem, UserError


class ArithmeticSequence(Task):
    """Name the next number of an arithmetic sequence.

    Every pair of a start and a step is one problem. The pairs are shuffled once and then divided, so that no problem is
    in both splits.

    Args:
        largest: largest start and step; there are `largest` squared problems.
        terms: how many numbers are shown.
        validation: how many problems are held out.
        seed: of the shuffle.

    Raises:
        UserError: too few problems to hold out `validation` and keep some.
    """

    def __init__(self, *, largest: int = 50, terms: int = 4, validation: int = 200, seed: int = 0) -> None:
        if not 0 <= validation < largest**2:
            raise UserError(
                f"task 'arithmetic_sequence': validation must be between 0 and {largest**2 - 1}, one less than the "
                f"problems there are with largest = {largest}; got {validation}"
            )
        self.terms = terms
        pairs = [(start, step) for start in range(1, largest + 1) for step in range(1, largest + 1)]
        random.Random(seed).shuffle(pairs)
        self.pairs: dict[Split, list[tuple[int, int]]] = {
            "validation": pairs[:validation],
            "train": pairs[validation:],
        }

    def problems(self, split: Split) -> list[Problem]:
        return [self._problem(start, step) for start, step in self.pairs[split]]

    def score(self, problem: Problem, answer: str | None) -> float:
        # a model's text can be anything: what is no number is wrong, it is not an error
        try:
            return float(answer is not None and int(answer) == problem.metadata["next"])
        except ValueError:
            return 0.0

    def _problem(self, start: int, step: int) -> Problem:
        shown = [start + i * step for i in range(self.terms)]
        following = start + self.terms * step
        question = f"Which number comes next: {', '.join(map(str, shown))}?"
        return Problem(
            prompt=[{"role": "user", "content": f"{question} Answer between <answer> and </answer>."}],
            answer=str(following),
            # worked steps make the task usable for SFT, too
            completion=f"<think> the step is {step} </think> <answer> {following} </answer>",
            task=self.name,
            id=f"{start}+{step}",
            metadata={"next": following},
            scorer=self.score,
        )
