r"""What an answer says, for the fast path: a small part of math-verify's grammar, with its habits.

Understood are numbers (decimals, fractions, mixed numbers, percentages, thousands separators), expressions in
one-letter variables and π with powers and square roots of numbers, equations of those, intervals, points, sets and
lists. `X` is `x`, `1,234` is a number though `1,23` is a list, `(1, 2)` may be a point or an interval. Anything else is
`Unsure`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

from lit_reason_math import scalars
from lit_reason_math.scalars import Scalar, Unsure

_GROUPED = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_PERCENTAGE = re.compile(r"(\d+(?:\.\d+)?)\\?%")
_MIXED = re.compile(r"(-?)(\d+) ?\\frac\{(\d+)\}\{(\d+)\}")
_INFINITY = re.compile(r"([-+]?)\\infty")
_THOUSANDS = re.compile(r"\d,\d{3}(?!\d)")  # inside anything longer: one number or two?
_RELATION = re.compile(r"=|<|>|\\(?:leq?|geq?|neq?)(?![A-Za-z])")
_PIECE = re.compile(r"\s*(\d+\.\d+|\.\d+|\d+|\\[A-Za-z]+|\\?.)", re.DOTALL)
_BRACKET = re.compile(r"\\?[(\[{}\])]|[,;]")
_OPERATORS: dict[str, Callable[[Scalar, Scalar], Scalar]] = {
    "*": scalars.times,
    "\\cdot": scalars.times,
    "\\times": scalars.times,
    "/": scalars.over,
    "\\div": scalars.over,
}
_VARIABLES = frozenset("abcfghjklmnopqrstuvwxyz")  # d begins a differential, e and i are numbers
_MOST_EXPONENT = 40
_MOST_DIGITS = 15
_DEEPEST = 12


@dataclass(kw_only=True, slots=True, frozen=True)
class Infinity:
    """∞ or -∞."""

    sign: int


@dataclass(kw_only=True, slots=True, frozen=True)
class Group:
    """What stands between two brackets such as `[)`, or a set or list, whose brackets are `{}`."""

    brackets: str
    items: Sequence[Scalar | Infinity | Group]


@dataclass(kw_only=True, slots=True, frozen=True)
class Equation:
    """Two sides; `name` is the variable on the left where it stands there alone, and None otherwise."""

    left: Scalar
    right: Scalar
    name: str | None


Item = Scalar | Infinity | Group
Reading = Item | Equation


def read(text: str) -> Reading:
    """What a normalised text says.

    Raises:
        Unsure: it is not among what is understood.
    """
    sides = _RELATION.split(text)
    if len(sides) > 2 or (len(sides) == 2 and "=" not in text):
        raise Unsure
    if len(sides) == 2:
        left, right = (_expression(side) for side in sides)
        (name,) = left.variables if left.symbol else (None,)
        return Equation(left=left, right=right, name=name)
    return _read(text.strip())


def relation_sides(text: str) -> list[Reading]:
    """What stands on the sides of the relations in a text, of which there may be any number.

    Raises:
        Unsure: one of them is not among what is understood.
    """
    return [_read(side.strip()) for side in _RELATION.split(text)]


def _read(text: str) -> Item:
    if _GROUPED.fullmatch(text):
        return _number(text.replace(",", ""))
    if _THOUSANDS.search(text):
        raise Unsure
    if match := _PERCENTAGE.fullmatch(text):
        return _number(match[1], percent=True)
    if match := _MIXED.fullmatch(text):
        return _mixed(*match.groups())
    if match := _INFINITY.fullmatch(text):
        return Infinity(sign=-1 if match[1] == "-" else 1)
    items, brackets = _split(text)
    if brackets:
        return Group(brackets=brackets, items=[_read(item) for item in items])
    return _either(text) if "\\pm" in text else _expression(text)


def _mixed(sign: str, whole: str, above: str, below: str) -> Scalar:
    if max(map(len, (whole, above, below))) > _MOST_DIGITS or not int(above) or not int(below):
        raise Unsure
    value = int(whole) + Fraction(int(above), int(below))
    return scalars.number(-value if sign else value)


def _either(text: str) -> Group:
    """The two numbers that a `±` stands for."""
    left, _, right = text.partition("\\pm")
    spread = _expression(right)
    both = (spread, scalars.negative(spread))
    if not left.strip():
        return Group(brackets="{}", items=both)
    centre = _expression(left)
    return Group(brackets="{}", items=[scalars.plus(centre, one) for one in both])


def _split(text: str) -> tuple[list[str], str]:
    """The items of a list, or of a bracket around everything, and the brackets; "" for a text that is neither."""
    items = _items(text)
    if len(items) > 1:
        return items, "{}"
    if text.startswith("\\{") and text.endswith("\\}"):
        return _items(text[2:-2]), "{}"
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        with suppress(Unsure):  # (x+1)(x-1) begins and ends with brackets that are no pair
            items = _items(text[1:-1])
        if len(items) > 1:
            return items, text[0] + text[-1]
    return items, ""


def _items(text: str) -> list[str]:
    """What stands between the commas, or semicolons, outside of brackets; a bracket may close another kind's."""
    depth, start, items, separators = 0, 0, [], set()
    for match in _BRACKET.finditer(text):
        piece = match.group()
        if piece in ",;":
            if not depth:
                items.append(text[start : match.start()].strip())
                start = match.end()
                separators.add(piece)
            continue
        depth += 1 if piece[-1] in "([{" else -1
        if depth < 0:
            raise Unsure
    if depth or len(separators) > 1:
        raise Unsure
    return [*items, text[start:].strip()]


