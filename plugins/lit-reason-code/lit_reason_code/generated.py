"""`generated_code`: tiny programming problems, made up, with solutions and tests."""

from __future__ import annotations

import random
from functools import partial
from itertools import product
from typing import Any, Literal

from lit_reason.task import Split, Task
from lit_reason.types import Problem, UserError
from lit_reason_code.reward import is_confined, passes

_Made = tuple[str, str, dict[str, Any]]  # question, program, metadata


class GeneratedCode(Task):
    """Functions and scripts of a line or two, one problem in three of each kind of test that reward `code` knows.

    Every pair of numbers gives one problem of each family. They are shuffled once and then divided, so that no problem
    is in both splits.

    Args:
        largest: largest number in a question; there are 6 * `largest` squared problems.
        validation: how many problems are held out.
        seed: of the shuffle and of the tests' inputs.
        sandbox: where the task runs programs, as for reward `code`.

    Raises:
        UserError: too few problems to hold out `validation` and keep some.
    """

    name = "generated_code"

    def __init__(
        self, *, largest: int = 20, validation: int = 200, seed: int = 0, sandbox: Literal["auto", "unsafe"] = "auto"
    ) -> None:
        keys = list(product(range(len(_FAMILIES)), range(1, largest + 1), range(1, largest + 1)))
        if not 0 <= validation < len(keys):
            raise UserError(
                f"task 'generated_code': validation must be between 0 and {max(len(keys) - 1, 0)}, one less than the "
                f"problems there are with largest = {largest}; got {validation}"
            )
        self.confined = is_confined("task 'generated_code'", sandbox)
        self.seed = seed
        random.Random(seed).shuffle(keys)
        self.keys: dict[Split, list[tuple[int, int, int]]] = {
            "validation": keys[:validation],
            "train": keys[validation:],
        }

    def problems(self, split: Split) -> list[Problem]:
        return [self._problem(*key) for key in self.keys[split]]

    def score(self, problem: Problem, answer: str | None) -> float:
        return passes(problem, answer, confined=self.confined)

    def _problem(self, family: int, a: int, b: int) -> Problem:
        draw = random.Random(f"{self.seed} {family} {a} {b}")
        question, program, metadata = _FAMILIES[family](a, b, draw)
        return Problem(
            prompt=[{"role": "user", "content": f"{question} Answer with Python between <answer> and </answer>."}],
            answer=program,
            completion=f"<think> {question} </think> <answer>\n```python\n{program}\n```\n</answer>",
            task=self.name,
            id=f"{family}-{a}-{b}",
            metadata=metadata,
            scorer=partial(passes, confined=self.confined),
        )


def _numbers(draw: random.Random, count: int) -> list[int]:
    return [draw.randint(-50, 50) for _ in range(count)]


def _linear(a: int, b: int, draw: random.Random) -> _Made:
    question = f"Write a function f(x) that returns {a} * x + {b}."
    xs = _numbers(draw, 5)
    metadata = {"entry_point": "f", "inputs": [[x] for x in xs], "outputs": [a * x + b for x in xs]}
    return question, f"def f(x):\n    return {a} * x + {b}", metadata


def _ends(a: int, b: int, draw: random.Random) -> _Made:
    question = f"Write a function f(s) that returns the first {a} characters of s followed by its last {b}."
    texts = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 50))) for _ in range(5)]
    metadata = {"entry_point": "f", "inputs": [[s] for s in texts], "outputs": [s[:a] + s[-b:] for s in texts]}
    return question, f"def f(s):\n    return s[:{a}] + s[-{b}:]", metadata


def _weighted_sum(a: int, b: int, draw: random.Random) -> _Made:
    question = f"Read two integers, each on its own line, and print {a} times the first plus {b} times the second."
    pairs = [_numbers(draw, 2) for _ in range(4)]
    metadata = {"inputs": [f"{x}\n{y}\n" for x, y in pairs], "outputs": [f"{a * x + b * y}\n" for x, y in pairs]}
    return question, f"x = int(input())\ny = int(input())\nprint({a} * x + {b} * y)", metadata


def _table(a: int, b: int, draw: random.Random) -> _Made:
    question = f"Read an integer n and print n lines: for each i from 1 to n, {a} * i and {b} * i with a space between."
    counts = draw.sample(range(2, 30), 4)
    outputs = ["\n".join(f"{a * i} {b * i}" for i in range(1, n + 1)) for n in counts]
    program = f"for i in range(1, int(input()) + 1):\n    print({a} * i, {b} * i)"
    return question, program, {"inputs": [f"{n}\n" for n in counts], "outputs": outputs}


def _between(a: int, b: int, draw: random.Random) -> _Made:
    low, high = min(a, b), max(a, b) + a
    question = f"Write a function f(items) that returns the set of those items that are from {low} to {high} + {b}."
    lists = [_numbers(draw, 12) for _ in range(3)]
    tests = [f"assert f({items}) == { {x for x in items if low <= x <= high + b}!r}" for items in lists]
    program = f"def f(items):\n    return {{x for x in items if {low} <= x <= {high} + {b}}}"
    return question, program, {"tests": tests}


def _quotient(a: int, b: int, draw: random.Random) -> _Made:
    question = f"Write a function f(x) that returns a tuple: x divided by {a}, and whether x is more than {b}."
    tests = [f"def check(candidate):\n    assert candidate({a * b}) == ({b}.0, {a * b > b})"]
    tests += [
        f"    assert abs(candidate({x})[0] - {x / a!r}) < 1e-6 and candidate({x})[1] is {x > b}"
        for x in _numbers(draw, 3)
    ]
    program = f"def f(x):\n    return x / {a}, x > {b}"
    return question, program, {"tests": "\n".join(tests), "entry_point": "f"}


_FAMILIES = (_linear, _ends, _weighted_sum, _table, _between, _quotient)
