r"""What is too big to hand to a computer algebra system, told from the text alone in one pass.

`9^{9^{9^9}}` is eleven characters, `10^9!` five: sympy would work them out. The limits leave room for every answer a
data set of problems with short answers holds; what slips through still meets the deadline and the memory limit.
"""

from __future__ import annotations

import re

LONGEST = 2_000
"""Characters."""

_DEEPEST = 24  # brackets in brackets, and also roots and fractions in each other
_LONGEST_NUMBER = 400  # digits
_LARGEST_EXPONENT = 10_000
_LARGEST_TOWER = 100_000  # a power as an exponent, worked out
_LARGEST_FACTORIAL = 1_000
_LARGEST_BINOMIAL = 5_000
_LARGEST_BOUND = 1_000  # of a sum or a product
_MOST_OPERATORS = 3  # sums, products, integrals and limits in one answer
_MOST_CELLS = 64  # of a matrix
_MOST_FACTORS = 12  # powers of brackets, which simplifying multiplies out

_DIGITS = re.compile(r"\d[\d,]*")
_SCIENTIFIC = re.compile(r"\d\.?[eE][-+]?\d{4}")
_FACTORIAL = re.compile(r"(\d*)[\s})\]]*(!+)")
_OPERATOR = re.compile(r"\\(?:sum|prod|i+nt|oint|lim|bigcup|bigcap|coprod)(?![A-Za-z])")
_BINOMIAL = re.compile(r"\\[dt]?binom|\\choose|\)_\{")
_BOUND = re.compile(r"[_^]\s*(?:\{[^{}]*?(\d+)[^{}\d]*\}|(\d+))")
_NESTING = re.compile(r"[(\[{)\]}]")
_NESTED = re.compile(r"\\(?:sqrt|[dtc]?frac)(?![A-Za-z])")
_EXPONENT = re.compile(r"\^|\*\*")


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
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text):
        return "", start
    if text[start] in "({":
        depth = 0
        for match in _NESTING.finditer(text, start):
            depth += 1 if match.group() in "([{" else -1
            if depth == 0:
                return text[start + 1 : match.start()], match.end()
        return text[start + 1 :], len(text)
    match = re.compile(r"-?\d+|\\[A-Za-z]+|.", re.DOTALL).match(text, start)
    assert match is not None
    return match.group(), match.end()


def _big_powers(text: str) -> bool:
    """Exponents that are large numbers, powers of powers, or factorials."""
    brackets = 0
    at = 0
    while (match := _EXPONENT.search(text, at)) is not None:
        exponent, end = _group(text, match.end())
        at = match.end()
        following = _EXPONENT.match(text, end)
        if following is not None:  # 9^9^9, which goes on to the right
            exponent, _ = f"{exponent}^{text[following.end():]}", end
        if _largest(exponent) > _LARGEST_EXPONENT or "!" in exponent or _tower(exponent):
            return True
        if match.start() and text[match.start() - 1] in ")}" and _largest(exponent) > 1:
            brackets += min(_largest(exponent), _MOST_FACTORS)
            if _largest(exponent) > 100:
                return True
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
    return base > 1 and _largest(height) * base.bit_length() > _LARGEST_TOWER.bit_length()


def _largest(text: str) -> int:
    """The largest number in a text, 0 where there is none."""
    return max((int(digits.replace(",", "")[:20] or 0) for digits in _DIGITS.findall(text)), default=0)


def _big_factorials(text: str) -> bool:
    for match in _FACTORIAL.finditer(text):
        digits, marks = match.group(1, 2)
        number = int(digits[:20] or 0)
        inner = re.search(r"[!^*]|\\times|\\cdot", text[: match.start(2)]) is not None and not match.group().startswith(digits + marks)
        if number > _LARGEST_FACTORIAL or (len(marks) > 1 and (number > 6 or len(marks) > 2)) or inner:
            return True
    return False


def _big_operators(text: str) -> bool:
    operators = _OPERATOR.findall(text)
    if len(operators) > _MOST_OPERATORS:
        return True
    if operators and any(int((a or b)[:20]) > _LARGEST_BOUND for a, b in _BOUND.findall(text)):
        return True
    return _BINOMIAL.search(text) is not None and (_largest(text) > _LARGEST_BINOMIAL or "!" in text)
