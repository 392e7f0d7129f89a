r"""Numbers and expressions of the fast path, and when two of them are surely the same to math-verify.

An expression is kept as its image under a ring homomorphism into a prime field: π and every variable go to fixed random
elements, √n to a root of n. Two images differ only if the expressions do, and agree by chance with a probability near
degree / 2^126 (Schwartz, J. ACM 27, 1980). Beside it stands a floating-point value at one point, because math-verify
takes expressions for equal that agree to 15 digits. What the two cannot settle raises `Unsure`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from sympy.ntheory import sqrt_mod

_SMALL_PRIMES = tuple(n for n in range(2, 100) if all(n % d for d in range(2, n)))
# 1 modulo 8 and modulo every odd prime below 100, so that by quadratic reciprocity each of these has a square root
_PRIME = 5 * 4 * math.prod(_SMALL_PRIMES) + 1
_APART = 1e-9  # relative; farther apart than this no rounding of math-verify's brings two expressions together
_LARGEST_RADICAND = 10**9
_MOST_DIGITS = 15  # of a decimal: math-verify reads it as a double


class Unsure(Exception):  # noqa: N818 - no error: the text is for math-verify to read
    """The fast path cannot be certain of math-verify's verdict."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Scalar:
    """A number or an expression.

    Attributes:
        image: in the prime field.
        value: at the point where π is π and every variable a fixed number.
        number: the value when math-verify holds a plain number, not an expression that comes to one.
        places: decimal places when it is written as a decimal, else None.
        percent: whether `number` counts hundredths.
        symbol: whether it is a variable alone.
        variables: those that occur.
        surds: whether a root occurs.
        sums: whether something is added.
        quotient: whether something is divided by a sum or a variable.
    """

    image: int
    value: float
    number: Fraction | None = None
    places: int | None = None
    percent: bool = False
    symbol: bool = False
    variables: frozenset[str] = frozenset()
    surds: bool = False
    sums: bool = False
    quotient: bool = False


