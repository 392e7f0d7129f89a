r"""The fast path: verdicts on what most answers are, certain to be math-verify's, without its parser.

Texts come through math-verify's own normaliser first, which drops units and mends sloppy LaTeX, so that only its
grammar and its comparison are repeated here, for the kinds of answers that `lit_reason_math.reading` understands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from latex2sympy2_extended import normalize_latex
from math_verify import LatexExtractionConfig

from lit_reason_math import scalars
from lit_reason_math.reading import Equation, Group, Infinity, Item, Reading, read, relation_sides
from lit_reason_math.scalars import Scalar, Unsure

LONGEST = 300
"""Characters; longer answers are rarely of the kinds understood here."""

_NORMAL = LatexExtractionConfig().normalization_config
_APART = 1e-9
_WORDS = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*")
_TEXT = re.compile(r"\\text\{ ?([A-Za-z]{2,}(?: [A-Za-z]+)*) ?\}")
_CONSTANTS = ("pi", "gamma")
_DEGREES = re.compile(r"(?<=[\d}])\^(?:\\circ|\{\\circ\})$")


def verdict(gold: str, answer: str, *, places: int = 6) -> bool | None:
    r"""Whether math-verify takes `answer` for `gold`, both LaTeX without dollars; None where that is not certain.

    Args:
        gold: the gold answer.
        answer: what is judged.
        places: decimal places that decimals are rounded to.
    """
    if max(len(gold), len(answer)) > LONGEST or not (gold.isascii() and answer.isascii()):
        return None  # digits of other scripts, for one, are not what they seem
    gold, answer = _normal(gold), _normal(answer)
    try:
        if gold == answer and (_WORDS.fullmatch(gold) or _TEXT.fullmatch(gold) or relation_sides(gold)):
            return True
        if (ours := _TEXT.fullmatch(gold)) and (theirs := _TEXT.fullmatch(answer)):
            return _same_text(ours[1], theirs[1])
        return _same(_read(gold), read(answer), places)
    except Unsure:
        return None


def _normal(text: str) -> str:
    return _DEGREES.sub("", str(normalize_latex(" ".join(text.split()), _NORMAL)))


def _same_text(gold: str, answer: str) -> bool:
    ours, theirs = (text.replace(" ", "").lower() for text in (gold, answer))
    if ours in _CONSTANTS or theirs in _CONSTANTS:
        raise Unsure
    return ours == theirs


@lru_cache(maxsize=256)
def _read(gold: str) -> Reading:
    """`read`, remembered: a gold answer comes once for each completion of its group."""
    return read(gold)


def _same(gold: Reading, answer: Reading, places: int) -> bool:
    if isinstance(gold, Equation) or isinstance(answer, Equation):
        return _same_equation(gold, answer, places)
    if isinstance(gold, Group) and isinstance(answer, Group):
        if "{}" not in (gold.brackets, answer.brackets):
            return _same_row(gold, answer, places)
        if gold.brackets == answer.brackets:
            return _same_set(gold, answer, places)
    if isinstance(gold, Group) or isinstance(answer, Group):
        raise Unsure
    return _same_item(gold, answer, places)


def _same_item(gold: Item, answer: Item, places: int) -> bool:
    if isinstance(gold, Scalar) and isinstance(answer, Scalar):
        return scalars.same(gold, answer, places)
    if isinstance(gold, Infinity) and isinstance(answer, Infinity):
        return gold.sign == answer.sign
    if isinstance(gold, Group) or isinstance(answer, Group):
        raise Unsure
    if any(isinstance(side, Scalar) and side.variables for side in (gold, answer)):
        raise Unsure
    return False


def _same_equation(gold: Reading, answer: Reading, places: int) -> bool:
    """An equation may be answered by another; `x = 5` is also 5, whichever side says so."""
    if not isinstance(answer, Equation):
        if not isinstance(gold, Equation) or gold.name is None:
            raise Unsure
        return _same(gold.right, answer, places)
    if not isinstance(gold, Equation):
        return _same(gold, answer.right, places)
    sides = (gold.left, gold.right, answer.left, answer.right)
    if any(side.places is not None or side.percent or side.value == 0 for side in sides):
        raise Unsure
    free = gold.right.variables | answer.right.variables
    if gold.name is not None and gold.name == answer.name and gold.name not in free:
        return scalars.same(gold.right, answer.right, places)
    ours, theirs = (scalars.plus(e.left, e.right, -1) for e in (gold, answer))
    surds, quotient = (any(getattr(side, flag) for side in sides) for flag in ("surds", "quotient"))
    if not (surds and quotient) and ours.image in (theirs.image, scalars.negative(theirs).image):
        return True
    raise Unsure


def _same_row(gold: Group, answer: Group, places: int) -> bool:
    """Points and intervals; `(1, 2)` is an interval to math-verify and `(2, 1)` a point, but they compare alike."""
    for group in (gold, answer):
        if len(group.items) == 2:
            _check_interval(group)
        elif group.brackets != "()":
            raise Unsure
    if len(gold.items) != len(answer.items) or gold.brackets != answer.brackets:
        return False
    return _all_same(gold.items, answer.items, places)


def _check_interval(group: Group) -> None:
    """Leave out what math-verify may take for empty, a single number or a point."""
    low, high = (_bound(item) for item in group.items)
    if (low == -math.inf and group.brackets[0] == "[") or (high == math.inf and group.brackets[1] == "]"):
        raise Unsure
    if (group.brackets != "()" and high <= low) or abs(high - low) < _APART or math.isnan(high - low):
        raise Unsure


def _same_set(gold: Group, answer: Group, places: int) -> bool:
    """Sets and lists of numbers, in any order and each once, or of points of plain numbers."""
    if isinstance(gold.items[0], Group):
        return _points(gold) == _points(answer)
    ours, theirs = (sorted(group.items, key=_bound) for group in (gold, answer))
    for items in (ours, theirs):
        if any(_bound(after) - _bound(before) < _APART for before, after in pairwise(items)):
            raise Unsure
    return len(ours) == len(theirs) and _all_same(ours, theirs, places)


def _points(group: Group) -> set[tuple[Fraction, ...]]:
    points = set()
    for item in group.items:
        if not isinstance(item, Group) or item.brackets != "()":
            raise Unsure
        numbers = [n.number for n in item.items if isinstance(n, Scalar) and n.places is None and not n.percent]
        point = tuple(n for n in numbers if n is not None)
        if len(point) < len(item.items) or point in points:
            raise Unsure
        points.add(point)
    return points


def _bound(item: Item) -> float:
    """The value of a constant."""
    if isinstance(item, Infinity):
        return item.sign * math.inf
    if isinstance(item, Group) or item.variables or item.percent:
        raise Unsure
    return item.value


def _all_same(gold: Sequence[Item], answer: Sequence[Item], places: int) -> bool:
    """Whether all are; one that surely is not decides, whatever the others are."""
    unsure = False
    for ours, theirs in zip(gold, answer, strict=True):
        try:
            if not _same_item(ours, theirs, places):
                return False
        except Unsure:
            unsure = True
    if unsure:
        raise Unsure
    return True
