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
    """Column by column from the right, carries and borrows written out: `247 + 385` is `7+5=12 4+8+1=13 2+3+1=6`.

    A difference below zero is turned around first: `57 - 87` is `87-57 7-7=0 8-5=3`.

    Args:
        question: a sum or difference of two terms with equally many digits.

    Raises:
        ValueError: the question is something else.
    """
    match = _SUM.search(question)
    if match is None or len(match[1]) != len(match[3]):
        raise ValueError(f"expected a sum of two terms with equally many digits, got {question!r}")
    a, sign, b = match.groups()
    steps = []
    if sign == "-" and int(a) < int(b):
        a, b = b, a
        steps.append(f"{a}-{b}")
    carry = 0
    for x, y in zip(map(int, reversed(a)), map(int, reversed(b)), strict=True):
        carried = f"{sign}1" if carry else ""
        if sign == "+":
            total = x + y + carry
            carry = total // 10
            steps.append(f"{x}+{y}{carried}={total}")
        else:
            borrowed = int(x - y - carry < 0)
            steps.append(f"{x + 10 * borrowed}-{y}{carried}={x + 10 * borrowed - y - carry}")
            carry = borrowed
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
