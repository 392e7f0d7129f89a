"""Whether what a program gave is what was expected; done in the process that trains, on data only.

`tree` is what `lit_reason_code.sandbox.wire.encode` makes of a value. It is compared as it is, never turned into sets
or dictionaries: thousands of numbers with one hash would keep those busy for minutes.
"""

from __future__ import annotations

import math
from typing import Any

_TOLERANCE = 1e-6
"""Relative and absolute, for expected values that are no integers; what statements of problems commonly ask for."""


def same_output(expected: str, given: str) -> bool:
    """Whether two outputs agree, line by line and to the last line.

    White space at line ends and blank lines at the end do not matter. Where a line is not equal, it may still have the
    same words, of which those expected with a decimal point may differ by a millionth.

    Args:
        expected: the right output.
        given: the program's.
    """
    right, left = _lines(expected), _lines(given)
    return len(right) == len(left) and all(map(_same_line, right, left))


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_line(expected: str, given: str) -> bool:
    if expected == given:
        return True
    right, left = expected.split(), given.split()
    return len(right) == len(left) and all(map(_same_word, right, left))


def _same_word(expected: str, given: str) -> bool:
    if expected == given or "." not in expected:
        return expected == given
    try:
        return _close(float(expected), float(given))
    except ValueError:
        return False


def same_result(expected: Any, tree: Any) -> bool:  # noqa: ANN401 - data
    """Whether a function returned what JSON expects of it.

    JSON knows neither tuples nor keys that are no text: a tuple is as good as a list, and 1 as good as "1" for a key.
    A list of one is also met by its item alone, as in the checker of APPS (arXiv 2105.09938), whose outputs are often
    wrapped so.

    Args:
        expected: plain JSON data.
        tree: the result, encoded.
    """
    if isinstance(expected, list | tuple) and len(expected) == 1 and _same(expected[0], tree):
        return True
    return _same(expected, tree)


def _same(expected: Any, tree: Any) -> bool:  # noqa: ANN401, PLR0911 - see above; one return for each type
    kind, content = next(iter(tree.items()), ("nothing", None)) if isinstance(tree, dict) else ("", tree)
    if isinstance(expected, list | tuple):
        if kind not in ("", "tuple") or not isinstance(content, list) or len(content) != len(expected):
            return False
        return all(map(_same, expected, content))
    if isinstance(expected, dict):
        if kind != "dict" or not isinstance(content, list) or len(content) != len(expected):
            return False
        given = {_key(pair): pair[1] for pair in content if isinstance(pair, list) and len(pair) == 2}
        return len(given) == len(expected) and all(
            str(key) in given and _same(value, given[str(key)]) for key, value in expected.items()
        )
    if kind == "int":
        return type(expected) is int and content == hex(expected)
    if isinstance(content, list | dict) or kind:
        return False
    if isinstance(expected, float) and isinstance(content, int | float):
        return _close(expected, content)
    return (expected is None) == (content is None) and bool(expected == content)


def _key(pair: list[Any]) -> str | None:
    return str(pair[0]) if isinstance(pair[0], str | int | float) else None


def _close(expected: float, given: float) -> bool:
    try:
        return math.isclose(expected, given, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except OverflowError:  # an integer too large for a float
        return False
