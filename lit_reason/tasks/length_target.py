"""`length_target`: any other task, with how long to think written into its prompts.

    task:
      length_target:
        task: {reasoning_gym: {datasets: {chain_sum: {}}}}
        mode: max

The rewards `lcpo_exact` and `lcpo_max` read the target from the problem. Source: L1 (arXiv 2503.04697).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

from lit_reason.plugins import TaskRef
from lit_reason.task import Split, Task
from lit_reason.types import Problem, Rollout, UserError

Mode = Literal["exact", "max"]

_SENTENCES: dict[Mode, str] = {"exact": "Think for {} tokens.", "max": "Think for maximum {} tokens."}


class LengthTarget(Task):
    """The problems of another task, each with a number of tokens to think for at the end of its prompt.

    "Think for N tokens." or "Think for maximum N tokens." follows the question on a line of its own, and
    `metadata["length_target"]` has the N. It is drawn uniformly from low to high, by seed and problem id alone: a
    problem has the same target in every process, epoch and validation. Judging is left to the other task, and so are
    curricula. Source: L1 (arXiv 2503.04697).

    Args:
        task: the task whose problems they are: its name, or {name: {option: value}}.
        mode: exact, for the reward `lcpo_exact`, or max, for `lcpo_max`.
        low: smallest number of tokens; 100 as in the paper.
        high: largest number of tokens; 4000 as in the paper, which is more than sampling.max_new_tokens by default.
        seed: of the targets.

    Raises:
        UserError: low is below 1, high below low, the mode unknown, or the other task refuses its options.
    """

    def __init__(
        self, *, task: TaskRef, mode: Literal["exact", "max"] = "exact", low: int = 100, high: int = 4000, seed: int = 0
    ) -> None:
        if mode not in _SENTENCES:
            raise UserError(f"task 'length_target': mode must be exact or max, got '{mode}'")
        if not 1 <= low <= high:
            raise UserError(f"task 'length_target': low and high must be 1 <= low <= high, got {low} and {high}")
        self.task = TaskRef.of(task).build()
        self.mode, self.low, self.high, self.seed = mode, low, high, seed

    def problems(self, split: Split) -> Sequence[Problem]:
        return _Targeted(self, self.task.problems(split))

    def aimed(self, problem: Problem) -> Problem:
        """A copy of a problem that says how long to think."""
        target = random.Random(f"length target {self.seed} {problem.id}").randint(self.low, self.high)
        *before, last = problem.prompt
        sentence = _SENTENCES[self.mode].format(target)
        return replace(
            problem,
            prompt=[*before, {**last, "content": f"{last['content']}\n{sentence}"}],
            metadata={**problem.metadata, "length_target": target, "length_mode": self.mode},
        )

    def observe(self, rollouts: Sequence[Rollout]) -> None:
        self.task.observe(rollouts)

    def state_dict(self) -> dict[str, Any]:
        return self.task.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.task.load_state_dict(state)


class _Targeted(Sequence[Problem]):
    """Problems that get their targets when they are asked for."""

    def __init__(self, owner: LengthTarget, problems: Sequence[Problem]) -> None:
        self.owner, self.problems = owner, problems

    def __len__(self) -> int:
        return len(self.problems)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self.owner.aimed(problem) for problem in self.problems[index]]
        return self.owner.aimed(self.problems[index])


def target_of(problem: Problem, *, reward: str, mode: Mode) -> int:
    """How many tokens the prompt of a problem asks for.

    Args:
        problem: with `length_target` and, from this module's task, `length_mode` in its metadata.
        reward: who asks, for the error message.
        mode: what the reward pays for.

    Raises:
        UserError: the problem has no target, or was given one of the other mode.
    """
    if "length_target" not in problem.metadata:
        raise UserError(
            f"reward '{reward}': problem '{problem.id}' has no length target; wrap the task: "
            f"task: {{length_target: {{task: ..., mode: {mode}}}}}"
        )
    if problem.metadata.get("length_mode", mode) != mode:
        raise UserError(
            f"reward '{reward}': the prompts were written by length_target with mode: "
            f"{problem.metadata['length_mode']}; set mode: {mode} there"
        )
    target: int = problem.metadata["length_target"]
    return target
