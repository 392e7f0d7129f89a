r"""From a gold answer and an answer to a judgement: guards, then the fast path, then math-verify.

An answer is LaTeX with or without dollars, or a sentence with one. Unlike math-verify, which joins neighbouring boxes
into a set, only the last complete `<answer>…</answer>`, or else the last `\boxed{…}`, of a text counts.
"""

from __future__ import annotations

import logging
import re
from functools import cache, lru_cache
from typing import Any

from math_verify import parse, verify

from lit_reason.answer import extract_answer
from lit_reason.reward import Judgement
from lit_reason_math import exact
from lit_reason_math.guards import too_big

for module in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(module).setLevel(logging.ERROR)  # they warn that their own timeouts are off, as they must be

_ENVIRONMENT = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.+)\\\)|\\\[(.+)\\\]", re.DOTALL)
_MARKED = re.compile(r"(?<!\\)\$|\\\(|\\\[")
_DOLLAR = re.compile(r"\\?\$")
_SPACED = re.compile(r"-?[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?")
# a word of four letters or more that stands by itself; LaTeX has such words only in braces or before brackets
_WORD = re.compile(r"(?:^|\s)(?!sqrt|infinity)[A-Za-z]{4,}(?=[\s.,:;!?]|$)")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|operatorname)\s*\{[^{}]*\}")


def grade(gold: str, answer: str | None, *, float_rounding: int = 6, strict: bool = True) -> Judgement:
    """Judge an answer. This may take any time on hostile text: bound it, as the reward and the tasks do.

    Args:
        gold: the gold answer.
        answer: what was answered, or None.
        float_rounding: decimal places to which decimals are compared.
        strict: variables matter, and a set is not a tuple. False takes f(x) for f(y).

    Returns:
        1.0 "ok"; 0.0 "wrong", "missing" (nothing was answered), "unparseable" or "too_big" (the answer); or None
        "unparseable_gold", when there is nothing to compare with.
    """
    judgement = quick_grade(gold, answer, float_rounding=float_rounding, strict=strict)
    if judgement is not None:
        return judgement
    assert answer is not None
    ours, theirs = _content(gold), _content(answer)
    expected = _parsed(ours)
    if not _understood(expected):
        return Judgement(value=None, status="unparseable_gold")
    found = _parsed(theirs)
    if verify(expected, found, float_rounding=float_rounding, strict=strict, timeout_seconds=None):
        return Judgement(value=1.0)
    return Judgement(value=0.0, status="wrong" if _understood(found) else "unparseable")


def quick_grade(gold: str, answer: str | None, *, float_rounding: int = 6, strict: bool = True) -> Judgement | None:
    """What `grade` says where that takes well under a millisecond, else None; the arguments are the same."""
    ours, theirs = _content(gold), _content(answer or "")
    if not ours or too_big(ours):
        return Judgement(value=None, status="unparseable_gold")
    if not theirs:
        return Judgement(value=0.0, status="missing")
    if too_big(theirs):
        return Judgement(value=0.0, status="too_big")
    plain = not any(_is_sentence(text) or _MARKED.search(text) for text in (ours, theirs))
    decided = plain and (strict or not any(c.isalpha() for c in ours + theirs))
    match exact.verdict(ours, theirs, places=float_rounding) if decided else None:
        case True:
            return Judgement(value=1.0)
        case False:
            return Judgement(value=0.0, status="wrong")
    return None


@cache
def warm_up() -> None:
    """Let math-verify's parser learn its grammar and sympy import what it does late, once a process: a second or so."""
    grade("x^2 + 1", "\\sin x")


def _content(text: str) -> str:
    """What the last answer tags or box hold, without dollars around it."""
    while (inner := extract_answer(text)) is not None:
        text = inner if "</answer>" in text else _DOLLAR.sub("", inner)  # a box is mathematics anyway
    text = text.strip().removesuffix(".")
    match = _ENVIRONMENT.fullmatch(text)
    return next(content for content in match.groups() if content).strip() if match else text


def _is_sentence(text: str) -> bool:
    if not any(c.isdigit() for c in text):
        return False
    return _WORD.search(_TEXT.sub("", text)) is not None or _SPACED.fullmatch(text) is not None


@lru_cache(maxsize=256)  # a gold answer comes once for each completion of its group
def _parsed(text: str) -> list[Any]:
    """What math-verify makes of a text: an expression and its source, or only the source, or nothing.

    In a sentence it is left to look for the answer itself; anything else is LaTeX, and the other way is the second try.
    """
    ways = [text, f"${' '.join(text.split())}$"]
    if not (_MARKED.search(text) or _is_sentence(text)):
        ways.reverse()
    found: list[list[Any]] = [[], []]
    for number, way in enumerate(ways):
        found[number] = parse(way, parsing_timeout=None)
        if _understood(found[number]):
            return found[number]
    return found[0] or found[1]


def _understood(found: list[Any]) -> bool:
    return any(not isinstance(item, str) for item in found)
