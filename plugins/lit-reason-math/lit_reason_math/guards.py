r"""What is too big to hand to a computer algebra system, told from the text alone in one pass.

`9^{9^{9^9}}` is eleven characters, `10^9!` five: sympy would work them out. The limits leave room for every answer a
data set of problems with short answers holds; what slips through still meets the deadline and the memory limit.
"""

from __future__ import annotations

import math
import re

LONGEST = 2_000
"""Characters."""

_DEEPEST = 24  # brackets in brackets, and also roots and fractions in each other
_LONGEST_NUMBER = 400  # digits
_LARGEST_EXPONENT = 10_000  # also worked out, where it is a power itself
_LARGEST_FACTORIAL = 1_000
_LARGEST_BINOMIAL = 5_000
_LARGEST_BOUND = 10_000  # of a sum or a product
_MOST_OPERATORS = 3  # sums, products, integrals and limits in one answer
_MOST_CELLS = 64  # of a matrix
_MOST_FACTORS = 12  # powers of brackets, which simplifying multiplies out

_DIGITS = re.compile(r"\d+(?:,\d{3})*")
_SCIENTIFIC = re.compile(r"\d\.?[eE][-+]?\d{4}")
_FACTORIAL = re.compile(r"(\d*)\s*(!+)")
_GROWS = re.compile(r"!|[\d})]\s*(?:\^|\*|\\cdot|\\times)")
_OPERATOR = re.compile(r"\\(?:sum|prod|i+nt|oint|lim|bigcup|bigcap|coprod)(?![A-Za-z])")
_BINOMIAL = re.compile(r"\\[dtc]?binom")
_PERMUTATION = re.compile(r"\)_\{")
_BOUND = re.compile(r"[_^]\s*(?:\{[^{}]*?(\d+)[^{}\d]*\}|(\d+))")
_NESTING = re.compile(r"[(\[{)\]}]")
_NESTED = re.compile(r"\\(?:sqrt|[dtc]?frac)(?![A-Za-z])")
_EXPONENT = re.compile(r"\^|\*\*")
_OPERAND = re.compile(r"\s*(-?\d+|\\[A-Za-z]+|\S)")


def too_big(text: str) -> bool:
    """Whether working out what a text says could take long or much memory, or its parser would not bear it.

    Args:
        text: a gold answer or an answer, of any length.
    """
    return (
        len(text) > LONGEST
        or _depth(text) > _DEEPEST
        or len(_NESTED.findall(text)) > 2 * _DEEPEST
        or any(len(match.group()) > _LONGEST_NUMBER for match in _DIGITS.finditer(text))
        or _SCIENTIFIC.search(text) is not None
        or _big_powers(text)
        or _big_factorials(text)
        or _big_operators(text)
        or text.count("&") + text.count("\\\\") > _MOST_CELLS
    )


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in _NESTING.finditer(text):
        depth += 1 if match.group() in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def _group(text: str, start: int) -> tuple[str, int]:
    """What follows a `^`: the content of a bracket, a number or a character, and where it ends."""
    match = _OPERAND.match(text, start)
    if match is None:
        return "", len(text)
    if match[1][0] not in "({":
        return match[1], match.end()
    depth = 0
    for bracket in _NESTING.finditer(text, match.start(1)):
        depth += 1 if bracket.group() in "([{" else -1
        if depth == 0:
            return text[match.start(1) + 1 : bracket.start()], bracket.end()
    return text[match.start(1) + 1 :], len(text)


def _group_before(text: str, end: int) -> str:
    """The content of the bracket that closes at `end`, "" where none does."""
    depth = 0
    for at in range(end - 1, -1, -1):
        depth += (text[at] in ")]}") - (text[at] in "([{")
        if depth <= 0:
            return text[at + 1 : end - 1]
    return text[:end]


def _big_powers(text: str) -> bool:
    """Exponents that are large numbers or large powers themselves, and many powers of brackets."""
    brackets = 0
    for match in _EXPONENT.finditer(text):
        exponent, end = _group(text, match.end())
        if _EXPONENT.match(text, end) is not None:  # 9^9^9, which goes on to the right
            exponent += text[end:]
        largest = _largest(exponent)
        if largest > _LARGEST_EXPONENT or "!" in exponent or _tower(exponent):
            return True
        if text[: match.start()].endswith((")", "}")):
            inner = _group_before(text, match.start())  # (2^9999)^9999
            exponents = [_largest(_group(inner, within.end())[0]) for within in _EXPONENT.finditer(inner)]
            if largest * max(exponents, default=0) > _LARGEST_EXPONENT:
                return True
            brackets += min(largest, _MOST_FACTORS)
    return brackets > 3 * _MOST_FACTORS


def _tower(exponent: str) -> bool:
    """Whether an exponent is itself a large power."""
    inner = _EXPONENT.search(exponent)
    if inner is None:
        return False
    height, _ = _group(exponent, inner.end())
    rest = exponent[inner.end() :]
    if _EXPONENT.search(rest) is not None:
        return True
    base = max(_largest(exponent[: inner.start()]), 1)
    return _largest(height) * math.log2(base) > math.log2(_LARGEST_EXPONENT)


def _largest(text: str) -> int:
    """The largest number in a text, 0 where there is none."""
    return max((int(digits.replace(",", "")[:20] or 0) for digits in _DIGITS.findall(text)), default=0)


def _big_factorials(text: str) -> bool:
    for match in _FACTORIAL.finditer(text):
        number, marks = int(match[1][:20] or 0), len(match[2])
        inner = "" if match[1] else _group_before(text, match.start())
        largest = max(number, _largest(inner))
        if largest > _LARGEST_FACTORIAL or marks > 2 or (marks == 2 and largest > 6) or _GROWS.search(inner):
            return True
    return False


def _big_operators(text: str) -> bool:
    operators = _OPERATOR.findall(text)
    if len(operators) > _MOST_OPERATORS:
        return True
    if operators and any(int((a or b)[:20]) > _LARGEST_BOUND for a, b in _BOUND.findall(text)):
        return True
    for match in _BINOMIAL.finditer(text):
        above, end = _group(text, match.end())
        below, _ = _group(text, end)
        if max(_largest(above), _largest(below)) > _LARGEST_BINOMIAL or _GROWS.search(f"{above} {below}"):
            return True
    for match in _PERMUTATION.finditer(text):  # (n)_{k}, which math-verify's normaliser writes with factorials
        inner = _group_before(text, match.start() + 1)
        if _largest(inner) > _LARGEST_FACTORIAL or _GROWS.search(inner):
            return True
    return False
