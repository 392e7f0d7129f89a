"""Rewards and a task for tests of scoring, in a module of their own that workers import quickly."""

import asyncio
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from lit_reason.reward import Judgement, Reward
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


class Timed(Reward):
    """Does something odd at a completion that is called so, in a process of its own."""

    def __init__(self, deadline: float | None = 0.4, on_timeout: float | None = None) -> None:
        self.deadline, self.on_timeout = deadline, on_timeout
        self.memory_mb = 256

    def score(self, rollout: Rollout) -> float | None:
        return ODD[rollout.text]() if rollout.text in ODD else float(len(rollout.text))


def stuck() -> object:
    """Keeps the interpreter to itself for longer than the world will last."""
    return re.match(r"(a+)+$", "a" * 64 + "b")


def leave_child() -> object:
    subprocess.run(["sleep", "600"], check=False)
    return 1.0


def leave_stranger(end: Callable[[], object]) -> object:
    """Starts a process in a session of its own, whose parent ends at once, and then ends."""
    script = "setsid sleep 600 & "
    subprocess.run(["sh", "-c", script], check=True, start_new_session=True)
    return end()


def interrupt() -> object:
    raise KeyboardInterrupt


ODD: dict[str, Callable[[], object]] = {
    **ACTS,
    "stuck": stuck,
    "child": leave_child,
    "stranger": lambda: leave_stranger(ACTS["sleep"]),
    "stranger then die": lambda: leave_stranger(ACTS["die"]),
    "interrupt": interrupt,
    "close": lambda: os.closerange(0, 1024),
    "eat": lambda: float(len(bytearray(2**30))),
    "generator": lambda: (i for i in range(3)),
    "slow": lambda: time.sleep(0.05) or 1.0,
    "pid": lambda: float(os.getpid()),
}


class Endless(Reward):
    """A group reward that never stops giving, or never gives."""

    deadline = 0.4
    on_timeout = -1.0

    def score_group(self, rollouts: Sequence[Rollout]) -> Iterator[float]:
        if any(r.text == "sleep" for r in rollouts):
            time.sleep(600)
        return itertools.repeat(1.0)


class Meeting(Reward):
    """Async: judges only when so many rollouts wait at once."""

    def __init__(self, expected: int) -> None:
        self.expected, self.present = expected, 0
        self.complete = asyncio.Event()

    async def score(self, rollout: Rollout) -> float:
        self.present += 1
        if self.present >= self.expected:
            self.complete.set()
        await self.complete.wait()
        return 2.0 * float(rollout.rewards.get("r0") or 1.0)


class AsyncOdd(Reward):
    """Async: raises at some completions."""

    async def score(self, rollout: Rollout) -> float | Judgement:
        await asyncio.sleep(0)
        if rollout.text == "cancelled":
            raise asyncio.CancelledError
        if rollout.text in ODD:
            return ODD[rollout.text]()
        return Judgement(value=1.0, status="fine")


class AsyncTimed(Meeting):
    """Async and with a deadline."""

    deadline = 0.4

    async def score(self, rollout: Rollout) -> float:
        await asyncio.sleep(600 if rollout.text == "sleep" else 0)
        return 1.0


async def async_length(rollout: Rollout) -> float:
    await asyncio.sleep(0)
    return float(len(rollout.text))


class Remembered(Reward):
    """Leaves a line in a file for each judgement that it makes."""

    def __init__(self, file: Path, deadline: float | None = None, *, keyed: bool = True) -> None:
        self.file, self.deadline, self.keyed = file, deadline, keyed

    def cache_key(self, rollout: Rollout) -> str | None:
        return rollout.text if self.keyed else None

    def score(self, rollout: Rollout) -> float | Judgement:
        with self.file.open("a") as file:
            file.write(f"{rollout.text}\n")
        if rollout.text in ODD:
            return ODD[rollout.text]()
        return Judgement(value=float(len(rollout.text)), status="measured")


class Quick(Remembered):
    """Knows short completions at once."""

    def quick(self, rollout: Rollout) -> Judgement | None:
        return Judgement(value=0.5, status="short") if len(rollout.text) == 1 else None


class ByRank(Reward):
    """By rank and place in the group, as the completion's text says: 0, 1, 2, 3, and 0, never, 2, 4."""

    deadline = 1.0

    def score(self, rollout: Rollout) -> Judgement:
        rank, place = map(int, rollout.text.split())
        if rank and place == 1:
            time.sleep(600)
        value = float(place + (rank and place == 3))
        return Judgement(value=value, status="odd" if rank else "even")
