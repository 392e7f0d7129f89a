"""The task nano was trained on: reasoning-gym problems, most of them blurted, some of them worked out in steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, overload

from lit_reason.nano.traces import WORK_OUT
from lit_reason.task import Split, Task
from lit_reason.types import Problem, UserError

CONFIGS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 5},
    "spell_backward": {"min_word_len": 3, "max_word_len": 7},
    "syllogism": {},
}
"""What each reasoning-gym task is asked for; the worked solutions are written for exactly these."""


class NanoTraces(Task):
    """Sums, words to spell backward and syllogisms, each with a completion in one of two styles.

    The style is drawn independently of the problem, so that nothing in a question tells which one will follow.

    Args:
        worked: share of the completions that work the answer out inside the think block; the others leave it empty.
        no_think: share of the blurted completions that were asked for in no-think mode.
        weights: share of each task: chain_sum, spell_backward, syllogism.
        size: problems of the training split; they are made when they are asked for.
        validation_size: problems of the validation split.
        seed: of the problems, in steps of the split's sizes, so that two seeds share no problem by construction.
    """

    def __init__(
        self,
        *,
        worked: float = 0.25,
        no_think: float = 0.15,
        weights: dict[str, float] | None = None,
        size: int = 1_000_000,
        validation_size: int = 1000,
        seed: int = 0,
    ) -> None:
        for option, share in (("worked", worked), ("no_think", no_think)):
            if not 0 <= share <= 1:
                raise UserError(f"nano_traces option '{option}' must lie between 0 and 1, got {share}")
        self.weights = weights or {"chain_sum": 0.65, "spell_backward": 0.15, "syllogism": 0.2}
        unknown = sorted(set(self.weights) - set(CONFIGS))
        if unknown:
            raise UserError(f"nano_traces option 'weights' names '{unknown[0]}'; expected {', '.join(CONFIGS)}")
        if min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0:
            raise UserError(f"nano_traces option 'weights' must be 0 or more and not all 0, got {self.weights}")
        for option, count in (("size", size), ("validation_size", validation_size)):
            if count < 1:
                raise UserError(f"nano_traces option '{option}' must be 1 or more, got {count}")
        self.worked, self.no_think = worked, no_think
        self.size, self.validation_size, self.seed = size, validation_size, seed

    def problems(self, split: Split) -> Sequence[Problem]:
        first = self.seed * (self.size + self.validation_size)
        if split == "train":
            return _Traces(self, split, first + self.validation_size, self.size)
        return _Traces(self, split, first, self.validation_size)


class _Traces(Sequence[Problem]):
    """Item i of a split, made when asked for; reasoning-gym's item i at seed s is its item 0 at seed s + i."""

    def __init__(self, task: NanoTraces, split: Split, first: int, size: int) -> None:
        import reasoning_gym

        self.task, self.split, self.first, self.size = task, split, first, size
        self.sources = {
            name: reasoning_gym.create_dataset(name, seed=first, size=size, **CONFIGS[name]) for name in task.weights
        }

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        index = range(self.size)[index]
        draw = random.Random(f"nano traces {self.first + index}")
        name = draw.choices(list(self.task.weights), list(self.task.weights.values()))[0]
        entry = self.sources[name][index]
        thought, think = " ", None
        if draw.random() < self.task.worked:
            thought = f" {WORK_OUT[name](entry['question'])} "
        elif draw.random() < self.task.no_think:
            think = False
        return Problem(
            prompt=[{"role": "user", "content": entry["question"]}],
            answer=entry["answer"],
            completion=f"<think>{thought}</think> <answer> {entry['answer']} </answer>",
            think=think,
            task=name,
            id=f"{name}-{self.split}-{index}",
        )
