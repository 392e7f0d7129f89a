"""What the child process of the tasks runs: their scores are asked for in the process that trains, from any thread."""

from __future__ import annotations

from lit_reason.tasks.judging import serve
from lit_reason_math.grading import grade, warm_up


def _score(gold: str, answer: str) -> float:
    return grade(gold, answer).value or 0.0


if __name__ == "__main__":
    warm_up()  # before the first answer's time begins
    serve(_score)
