r"""What an answer says, for the fast path: a small part of math-verify's grammar, with its habits.

Understood are numbers (decimals, fractions, mixed numbers, percentages, thousands separators), expressions in one-letter
variables and π with powers and square roots of numbers, equations of those, intervals, points, sets and lists. `X` is
`x`, `1,234` is a number though `1,23` is a list, `(1, 2)` may be a point or an interval. Anything else is `Unsure`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
_TOKEN = re.compile(r"\s*(\d+\.\d+|\.\d+|\d+|\\[A-Za-z]+|\\?.)", re.DOTALL)
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
        whole, above, below = (int(digits) for digits in match.group(2, 3, 4))
        if not above or not below or len(text) > 40:
            raise Unsure
        return scalars.number((whole + Fraction(above, below)) * (-1 if match[1] else 1))
    if match := _INFINITY.fullmatch(text):
        return Infinity(sign=-1 if match[1] == "-" else 1)
    items, brackets = _split(text)
    if len(items) > 1:
        return Group(brackets=brackets, items=[_read(item) for item in items])
    if brackets == "{}":
        return Group(brackets=brackets, items=[_read(items[0])])
    if text.count("\\pm") == 1:
        left, right = text.split("\\pm")
        centre = _expression(left) if left.strip() else None
        spread = _expression(right)
        both = (spread, scalars.negative(spread))
        return Group(brackets="{}", items=[scalars.plus(centre, s) if centre else s for s in both])
    return _expression(text)


def _split(text: str) -> tuple[list[str], str]:
    """The items of a list or of a bracket around everything, and the brackets; a text that is neither is one item."""
    cuts: list[int] = []
    opened: list[str] = []
    separators = set()
    for match in _BRACKET.finditer(text):
        piece = match.group()
        if piece in ",;":
            if not opened:
                cuts.append(match.start())
                separators.add(piece)
        elif piece[-1] in "([{":
            opened.append(piece)
        elif not opened or (piece[0] == "\\") != (opened.pop()[0] == "\\"):
            raise Unsure
        elif not opened and match.end() < len(text):
            separators.add("")  # so the first bracket does not close at the end
    if opened or len(separators - {""}) > 1:
        raise Unsure
    if cuts:
        return _cut(text, cuts), "{}"
    if "" in separators or not text:
        return [text], ""
    if text.startswith("\\{") and text.endswith("\\}"):
        inner = text[2:-2]
        return _cut(inner, _commas(inner)), "{}"
    if text[0] in "([" and text[-1] in ")]" and (commas := _commas(text[1:-1])):
        return _cut(text[1:-1], commas), text[0] + text[-1]
    return [text], ""


def _commas(text: str) -> list[int]:
    """Where the commas outside of brackets stand."""
    depth, commas = 0, []
    for match in _BRACKET.finditer(text):
        piece = match.group()
        if piece == ";":
            raise Unsure
        if piece == "," and not depth:
            commas.append(match.start())
        depth += (piece[-1] in "([{") - (piece[-1] in ")]}")
    return commas


def _cut(text: str, cuts: Sequence[int]) -> list[str]:
    bounds = [-1, *cuts, len(text)]
    return [text[start + 1 : end].strip() for start, end in zip(bounds, bounds[1:], strict=False)]


def _number(text: str, *, percent: bool = False) -> Scalar:
    if len(text) > 30:
        raise Unsure
    _, point, decimals = text.partition(".")
    return scalars.number(Fraction(text), len(decimals) if point else None, percent=percent)


def _expression(text: str) -> Scalar:
    reader = _Reader(_TOKEN.findall(text.strip()))
    value = reader.sum()
    if reader.at < len(reader.tokens):
        raise Unsure
    return value


class _Reader:
    """Recursive descent over the tokens of an expression."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise Unsure
        self.at += 1
        return token

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
        while (token := self.peek()) in ("\\frac", "\\sqrt", "\\pi", "(") or token.lower() in _VARIABLES:
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
        token = self.take()
        if token[0].isdecimal() or (token[0] == "." and len(token) > 1):
            return _number(token)
        if token == "\\pi" or token.lower() in _VARIABLES:
            if self.peek() == "(":
                raise Unsure  # a function, or a product
            return scalars.variable(token.removeprefix("\\").lower())
        if token == "(":
            return self.until(")")
        if token == "\\frac":
            self.take("{")
            above = self.until("}")
            self.take("{")
            return scalars.over(above, self.until("}"))
        if token == "\\sqrt":
            self.take("{")
            return scalars.root(self.until("}"))
        raise Unsure

    def until(self, bracket: str) -> Scalar:
        value = self.sum()
        self.take(bracket)
        return value
