"""Rewards and a task for test_scoring.py, in a module of their own that its workers import quickly."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lit_reason.reward import Reward
from lit_reason.task import Task
from lit_reason.types import Problem, Rollout


def everything(rollout: Rollout) -> float:
    """A number that depends on all that a rollout holds."""
    tensors = [rollout.prompt_ids, rollout.completion_ids, rollout.mask, rollout.sampler_logprobs]
    total = sum(float(t.double().sum()) * (i + 1) + t.dim() for i, t in enumerate(tensors) if t is not None)
    shift = rollout.problem.metadata.get("shift", torch.zeros(0))
    words = f"{rollout.text}{rollout.finish_reason}{rollout.problem.id}{rollout.group}{shift.dtype}{tuple(shift.shape)}"
    return total + float(shift.double().sum()) + sum(map(ord, words))


class Rank(Reward):
    """A group reward: position by length within the group, counted from the first of the group."""

    def score_group(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        order = sorted(rollouts, key=lambda r: r.length)
        return [float(order.index(r)) for r in rollouts]


def twice_the_first(rollout: Rollout) -> float | None:
    """A reward that looks at what came before it."""
    first = rollout.rewards["everything"]
    return None if first is None else 2 * first


class At(Reward):
    """Does something odd at a completion that holds a word."""

    def __init__(self, word: str, act: str) -> None:
        self.word, self.act = word, act

    def score_group(self, rollouts: Sequence[Rollout]) -> Sequence[float | None]:
        if self.act == "short" and any(self.word in r.text for r in rollouts):
            return [1.0] * (len(rollouts) - 1)
        return super().score_group(rollouts)

    def score(self, rollout: Rollout) -> float | None:
        if self.word not in rollout.text:
            return 1.0
        return ACTS[self.act]()


ACTS: dict[str, Callable[[], object]] = {
    "raise": lambda: 1 / 0,
    "nan": lambda: math.nan,
    "text": lambda: "good",
    "exit": lambda: sys.exit(4),
    "die": lambda: os._exit(3),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sleep": lambda: time.sleep(600),
}


class Counting(Task):
    """Knows how often it was pickled and how often it has scored."""

    def __init__(self) -> None:
        self.pickled = 0
        self.scored = 0

    def problems(self, split: str) -> list[Problem]:
        return [Problem(prompt=[], answer="1", id=str(i), scorer=self.score) for i in range(4)]

    def score(self, problem: Problem, answer: str | None) -> float:
        self.scored += 1
        return float(self.scored)

    def __getstate__(self) -> dict[str, object]:
        self.pickled += 1
        return self.__dict__


class Leave(Reward):
    """Leaves a file for each group it scores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def score(self, rollout: Rollout) -> float:
        (self.folder / str(rollout.group)).touch()
        return 1.0


class Unreadable(Reward):
    """Can be sent, but not read."""

    def __setstate__(self, state: dict[str, object]) -> None:
        raise ImportError("no such module there")

    def __init__(self) -> None:
        self.something = 1
