"""Worked solutions of reasoning-gym problems, written by rule: what nano learns from.

Each function reads a question's own text and writes what belongs between `<think>` and `</think>`. A step needs only
digits or words that stand nearby, so that a model of a million parameters can follow it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_SUM = re.compile(r": (\d+) ([+-]) (\d+) =$")
_STATEMENT = re.compile(r"^(?:\d\. )?(All|No|Some) (\w+) are (not )?(\w+)\??$", re.MULTILINE)

Statement = tuple[str, str, str]
"""Quantifier ("All", "No", "Some", "Some-not"), subject, predicate."""

_NEGATIVE = ("No", "Some-not")
_PARTICULAR = ("Some", "Some-not")


def chain_sum(question: str) -> str:
    """Restate the sum, then go column by column from the right, carries and borrows written out.

    `247 + 385` is `247+385 7+5+0=12 4+8+1=13 2+3+1=06`: two digits, a carry and a two-digit result in every column.
    `85 - 47` is `85-47 15-7-0=8 08-4-1=3`, and a difference below zero is turned around: `57 - 87` is
    `87-57 07-7-0=0 08-5-0=3`. All columns are equally long, so a digit's place in the sum follows from where one is.

    Args:
        question: a sum or difference of two terms with equally many digits.

    Raises:
        ValueError: the question is something else.
    """
    match = _SUM.search(question)
    if match is None or len(match[1]) != len(match[3]):
        raise ValueError(f"expected a sum of two terms with equally many digits, got {question!r}")
    a, sign, b = match.groups()
    if sign == "-" and int(a) < int(b):
        a, b = b, a
    steps = [f"{a}{sign}{b}"]
    carry = 0
    for x, y in zip(map(int, reversed(a)), map(int, reversed(b)), strict=True):
        if sign == "+":
            total = x + y + carry
            steps.append(f"{x}+{y}+{carry}={total:02}")
            carry = total // 10
        else:
            borrow = int(x < y + carry)
            minuend = x + 10 * borrow
            steps.append(f"{minuend:02}-{y}-{carry}={minuend - y - carry}")
            carry = borrow
    return " ".join(steps)


def spell_backward(question: str) -> str:
    """Number the letters, then read them from the last number down: `sun` is `1s2u3n 3n2u1s`."""
    numbered = [f"{i}{letter}" for i, letter in enumerate(question.rsplit(" ", 1)[1], 1)]
    return f"{''.join(numbered)} {''.join(reversed(numbered))}"


def syllogism(question: str) -> str:
    """Restate the argument in the letters a, b, c, then name the rule that breaks it, or say that it holds.

    Two premises about a-b and b-c with a conclusion about a-c are judged by the classical rules (negative premises,
    particular premises, distribution of terms); a conclusion that turns one premise around, by the rules of conversion.

    Raises:
        ValueError: the question holds no three statements.
    """
    found = [("Some-not" if negated else q, s, p) for q, s, negated, p in _STATEMENT.findall(question)]
    if len(found) != 3:
        raise ValueError(f"expected two premises and a conclusion, got {question!r}")
    first, second, conclusion = found
    letters = {first[1]: "a", first[2]: "b", second[2]: "c"}
    restated = ", ".join(f"{q} {letters[s]} {letters[p]}" for q, s, p in found)
    fault = (_fault if conclusion[1] == first[1] else _conversion_fault)(first, second, conclusion)
    return f"{restated}: {fault or 'follows'}"


def _fault(first: Statement, second: Statement, conclusion: Statement) -> str | None:
    """The first classical rule that a-b, b-c, so a-c breaks."""
    premises, wanted = (first[0], second[0]), conclusion[0]
    negatives = sum(q in _NEGATIVE for q in premises)
    particulars = sum(q in _PARTICULAR for q in premises)
    if negatives == 2:
        return "two negative"
    if particulars == 2:
        return "two particular"
    if particulars and wanted not in _PARTICULAR:
        return "particular"
    if bool(negatives) != (wanted in _NEGATIVE):
        return "negative"
    subject_spread, predicate_spread = first[0] in ("All", "No"), second[0] in _NEGATIVE
    if (wanted in ("All", "No") and not subject_spread) or (wanted in _NEGATIVE and not predicate_spread):
        return "too wide"
    return None


def _conversion_fault(first: Statement, second: Statement, conclusion: Statement) -> str | None:
    """Why a conclusion about b-a or c-b does not turn its premise around: No to No, Some to Some, All to Some."""
    premise = first if conclusion[2] == first[1] else second
    turned = {"No": "No", "Some": "Some", "All": "Some"}.get(premise[0])
    return None if turned == conclusion[0] else f"turned {turned or 'nothing'}"


WORK_OUT: dict[str, Callable[[str], str]] = {
    "chain_sum": chain_sum,
    "spell_backward": spell_backward,
    "syllogism": syllogism,
}
"""Question -> the steps of thought, by reasoning-gym's name of the task."""
