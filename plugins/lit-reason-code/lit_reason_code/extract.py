"""The program in a completion. Plain searches only: models write anything, and this takes linear time on all of it."""

from __future__ import annotations

from lit_reason.answer import extract_answer

_FENCE = "```"
_PYTHON = ("python", "py", "python3")


def extract_program(completion: str) -> str | None:
    r"""The program a completion answers with.

    Args:
        completion: of a model, whole or cut off.

    Returns:
        What `program_in` finds in the last complete `<answer> … </answer>`; without one, the last fenced block of the
        completion, or the content of its last `\boxed{…}`; None when there is none of these.
    """
    answer = extract_answer(completion)
    if answer is None or "</answer>" not in completion:
        return last_block(completion) or answer
    return program_in(answer)


def program_in(answer: str) -> str:
    """The last fenced block of an answer, or else all of the answer."""
    return last_block(answer) or answer


def last_block(text: str) -> str | None:
    """The last closed block between fences that say Python, or else the last between fences that say nothing."""
    labelled = plain = None
    lines: list[str] | None = None
    label = ""
    for line in text.splitlines():
        stripped = line.strip()
        if lines is None:
            if stripped.startswith(_FENCE):
                lines, label = [], stripped.strip("`").strip().lower()
        elif stripped == _FENCE:
            if label in _PYTHON:
                labelled = "\n".join(lines)
            elif not label:
                plain = "\n".join(lines)
            lines = None
        else:
            lines.append(line)
    return labelled or plain
