"""Stage 3 while stage 2 goes on: rewards judge groups as they finish, while others still generate.

`Scorer.submit` takes a group and returns at once, `Scorer.collect` fills in what was found. The rewards of a group take
turns, so that one may look at what those before it gave; groups do not wait for each other. When a reward's turn comes
each rollout is judged at once if `quick` can, or as one with the same `cache_key` was, and the others become items:

- a reward with a `deadline` or `memory_mb` judges in worker processes, rollout by rollout;
- an async one waits in an event loop in a thread of its own, all items of all groups together;
- any other judges in a worker, group by group, if there are `workers`, else here.

In the parent each worker has a thread that feeds it and waits for it; all of them draw from one queue, so that a slow
item holds up one worker only. Rewards, and the tasks whose `score` problems carry, travel to a worker once; groups
follow without them, their tensors as bytes. Threads hand back finished items and touch nothing else: what a `Scorer`
knows changes only in the thread that calls it.
"""

from __future__ import annotations

import atexit
import math
import os
import queue
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from lit_reason.findings import FAILED, NONFINITE, TIMEOUT, Finding, cache_key, failure, judge, quick
from lit_reason.registry import cause
from lit_reason.reward import WeightedReward
from lit_reason.scoring_group import Group, Item, Memory, Tally
from lit_reason.scoring_loop import Loop
from lit_reason.scoring_worker import PATIENCE, Worker
from lit_reason.shipping import pickled
from lit_reason.task import Task
from lit_reason.types import Rollout, UserError

Nonfinite = Literal["error", "mask"]
Failures = Literal["error", "exclude"]