def number(value: Fraction, places: int | None = None, *, percent: bool = False) -> Scalar:
    """A plain number.

    Raises:
        Unsure: it is a decimal that a double does not hold.
    """
    if places is not None and len(str(abs(value.numerator) * 10**places // value.denominator)) > _MOST_DIGITS:
        raise Unsure
    share = value / 100 if percent else value
    try:
        image = share.numerator * pow(share.denominator, -1, _PRIME) % _PRIME
        return Scalar(image=image, value=float(share), number=value, places=places, percent=percent)
    except (OverflowError, ValueError) as error:
        raise Unsure from error


def variable(name: str) -> Scalar:
    """A variable, or π."""
    image, value = _point(name)
    if name == "pi":
        return Scalar(image=image, value=math.pi)
    return Scalar(image=image, value=value, symbol=True, variables=frozenset({name}))


def root(of: Scalar) -> Scalar:
    """The square root of a plain positive number."""
    if of.number is None or of.number <= 0 or of.places is not None:
        raise Unsure
    p, q = of.number.numerator, of.number.denominator
    image = _root_image(p * q) * pow(q, -1, _PRIME) % _PRIME
    return Scalar(image=image, value=math.sqrt(of.value), surds=True)


def plus(a: Scalar, b: Scalar, sign: int = 1) -> Scalar:
    """The sum, or the difference with sign -1."""
    return _joined((a, b), (a.image + sign * b.image) % _PRIME, a.value + sign * b.value, sums=True)


def negative(a: Scalar) -> Scalar:
    """-a; of a number again a number."""
    if a.percent:
        raise Unsure
    if a.number is not None:
        return number(-a.number, a.places)
    return _joined((a,), -a.image % _PRIME, -a.value)


def times(a: Scalar, b: Scalar) -> Scalar:
    """A product, which math-verify does not work out by itself."""
    return _joined((a, b), a.image * b.image % _PRIME, a.value * b.value)


def over(a: Scalar, b: Scalar) -> Scalar:
    """A quotient; of two integers it is a number."""
    if b.image == 0 or b.value == 0:
        raise Unsure
    if (
        a.number is not None
        and b.number is not None
        and a.number.denominator == b.number.denominator == 1
        and a.places is b.places is None
    ):
        return number(a.number / b.number)
    inverse = pow(b.image, -1, _PRIME)
    # the reciprocal of a product of numbers and roots is another such, that of a sum is not
    return _joined((a, b), a.image * inverse % _PRIME, a.value / b.value, quotient=b.sums or bool(b.variables))


def power(a: Scalar, exponent: int) -> Scalar:
    """A small integer power."""
    if exponent <= 0 and (a.image == 0 or a.value == 0):
        raise Unsure
    try:
        value = a.value**exponent
    except OverflowError as error:
        raise Unsure from error
    return _joined((a,), pow(a.image, exponent, _PRIME), value, quotient=exponent < 0 and (a.sums or bool(a.variables)))


def same(a: Scalar, b: Scalar, places: int = 6) -> bool:
    """Whether math-verify takes two expressions for equal, decimals rounded to `places`.

    Raises:
        Unsure: that is not certain.
    """
    if a.number is not None and b.number is not None:
        return _same_number(a, b, places)
    if a.places is not None or b.places is not None or a.percent or b.percent:
        raise Unsure
    if a.image != b.image:
        if not abs(a.value - b.value) > _APART * (1 + abs(a.value) + abs(b.value)):
            raise Unsure
        return False
    if a.symbol != b.symbol:
        raise Unsure  # math-verify compares a lone symbol by its spelling
    if a.symbol or not (a.surds or b.surds):
        return True
    plain = a.number is None and b.number is None
    constant = not (a.variables or b.variables)
    if (plain and constant) or not (a.quotient or b.quotient or a.number is not None or b.number is not None):
        return True
    raise Unsure


def _same_number(a: Scalar, b: Scalar, places: int) -> bool:
    """Integers, fractions, decimals and percentages, as math-verify has them."""
    assert a.number is not None and b.number is not None  # noqa: PT018 - the caller has looked
    x, y = (s.number / 100 if s.percent else s.number for s in (a, b) if s.number is not None)
    if a.places is None and b.places is None:
        if a.percent == b.percent:
            return x == y
        if a.number == b.number:
            return True  # of whole numbers 50% is also 50
        if x == y and x.denominator == 1:
            raise Unsure
        return x == y
    if x == y and ((a.places == b.places and a.percent == b.percent) or _digits(a, b) <= places):
        return True
    if abs(x - y) < Fraction(2, 10**places):
        raise Unsure
    return False


def _digits(*numbers: Scalar) -> int:
    """Decimal places that at most are needed to write the decimals among these as shares of 1."""
    return max((n.places or 0) + 2 * n.percent for n in numbers)


def _joined(
    parts: tuple[Scalar, ...], image: int, value: float, *, sums: bool = False, quotient: bool = False
) -> Scalar:
    if any(part.places is not None or part.percent for part in parts) or not math.isfinite(value):
        raise Unsure
    return Scalar(
        image=image,
        value=value,
        variables=frozenset().union(*(part.variables for part in parts)),
        surds=any(part.surds for part in parts),
        sums=sums or any(part.sums for part in parts),
        quotient=quotient or any(part.quotient for part in parts),
    )


@cache
def _point(name: str) -> tuple[int, float]:
    """Where a variable goes: an element of the field, and a number between 1 and 2."""
    image = int.from_bytes(hashlib.blake2b(name.encode()).digest(), "big") % _PRIME
    return image, 1 + image / _PRIME


@cache
def _prime_root(prime: int) -> int:
    return int(sqrt_mod(prime, _PRIME))


def _root_image(radicand: int) -> int:
    """The image of a square root, the product of those of the prime factors."""
    if radicand > _LARGEST_RADICAND:
        raise Unsure
    image = 1
    for prime in _SMALL_PRIMES:
        while radicand % prime == 0:
            radicand //= prime
            image = image * _prime_root(prime) % _PRIME
    if radicand != 1:
        raise Unsure
    return image
