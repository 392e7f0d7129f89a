"""A process that scores groups, and the thread of the parent that feeds it."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection
from typing import Any, Literal

import torch

from lit_reason.registry import cause
from lit_reason.reward import Reward, WeightedReward, score_rollouts
from lit_reason.shipping import forget_tasks, unpickled
from lit_reason.task import Task
from lit_reason.types import Rollout, UserError

Nonfinite = Literal["error", "mask"]

# never a fork of the process that trains, whose threads may hold locks
_CONTEXT = (
    multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")
)

_NICE = 10  # generation keeps the cores
PATIENCE = 1.0
"""Seconds a worker gets to end by itself, so that what its rewards hold is let go in order."""


class Job:
    """A group on its way through a worker.

    Attributes:
        payload: the group, pickled.
        problem: id of its first problem, for error messages.
        size: rollouts in it.
        judging: number of the reward at work, the last one reached; -1 before the first.
        values: by reward and rollout.
        masked: what `score_rollouts` counted.
        error: what went wrong while `judging` was at work, None while nothing has.
        done: set when the rest is final.
    """

    def __init__(self, payload: bytes, problem: str, size: int) -> None:
        self.payload, self.problem, self.size = payload, problem, size
        self.judging = -1
        self.values: list[list[float | None]] = []
        self.masked: Counter[str] = Counter()
        self.error: str | None = None
        self.done = threading.Event()


class Worker(threading.Thread):
    """Feeds one worker process and waits for it; a process that ends takes its job's result with it, no other's."""

    def __init__(
        self,
        jobs: queue.SimpleQueue[Job | None],
        tasks: list[tuple[Task, bytes]],
        rewards: bytes,
        names: list[str],
        nonfinite: Nonfinite,
    ) -> None:
        super().__init__(name="reward worker", daemon=True)
        self.jobs, self.tasks, self.rewards, self.names, self.nonfinite = jobs, tasks, rewards, names, nonfinite
        self.sent = 0  # how many tasks the process has
        self.process: Any = None  # the types of multiprocessing's contexts have no common base to speak of
        self.pipe: Any = None

    def run(self) -> None:
        with suppress(UserError):  # what keeps it from starting is told with the first group
            self._begin()
        while (job := self.jobs.get()) is not None:
            try:
                if self.process is None:
                    self._begin()
                self._judge(job)
            except UserError as error:
                job.error = str(error)
            job.done.set()
        if self.process is not None:
            self._end()

    def kill(self) -> None:
        """End the process at once, if there is one; called from the main thread."""
        if (process := self.process) is not None:
            process.kill()

    def _begin(self) -> None:
        try:
            ours, theirs = _CONTEXT.Pipe()
            _CONTEXT.set_forkserver_preload(["__main__", __name__])  # imported once for all workers, torch with them
            process = _CONTEXT.Process(target=_work, args=(theirs, self.nonfinite), name="reward worker")
            process.start()
            theirs.close()  # or the end of the process would not be seen
            self.process, self.pipe, self.sent = process, ours, 0
            self._send(self.rewards)
            refusal: str | None = self._receive()
        except Exception as error:
            how = cause(error) if self.process is None else self._end()
            raise UserError(
                f"a reward worker could not start ({how}): a script that trains must do so below "
                'if __name__ == "__main__", because workers import it; or set reward_workers: 0'
            ) from error
        if refusal is not None:
            self._end()
            raise UserError(refusal)

    def _judge(self, job: Job) -> None:
        try:
            self._send(job.payload)
            while isinstance(answer := self._receive(), int):
                job.judging = answer
        except Exception:  # noqa: BLE001 - it has ended, or a reward has written into the pipe
            how = self._end()
            if job.judging < 0:
                raise UserError(f"a reward worker ended ({how}) before it had read problem '{job.problem}'") from None
            raise UserError(
                f"reward '{self.names[job.judging]}' ended the process it worked in ({how}) on problem "
                f"'{job.problem}'; expected a value. Mend the reward; signal 9 may mean that memory ran out"
            ) from None
        if isinstance(answer, str):
            raise UserError(answer)
        job.values, job.masked = answer

    def _send(self, payload: bytes) -> None:
        """A payload, after the tasks that it may name and the process lacks."""
        blobs = [blob for _, blob in self.tasks[self.sent :]]
        self.sent += len(blobs)
        self.pipe.send((blobs, payload))

    def _receive(self) -> Any:  # noqa: ANN401 - see `_work`
        """The next message; EOFError when the process has ended, though a copy of its end of the pipe may be open."""
        if self.pipe in connection.wait([self.pipe, self.process.sentinel]):
            return self.pipe.recv()
        raise EOFError

    def _end(self) -> str:
        """See the process off, and say how it went."""
        self.pipe.close()
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()
        code: int = self.process.exitcode
        self.process = None
        return f"killed by signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


class _Announced(Reward):
    """A reward that says when its turn comes, so that the parent knows which one ended a worker."""

    def __init__(self, number: int, reward: Reward, pipe: connection.Connection) -> None:
        self.number, self.reward, self.pipe = number, reward, pipe

    def score_group(self, rollouts: Sequence[Rollout]) -> Any:  # noqa: ANN401 - as the reward itself
        self.pipe.send(self.number)
        return self.reward.score_group(rollouts)


def _work(pipe: connection.Connection, nonfinite: Nonfinite) -> None:
    """A worker: reads (new tasks, rewards), answers None; then reads (new tasks, group) and answers (values, masked).

    The number of each reward comes first as its turn comes. A text instead of an answer is the error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(_NICE)
    try:
        named: list[WeightedReward] = unpickled(*pipe.recv())
    except Exception as error:  # noqa: BLE001 - modules of strangers are imported here
        pipe.send(f"a reward worker cannot import the rewards or the task ({cause(error)}); or set reward_workers: 0")
        return
    rewards = [
        WeightedReward(name=w.name, weight=w.weight, reward=_Announced(number, w.reward, pipe))
        for number, w in enumerate(named)
    ]
    pipe.send(None)
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            break
        try:
            group: list[Rollout] = unpickled(*message)
            masked = score_rollouts(group, rewards, nonfinite)
            pipe.send(([[rollout.rewards[w.name] for rollout in group] for w in rewards], masked))
        except UserError as error:
            pipe.send(str(error))
        except Exception as error:  # noqa: BLE001 - whatever a problem holds
            pipe.send(f"a reward worker cannot read a problem ({cause(error)}); set reward_workers: 0")
    forget_tasks()


def _follow_parent() -> None:
    """Do not outlive the process that trains, however it ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
