"""The conformance kit passes sound tasks and names what is wrong with others."""

import random
from collections.abc import Sequence

import pytest
import torch

from lit_reason.task import Task
from lit_reason.testing import check_task
from lit_reason.types import Problem


class Sound(Task):
    """Sums, twenty to learn from and five held out; the classes below each spoil one thing."""

    def problems(self, split: str) -> Sequence[Problem]:
        numbers = range(20) if split == "train" else range(20, 25)
        return [self.make(n) for n in numbers]

    def make(self, n: int) -> Problem:
        prompt = [{"role": "user", "content": f"{n} + 1?"}]
        return Problem(prompt=prompt, answer=str(n + 1), id=str(n), scorer=self.score)


class Adaptive(Sound):
    def __init__(self) -> None:
        self.level = 1

    def state_dict(self) -> dict[str, int]:
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.level = state["level"]


class Leaking(Sound):
    def problems(self, split: str) -> Sequence[Problem]:
        return [self.make(n) for n in (range(20) if split == "train" else range(19, 25))]


class Restless(Sound):
    def make(self, n: int) -> Problem:
        return super().make(n + 100 * random.randrange(10**9))


class SameId(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.id = "same"
        return problem


class Nameless(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.id = ""
        return problem


class EndsWithAssistant(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.prompt = [*problem.prompt, {"role": "assistant", "content": "hm"}]
        return problem


class OddRole(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.prompt = [{"role": "developer", "content": "x"}, *problem.prompt]
        return problem


class TextPrompt(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.prompt = f"{n}"  # type: ignore[assignment]  # the mistake under test
        return problem


class WrongGold(Sound):
    def score(self, problem: Problem, answer: str | None) -> float:
        return float(answer is not None and answer == "never")


class TrustsInt(Sound):
    def score(self, problem: Problem, answer: str | None) -> float:
        return float(answer is not None and int(answer) == int(problem.answer or 0))


class AcceptsNothing(Sound):
    def score(self, problem: Problem, answer: str | None) -> float:
        return 1.0


class OutOfRange(Sound):
    def score(self, problem: Problem, answer: str | None) -> float:
        return super().score(problem, answer) * 1.0 if answer == problem.answer else -1.0


class Endless(Sound):
    class Sequence(list):  # a sequence that wraps around
        def __getitem__(self, index):
            return super().__getitem__(index % len(self))

    def problems(self, split: str) -> Sequence[Problem]:
        return Endless.Sequence(super().problems(split))


class LocalScorer(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.scorer = lambda p, answer: float(answer == p.answer)
        return problem


class Empty(Sound):
    def problems(self, split: str) -> Sequence[Problem]:
        return []


class StateOfTensors(Sound):
    def state_dict(self):
        return {"level": torch.ones(1)}


@pytest.mark.parametrize("task", [Sound(), Adaptive()])
def test_sound_tasks_pass(task: Task) -> None:
    check_task(task)


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (Leaking, "train and validation share 1 prompts, such as"),
        (Restless, "problems('train')[0] is another problem in a second call"),
        (SameId, "ids of 'train' are not unique: 'same' appears twice"),
        (Nameless, "a problem of 'train' has no id"),
        (EndsWithAssistant, "the prompt ends with a message of 'assistant', expected 'user'"),
        (OddRole, "roles are system, user and assistant, got 'developer'"),
        (TextPrompt, "prompt must be a list of messages, got '0'"),
        (WrongGold, "the gold answer '1' scores 0.0, not 1.0"),
        (TrustsInt, "scoring the answer '' raised ValueError"),
        (AcceptsNothing, "a completion without an answer scores 1.0"),
        (OutOfRange, "the answer None scores -1.0, expected a number in [0, 1]"),
        (Endless, "problems('train')[len] gave a problem, expected IndexError"),
        (LocalScorer, "pickling a problem raised"),
        (Empty, "problems('train') is empty"),
        (StateOfTensors, "state_dict is not made of plain values"),
    ],
)
def test_a_tasks_fault_is_named(task: type[Task], complaint: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_task(task())
    assert str(error.value).startswith(f"{task.__name__} does not conform:\n- ")
    assert complaint in str(error.value)
