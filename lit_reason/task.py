"""Stage 1: a task is a source of problems and the judge of their answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from lit_reason.types import Problem, Rollout

Split = Literal["train", "validation"]


class Task(ABC):
    """Base class of task plugins (entry-point group `lit_reason.tasks`).

    A subclass takes its options as typed keyword arguments of `__init__` (they become YAML keys, their docstrings the
    help) and implements `problems`. `score` judges an extracted answer; each problem carries it as its scorer
    (`Problem(..., scorer=self.score)`). Problems are indexable, and item i of a split is the same in every process.
    """

    name: str = ""
    """What the logs call the task; the registered name unless a subclass knows better."""

    @abstractmethod
    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, as a sequence that may generate item i on demand.

        Args:
            split: "train" or "validation"; the two must not overlap.

        Raises:
            UserError: when the data is missing or cannot be read; the message names the file and line.
        """

    def score(self, problem: Problem, answer: str | None) -> float:
        """Score in [0, 1] of an answer extracted from a completion; 1.0 means correct, None means none was found.

        The default compares text with the gold answer, surrounding whitespace aside.
        """
        gold = problem.answer
        return float(answer is not None and gold is not None and answer.strip() == gold.strip())

    def observe(self, rollouts: Sequence[Rollout]) -> None:  # noqa: B027 - most tasks do not adapt
        """Called with the scored rollouts of each training phase; adaptive tasks (curricula) move here."""

    def state_dict(self) -> dict[str, Any]:
        """State of an adaptive task, as plain values; saved in checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - likewise
        """Restore what `state_dict` returned."""

    def validate(self, problems: Iterable[Problem] | None = None, limit: int = 20) -> list[str]:
        """Self-test: the gold answers of the first `limit` problems score 1.0 and no answer does not.

        Returns:
            One line for each problem that fails, empty when the task is sound.
        """
        complaints = []
        sequence = self.problems("train") if problems is None else list(problems)
        for index in range(min(limit, len(sequence))):
            problem = sequence[index]
            if problem.answer is not None and problem.score(problem.answer) != 1.0:
                complaints.append(
                    f"{problem.id}: the gold answer {problem.answer!r} scores {problem.score(problem.answer)}, not 1.0"
                )
            if problem.score(None) == 1.0:
                complaints.append(f"{problem.id}: a completion without an answer scores 1.0")
        return complaints