def _number(text: str, *, percent: bool = False) -> Scalar:
    if len(text) > 2 * _MOST_DIGITS:
        raise Unsure
    _, point, decimals = text.partition(".")
    return scalars.number(Fraction(text), len(decimals) if point else None, percent=percent)


def _expression(text: str) -> Scalar:
    reader = _Reader(_PIECE.findall(text.strip()))
    value = reader.sum()
    if reader.at < len(reader.pieces):
        raise Unsure
    return value


class _Reader:
    """Recursive descent over the pieces of an expression: numbers, letters, commands and signs."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces, self.at, self.depth = pieces, 0, 0

    def peek(self) -> str:
        return self.pieces[self.at] if self.at < len(self.pieces) else ""

    def take(self, expected: str | None = None) -> str:
        piece = self.peek()
        if not piece or (expected is not None and piece != expected):
            raise Unsure
        self.at += 1
        return piece

    def sum(self) -> Scalar:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Unsure
        sign = self.take() if self.peek() in ("+", "-") else "+"
        value = self.product()
        if sign == "-":
            value = scalars.negative(value)
        while self.peek() in ("+", "-"):
            value = scalars.plus(value, sign=-1 if self.take() == "-" else 1, b=self.product())
        self.depth -= 1
        return value

    def product(self) -> Scalar:
        value = self.factors()
        while (operator := _OPERATORS.get(self.peek())) is not None:
            self.take()
            value = operator(value, self.factors())
        return value

    def factors(self) -> Scalar:
        """Factors beside each other, which bind more tightly than a slash between others."""
        value = self.factor()
        while (piece := self.peek()) in ("\\frac", "\\sqrt", "\\pi", "(") or piece.lower() in _VARIABLES:
            following = self.factor()
            if following.number is not None:
                raise Unsure  # beside a whole number it is added, and multiplied elsewhere
            value = scalars.times(value, following)
        return value

    def factor(self) -> Scalar:
        base = self.base()
        if self.peek() != "^":
            return base
        self.take()
        braces = self.peek() == "{"
        if braces:
            self.take()
        sign = self.take() if braces and self.peek() == "-" else ""
        digits = self.take()
        if braces:
            self.take("}")
        if not digits.isascii() or not digits.isdecimal() or len(digits) > 2 or int(digits) > _MOST_EXPONENT:
            raise Unsure
        if self.peek() == "^":
            raise Unsure
        return scalars.power(base, int(sign + digits))

    def base(self) -> Scalar:
        piece = self.take()
        if piece[0].isdecimal() or (piece[0] == "." and len(piece) > 1):
            return _number(piece)
        if piece == "\\pi" or piece.lower() in _VARIABLES:
            if self.peek() == "(":
                raise Unsure  # a function, or a product
            return scalars.variable(piece.removeprefix("\\").lower())
        if piece == "(":
            return self.until(")")
        if piece == "\\frac":
            self.take("{")
            above = self.until("}")
            self.take("{")
            return scalars.over(above, self.until("}"))
        if piece == "\\sqrt":
            self.take("{")
            return scalars.root(self.until("}"))
        raise Unsure

    def until(self, bracket: str) -> Scalar:
        value = self.sum()
        self.take(bracket)
        return value
