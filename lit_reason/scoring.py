"""Stage 3 while stage 2 goes on: groups are scored in worker processes as they finish, while others still generate.

`Scorer.submit` takes a group and returns at once, `Scorer.collect` fills in what the workers found. In the parent each
worker has a thread that feeds it and waits for it; all of them draw from one queue, so that a slow group holds up one
worker only. Rewards, and the tasks whose `score` problems carry, travel to a worker once; groups follow without them,
their tensors as bytes.
"""

from __future__ import annotations

import atexit
import queue
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lit_reason.registry import cause
from lit_reason.reward import Reward, WeightedReward, score_rollouts
from lit_reason.scoring_worker import PATIENCE, Job, Nonfinite, Worker
from lit_reason.shipping import pickled
from lit_reason.task import Task
from lit_reason.types import Rollout, UserError


class Scorer:
    """Scores groups of rollouts as `score_rollouts` does, with the same results and errors, in worker processes.

    Rewards and tasks are copied to the workers when these start, so they should not remember anything between groups.
    What a reward changes in a rollout stays in the worker.

    Args:
        rewards: what judges.
        workers: processes; 0 scores in this one, when results are collected.
        nonfinite: what NaN or an infinity does, as for `score_rollouts`.

    Raises:
        UserError: the number is negative, or a reward cannot be sent to another process.
    """

    def __init__(self, rewards: Sequence[WeightedReward], *, workers: int = 0, nonfinite: Nonfinite = "error") -> None:
        if workers < 0:
            raise UserError(f"reward_workers must be 0 (score in this process) or more, got {workers}")
        self.rewards, self.workers, self.nonfinite = rewards, workers, nonfinite
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._tasks: list[tuple[Task, bytes]] = []
        self._jobs: dict[bytes, Job] = {}
        self._threads: list[Worker] = []
        for weighted in rewards if workers else ():
            self._pickled(weighted, f"reward '{weighted.name}'", "define it at the top level of a module")

    def __reduce__(self) -> tuple[Callable[[], Scorer], tuple[()]]:
        """A copy has workers of its own."""
        return partial(Scorer, self.rewards, workers=self.workers, nonfinite=self.nonfinite), ()

    def start(self, tasks: Sequence[Task] = ()) -> None:
        """Start the workers, without waiting for them; `submit` does it too, but then the first groups wait.

        Args:
            tasks: tasks that problems will come from; others follow with the first group that needs them.
        """
        if not self.workers or self._threads:
            return
        self._pickled(tasks, "the task", "define its class at the top level of a module")
        rewards = pickled(list(self.rewards), self._number)
        names = [w.name for w in self.rewards]
        self._threads = [Worker(self._queue, self._tasks, rewards, names, self.nonfinite) for _ in range(self.workers)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # before multiprocessing's own, which would wait for the workers for ever

    def submit(self, group: list[Rollout]) -> None:
        """Have a group scored, in sample order; returns at once. Without workers this does nothing.

        Raises:
            UserError: a problem of the group cannot be sent to another process.
        """
        if self.workers:
            self._job(group)

    def collect(self, rollouts: Sequence[Rollout]) -> Counter[str]:
        """Wait for the scores of these rollouts and fill them in.

        Groups that were not submitted, or have changed since, are scored now.

        Returns:
            How many values of each reward were masked for not being finite.

        Raises:
            UserError: as `score_rollouts`; a reward ended its worker; or a problem cannot be sent to one.
        """
        if not self.workers:
            return score_rollouts(rollouts, self.rewards, self.nonfinite)
        groups: dict[int, list[Rollout]] = {}
        for rollout in rollouts:
            groups.setdefault(rollout.group, []).append(rollout)
        jobs = {number: self._job(group) for number, group in groups.items()}
        self._jobs.clear()  # whatever else was submitted is out of date
        score_rollouts(
            rollouts,
            [
                WeightedReward(name=w.name, weight=w.weight, reward=_Told(number, jobs))
                for number, w in enumerate(self.rewards)
            ],
        )
        return sum((job.masked for job in jobs.values()), Counter())

    def close(self) -> None:
        """End all workers, also those in the middle of a group; the next group would start new ones."""
        while not self._queue.empty():
            self._queue.get()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(PATIENCE)
            while thread.is_alive():
                thread.kill()
                thread.join(0.1)
        self._threads = []
        self._tasks.clear()
        self._jobs.clear()
        atexit.unregister(self.close)

    def _job(self, group: list[Rollout]) -> Job:
        """The job that scores exactly this: its content is its name, so that a changed group is scored again."""
        self.start()
        problem = group[0].problem.id
        payload = self._pickled(group, f"problem '{problem}'", "let it hold data and what modules define")
        if payload not in self._jobs:
            self._jobs[payload] = Job(payload, problem, len(group))
            self._queue.put(self._jobs[payload])
        return self._jobs[payload]

    def _pickled(self, thing: Any, who: str, advice: str) -> bytes:  # noqa: ANN401 - whatever rewards and problems hold
        try:
            return pickled(thing, self._number)
        except Exception as error:
            raise UserError(
                f"{who} cannot be sent to the reward workers ({cause(error)}): {advice}, or set reward_workers: 0"
            ) from error

    def _number(self, task: Task) -> int:
        """A task's place among those the workers hold."""
        for number, (known, _) in enumerate(self._tasks):
            if known is task:
                return number
        self._tasks.append((task, pickled(task, None)))
        return len(self._tasks) - 1


class _Told(Reward):
    """A reward that repeats what a worker found; an error comes when it would have come without workers."""

    def __init__(self, number: int, jobs: dict[int, Job]) -> None:
        self.number, self.jobs = number, jobs

    def score_group(self, rollouts: Sequence[Rollout]) -> Sequence[float | None]:
        job = self.jobs[rollouts[0].group]
        job.done.wait()
        if job.error is None:
            return job.values[self.number]
        if self.number >= job.judging:
            raise UserError(job.error)
        return [None] * job.size  # a later reward failed, but another group may fail with this one
