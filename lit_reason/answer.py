r"""What a completion says and how it says it: the answer, and whether the think/answer format was kept.

The format is `<think> … </think> <answer> … </answer>`, whitespace inside and around the tags. Models write anything,
so every function here takes time linear in the text: plain searches, and one regular expression whose alternatives
start with different characters and cannot backtrack into each other. Source: definitions of the format and of
`\boxed` as the reasoning literature uses them (DeepSeek-R1, arXiv 2501.12948; MATH, arXiv 2103.03874).
"""

from __future__ import annotations

import re

from lit_reason.types import Rollout

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""The four tags, in the order the format asks for."""

# Escapes are one piece, so that `\{` opens nothing and `\\{` does.
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def extract_answer(text: str) -> str | None:
    r"""The answer a completion ends with.

    Args:
        text: a completion, whole or cut off.

    Returns:
        The content of the last complete `<answer> … </answer>`, else of the last `\boxed{…}` with balanced braces,
        without surrounding whitespace; None when there is neither.
    """
    last_close = text.rfind("</answer>")
    opened = text.rfind("<answer>", 0, last_close) if last_close >= 0 else -1
    if opened >= 0:
        start = opened + len("<answer>")
        return text[start : text.index("</answer>", start)].strip()
    return _last_boxed(text)


def correct(rollout: Rollout) -> bool:
    """Whether the task scores the answer of a completion 1.0; partial credit is not correct."""
    return rollout.problem.score(extract_answer(rollout.text)) == 1.0


def strict_format(text: str) -> bool:
    """Whether the whole completion is one think block and one answer block, each tag once and in order.

    Args:
        text: a completion; whitespace around and between the blocks is free, anything else there is not.
    """
    text = text.strip()
    if any(text.count(tag) != 1 for tag in TAGS) or not text.startswith("<think>") or not text.endswith("</answer>"):
        return False
    think_end, answer_start = text.index("</think>") + len("</think>"), text.index("<answer>")
    return think_end <= answer_start and not text[think_end:answer_start].strip()


def graded_format(text: str) -> float:
    """The share of the four tags that stand in the completion exactly once: 0, 0.25, 0.5, 0.75 or 1.

    Args:
        text: a completion.
    """
    return sum(text.count(tag) == 1 for tag in TAGS) / len(TAGS)


def _last_boxed(text: str) -> str | None:
    r"""The content of the balanced `\boxed{…}` that begins last; of two nested ones that is the inner."""
    first = text.find("\\boxed")
    if first < 0:
        return None
    open_braces: list[int | None] = []  # where the content of a \boxed begins, None for any other brace
    last: tuple[int, int] | None = None
    for match in _BRACES.finditer(text, first):
        piece = match.group()
        if piece == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and (last is None or start > last[0]):
                last = (start, match.start())
        elif piece == "{":
            open_braces.append(None)
        elif piece[-1] == "{" and len(piece) > 2:  # two characters are an escaped brace
            open_braces.append(match.end())
    return None if last is None else text[last[0] : last[1]].strip()