class Scorer:
    """Lets rewards judge groups of rollouts, with the same results and errors wherever that happens.

    Rewards and tasks are copied to the workers when these start, so they should not remember anything between groups.
    Rewards see copies of the rollouts: what they change is lost. For one thread at a time, whichever.

    Args:
        rewards: what judges.
        workers: processes for all rewards that are not async; 0 leaves to processes only those with a `deadline` or
            `memory_mb`, which share two, or one where there is but one core.
        nonfinite: NaN or an infinity is an `error`, or `mask`ed: the row left out and counted.
        failures: a reward that raises, ends its process or returns what is no reward is an `error`; or such rows are
            `exclude`d and counted, nonfinite ones among them unless masked. A `UserError` of a reward always stops.

    Raises:
        UserError: the number is negative, or a reward cannot be sent to another process.
    """

    def __init__(
        self,
        rewards: Sequence[WeightedReward],
        *,
        workers: int = 0,
        nonfinite: Nonfinite = "error",
        failures: Failures = "error",
    ) -> None:
        if workers < 0:
            raise UserError(f"reward_workers must be 0 (score in this process) or more, got {workers}")
        self.rewards, self.workers, self.nonfinite, self.failures = rewards, workers, nonfinite, failures
        self._remote = [w.isolated or (workers > 0 and not w.asynchronous) for w in rewards]
        self._here = not any(remote or w.asynchronous for remote, w in zip(self._remote, rewards, strict=True))
        self._tallies = {w.name: Tally() for w in rewards}
        self._warned: set[tuple[str, str]] = set()
        self._renew()
        for weighted, remote in zip(rewards, self._remote, strict=True):
            if remote:
                self._pickled(weighted, f"reward '{weighted.name}'", "define it at the top level of a module")

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._tasks: list[tuple[Task, bytes]] = []
        self._threads: list[Worker] = []
        self._loop: Loop | None = None
        self._groups: dict[int, Group] = {}  # by the identity of the first rollout
        self._memories = [Memory() for _ in self.rewards]

    def __reduce__(self) -> tuple[Callable[[], Scorer], tuple[()]]:
        """A copy has workers of its own."""
        options: dict[str, Any] = {"workers": self.workers, "nonfinite": self.nonfinite, "failures": self.failures}
        return partial(Scorer, self.rewards, **options), ()

    def start(self, tasks: Sequence[Task] = ()) -> None:
        """Start the workers, without waiting for them; `submit` does it too, but then the first groups wait.

        Args:
            tasks: tasks that problems will come from; others follow with the first group that needs them.
        """
        if self._pid != os.getpid():  # a fork has neither the threads nor the processes
            self._renew()
        if not any(self._remote) or self._threads:
            return
        self._pickled(tasks, "the task", "define its class at the top level of a module")
        travelling = [w if remote else None for w, remote in zip(self.rewards, self._remote, strict=True)]
        payload = pickled(travelling, self._number)
        self._threads = [
            Worker(self._items, self._finished, self._tasks, travelling, payload)
            for _ in range(self.workers or min(2, os.cpu_count() or 1))
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # before multiprocessing's own, which would wait for the workers for ever

    def submit(self, group: list[Rollout]) -> None:
        """Have a group scored, in sample order; returns without waiting for workers or async rewards.

        Where there are neither, this does nothing. What goes wrong is told by `collect`.
        """
        if self._here:
            return
        self.start()
        with self._lock:
            self._group(group)
            with suppress(queue.Empty):
                while True:
                    self._settle(self._finished.get_nowait())
            for known in self._groups.values():
                self._advance(known)

    def collect(self, rollouts: Sequence[Rollout]) -> None:
        """Wait for the scores of these rollouts and fill them in: `rewards`, and `reward` as their weighted sum.

        Groups that were not submitted, or have changed since, are scored now. A reward of weight 0 is a metric: it is
        no part of the sum, and does not make up a reward where no other applies.

        Args:
            rollouts: those of one group carry the same `group` number, in any order.

        Raises:
            UserError: a reward failed, its process ended, or a problem cannot be sent to one. Of several errors it is
                that of the first reward, and of its first group, wherever they were found.
        """
        self.start()
        with self._lock:
            numbered: dict[int, list[Rollout]] = {}
            for rollout in rollouts:
                numbered.setdefault(rollout.group, []).append(rollout)
            groups = [self._group(rows) for rows in numbered.values()]
            for group in self._groups.values():
                group.wanted = group in groups  # whatever else was submitted is out of date
            self._groups.clear()
            try:
                self._finish(groups)
            finally:
                for group in groups:
                    group.wanted = False
        for group in groups:
            self._fill_in(group)
        for number, weighted in enumerate(self.rewards):
            if weighted.reward.deadline is not None:
                self._warn_of_timeouts(weighted, [f for group in groups for f in group.judged[number]])

    def take(self) -> dict[str, Tally]:
        """What each reward did since this was last asked."""
        taken = self._tallies
        self._tallies = {name: tally.after() for name, tally in taken.items()}
        return taken

    def state_dict(self) -> dict[str, Any]:
        """What is remembered of each reward, as plain data: judgements by key, and the statuses there have been."""
        return {
            weighted.name: {"known": memory.state(), "statuses": sorted(self._tallies[weighted.name].statuses)}
            for weighted, memory in zip(self.rewards, self._memories, strict=True)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned of the rewards there are."""
        for weighted, memory in zip(self.rewards, self._memories, strict=True):
            if weighted.name in state:
                memory.load(state[weighted.name]["known"])
                self._tallies[weighted.name].statuses = Counter(dict.fromkeys(state[weighted.name]["statuses"], 0))

    def close(self) -> None:
        """End all workers and all waiting, also in the middle of an item; the next group would start new ones."""
        if self._loop is not None:
            self._loop.close()
        while not self._items.empty():
            self._items.get()
        for _ in self._threads:
            self._items.put(None)
        for thread in self._threads:
            thread.join(PATIENCE)
            while thread.is_alive():
                thread.kill()
                thread.join(0.1)
        atexit.unregister(self.close)
        self._renew()

    # ------------------------------------------------------------------ groups
    def _group(self, rollouts: Sequence[Rollout]) -> Group:
        """What is known of a group; nothing if it was not submitted, or has changed since."""
        known = self._groups.get(id(rollouts[0]))
        if known is None or not known.is_of(rollouts):
            if known is not None:
                known.wanted = False
            known = self._groups[id(rollouts[0])] = Group(rollouts)
        return known

    def _finish(self, groups: Sequence[Group]) -> None:
        """Wait until these groups are judged, or it is sure which error comes first."""
        unfinished = set(groups)
        moved: Iterable[Group] = groups
        failing = False
        while unfinished:
            for group in moved:
                self._advance(group)
                failing = failing or group.error is not None
                if group.turn == len(self.rewards):
                    unfinished.discard(group)
                if failing:
                    _raise_first(groups)
            if unfinished:
                moved = self._settle(self._finished.get())

    def _advance(self, group: Group) -> None:
        """Let rewards judge a group, one after the other, as far as that goes without waiting."""
        while group.wanted and group.error is None and group.missing == 0 and group.turn < len(self.rewards):
            if group.begun:
                self._end_turn(group)
            else:
                self._begin_turn(group)

    def _begin_turn(self, group: Group) -> None:
        """What can be said at once of each rollout is; the others become items."""
        group.begin()
        number = group.turn
        weighted, memory, tally = self.rewards[number], self._memories[number], self._tallies[self.rewards[number].name]
        rows: list[int] = []
        keys: list[Hashable | None] = []
        for row, rollout in enumerate(group.seen):
            found = None if weighted.grouped else quick(weighted, rollout)
            key = None if weighted.grouped or found is not None else cache_key(weighted, rollout)
            found = key if isinstance(key, Finding) else found
            if found is not None:
                group.fill(row, found)
                tally.count([found], 1)
            elif key is not None and memory.ask(key, group, row):
                tally.cached += 1
            else:
                rows.append(row)
                keys.append(key)
        together = weighted.grouped or (self._remote[number] and not weighted.isolated)
        for start in range(0, len(rows), max(1, len(rows)) if together else 1):
            stop = None if together else start + 1
            self._dispatch(Item(group, rows[start:stop], keys[start:stop]))

    def _dispatch(self, item: Item) -> None:
        """Have an item judged where its reward judges."""
        number, group = item.number, item.group
        if self._remote[number]:
            try:
                who = f"problem '{group.seen[0].problem.id}'"
                group.payload = group.payload or self._pickled(
                    group.seen, who, "let it hold data and what modules define"
                )
            except UserError as error:
                self._settle(item.settle([failure(str(error), fatal=True)] * len(item.rows)))
            else:
                self._items.put(item)
            return
        answer = judge(self.rewards[number], [group.seen[row] for row in item.rows])
        if isinstance(answer, list):
            self._settle(item.settle(answer))
        else:
            self._loop = self._loop or Loop()
            finished = self._finished
            name, rows = self.rewards[number].name, len(item.rows)
            self._loop.run(
                answer,
                lambda findings: finished.put(item.settle(findings)),
                lambda error: [failure(f"reward '{name}' raised {type(error).__name__}")] * rows,
            )

    def _settle(self, item: Item) -> Iterable[Group]:
        """Fill in what came of an item; the groups that may now go on."""
        number, group = item.number, item.group
        weighted = self.rewards[number]
        if item.ended and len(item.rows) > 1 and not weighted.grouped and self.failures == "exclude":
            for row, key in zip(item.rows, item.keys, strict=True):  # only one of them ended the worker
                self._dispatch(Item(group, [row], [key]))
            return []
        self._tallies[weighted.name].count(item.findings, 1 if weighted.grouped else len(item.rows))
        moved = [group]
        for row, key, finding in zip(item.rows, item.keys, item.findings, strict=True):
            group.fill(row, finding)
            if key is not None:
                moved += self._memories[number].tell(key, finding)
        return moved

    def _end_turn(self, group: Group) -> None:
        """Errors stop the group, or leave rows out."""
        weighted = self.rewards[group.turn]
        findings = [finding for finding in group.findings if finding is not None]
        for finding in findings:
            masked = finding.judgement.status == NONFINITE and self.nonfinite == "mask"
            if finding.error is None or masked:
                continue
            if finding.fatal or self.failures == "error":
                advice = "" if finding.fatal else ". Mend the reward, or set failures: exclude to leave such rows out"
                group.error = finding.error + advice
                return
            self._tallies[weighted.name].failures += 1
            if (weighted.name, FAILED) not in self._warned:
                self._warned.add((weighted.name, FAILED))
                warnings.warn(f"{finding.error}; left out, as all failures of this reward will be", stacklevel=2)
        group.end(weighted.name, findings)

    def _warn_of_timeouts(self, weighted: WeightedReward, findings: Sequence[Finding]) -> None:
        """Say once of each reward that it was too slow; how often it is from then on stands in the metrics."""
        late = sum(finding.judgement.status == TIMEOUT for finding in findings)
        if late and (weighted.name, TIMEOUT) not in self._warned:
            self._warned.add((weighted.name, TIMEOUT))
            instead = weighted.reward.on_timeout
            warnings.warn(
                f"reward '{weighted.name}': {late} of {len(findings)} completions were not judged within its deadline "
                f"of {weighted.reward.deadline:g} s and {'are left out' if instead is None else f'get {instead:g}'}. "
                f"Give it more time if that is more than a few; train/reward/{weighted.name}/timeout has their share",
                stacklevel=3,
            )

    def _fill_in(self, group: Group) -> None:
        """What the rewards gave, and their weighted sum."""
        for rollout, seen in zip(group.rollouts, group.seen, strict=True):
            rollout.rewards, rollout.statuses, rollout.steps = dict(seen.rewards), {}, {}
            parts = [w.weight * v for w in self.rewards if w.weight and (v := rollout.rewards[w.name]) is not None]
            rollout.reward = math.fsum(parts) if parts else None
        for weighted, findings in zip(self.rewards, group.judged, strict=True):
            self._tallies[weighted.name].statuses.update(finding.judgement.status for finding in findings)
            for rollout, finding in zip(group.rollouts, findings, strict=True):
                rollout.statuses[weighted.name] = finding.judgement.status
                if finding.judgement.steps and finding.judgement.value is not None:
                    rollout.steps[weighted.name] = finding.judgement.steps

    # ------------------------------------------------------------------ travelling
    def _pickled(self, thing: Any, who: str, advice: str) -> bytes:  # noqa: ANN401 - whatever rewards and problems hold
        try:
            return pickled(thing, self._number)
        except Exception as error:
            other = "" if any(w.isolated for w in self.rewards) else ", or set reward_workers: 0"
            raise UserError(f"{who} cannot be sent to the reward workers ({cause(error)}): {advice}{other}") from error

    def _number(self, task: Task) -> int:
        """A task's place among those the workers hold."""
        for number, (known, _) in enumerate(self._tasks):
            if known is task:
                return number
        self._tasks.append((task, pickled(task, None)))
        return len(self._tasks) - 1


def _raise_first(groups: Sequence[Group]) -> None:
    """Raise the error that comes first, by reward and then by group, once no earlier one can turn up."""
    failed = [(group.turn, place) for place, group in enumerate(groups) if group.error is not None]
    if failed:
        first = min(failed)
        if all(group.error is not None or (group.turn, place) > first for place, group in enumerate(groups)):
            raise UserError(groups[first[1]].error)
