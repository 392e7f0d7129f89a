"""A process that judges items, and the thread of the parent that feeds it, holds the clock and replaces it."""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from lit_reason.findings import TIMEOUT, Answer, Finding, failure, judge
from lit_reason.registry import cause
from lit_reason.reward import Judgement, WeightedReward
from lit_reason.scoring_group import Item
from lit_reason.scoring_keeper import keep
from lit_reason.shipping import forget_tasks, unpickled
from lit_reason.task import Task
from lit_reason.types import Rollout, UserError

_HOME = os.getpid()
_NICE = 10  # generation keeps the cores
PATIENCE = 1.0
"""Seconds a worker gets to end by itself, so that what its rewards hold is let go in order."""

ITEMS_A_WORKER = 1000
"""Items after which a process is replaced, so that what rewards leak does not pile up."""


class Worker(threading.Thread):
    """Feeds one worker process and waits for it; a process that ends takes its item's result with it, no other's.

    Args:
        items: where items come from, None to end.
        finished: where they go.
        tasks: those that groups may name, pickled; may grow.
        rewards: what judges, None in the places of those that are judged elsewhere.
        payload: the same, pickled.
    """

    def __init__(
        self,
        items: queue.SimpleQueue[Item | None],
        finished: queue.SimpleQueue[Item],
        tasks: list[tuple[Task, bytes]],
        rewards: Sequence[WeightedReward | None],
        payload: bytes,
    ) -> None:
        super().__init__(name="reward worker", daemon=True)
        self.items, self.finished, self.tasks = items, finished, tasks
        self.rewards, self.payload = rewards, payload
        self.process: Any = None  # the types of multiprocessing's contexts have no common base to speak of
        self.pipe: Any = None
        self.sent = 0  # how many tasks the process has
        self.held: bytes | None = None  # the group it has
        self.judged = 0

    def run(self) -> None:
        with suppress(UserError):  # what keeps it from starting is told with the first item
            self._begin()
        while (item := self.items.get()) is not None:
            try:
                if self.process is None:
                    self._begin()
                findings = self._judge(item)
            except Exception as error:  # noqa: BLE001 - the item must come back, or it would be waited for in vain
                said = str(error) if isinstance(error, UserError) else f"a reward worker failed ({cause(error)})"
                findings = [failure(said, fatal=True)] * len(item.rows)
            self.finished.put(item.settle(findings))
            self.judged += len(item.rows)
            if self.process is not None and self.judged >= ITEMS_A_WORKER:
                self._end()
        if self.process is not None:
            self._end()

    def kill(self) -> None:
        """End the process at once, if there is one, with what it started; called from any thread."""
        if (process := self.process) is not None and process.is_alive():
            if sys.platform == "linux":
                process.terminate()  # the keeper does the rest
                return
            with suppress(OSError, AttributeError):  # it has no process group yet, or the system knows none
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()

    def _begin(self) -> None:
        try:
            rewards = [w.reward for w in self.rewards if w is not None]
            context = _context({__name__, *(type(reward).__module__ for reward in rewards)})
            ours, theirs = context.Pipe()
            niceness = _NICE if all(reward.deadline is None for reward in rewards) else 0  # nor may a clock run in vain
            process = context.Process(target=_work, args=(theirs, niceness), name="reward worker")
            process.start()
            theirs.close()  # or the end of the process would not be seen
            self.process, self.pipe, self.sent, self.held, self.judged = process, ours, 0, None, 0
            self._send(self.payload)
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

    def _judge(self, item: Item) -> list[Finding]:
        weighted, group = self.rewards[item.number], item.group
        assert weighted is not None and group.payload is not None  # noqa: PT018 - that is why it came here
        row = -1  # at work
        try:
            self._send(group.payload, item.number, item.rows, [rollout.rewards for rollout in group.seen])
            while isinstance(answer := self._receive(None if row < 0 else weighted.reward.deadline), int):
                row = answer
        except TimeoutError:
            self.kill()
            self._end()
            judgement = Judgement(value=weighted.reward.on_timeout, status=TIMEOUT)
            spent = (weighted.reward.deadline or 0.0) / len(item.rows)
            return [Finding(judgement=judgement, seconds=spent)] * len(item.rows)
        except Exception:  # noqa: BLE001 - it has ended, or a reward has written into the pipe
            how, problem = self._end(), group.seen[0].problem.id
            if row < 0:
                raise UserError(f"a reward worker ended ({how}) before it had read problem '{problem}'") from None
            item.ended = True
            error = (
                f"reward '{weighted.name}' ended the process it worked in ({how}) on problem '{problem}'; "
                "expected a value; signal 9 may mean that memory ran out"
            )
            return [failure(error)] * len(item.rows)
        if isinstance(answer, str):
            self.held = None
            raise UserError(answer)
        findings: list[Finding] = answer
        return findings

    def _send(self, payload: bytes, *work: Any) -> None:  # noqa: ANN401 - see `_work`
        """A payload, unless the process holds it, after the tasks that it may name; and what to do with it."""
        blobs = [blob for _, blob in self.tasks[self.sent :]]
        self.pipe.send((blobs, None if payload is self.held and not blobs else payload, *work))
        self.sent += len(blobs)
        self.held = payload

    def _receive(self, deadline: float | None = None) -> Any:  # noqa: ANN401 - see `_work`
        """The next message.

        Raises:
            TimeoutError: none came within the deadline.
            EOFError: the process has ended, though a copy of its end of the pipe may be open.
        """
        ready = connection.wait([self.pipe, self.process.sentinel], deadline)
        if not ready:
            raise TimeoutError
        if self.pipe in ready:
            return self.pipe.recv()
        raise EOFError

    def _end(self) -> str:
        """See the process off, and say how it went."""
        self.pipe.close()
        self.process.join(PATIENCE)
        self.kill()
        self.process.join()
        code: int = self.process.exitcode
        self.process = None
        return f"killed by signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


def _context(modules: set[str]) -> Any:  # noqa: ANN401 - as `Worker.process`
    """How processes start: never as a fork of the one that trains, whose threads may hold locks.

    A fork server serves the process that began it, but no fork of that. It imports the modules, and those that the
    script imports, once for all workers: each of them runs the script again, and must not wait for torch with it.
    """
    if sys.platform != "linux" or os.getpid() != _HOME:
        return multiprocessing.get_context("spawn")
    for value in list(vars(sys.modules["__main__"]).values()):
        name = getattr(value, "__name__" if inspect.ismodule(value) else "__module__", None)
        if isinstance(name, str) and name in sys.modules:
            modules.add(name)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *sorted(modules - {"__main__"})])
    return context


def _work(pipe: connection.Connection, niceness: int) -> None:
    """A worker: reads (new tasks, rewards), answers None; then reads items and answers their findings.

    An item is (new tasks, group or None for the last one, number of the reward, rows, earlier rewards by rollout). The
    row comes first as its turn comes. A text instead of an answer is an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    if sys.platform == "linux":
        keep()
    else:
        _follow_parent()
    try:
        _serve(pipe, niceness)
    except BaseException:  # noqa: BLE001 - a reward has closed the pipe, say; who waits at its other end tells of it
        os._exit(1)


def _serve(pipe: connection.Connection, niceness: int) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(niceness)
    try:
        rewards: list[WeightedReward | None] = unpickled(*pipe.recv())
    except Exception as error:  # noqa: BLE001 - modules of strangers are imported here
        pipe.send(f"a reward worker cannot import the rewards or the task ({cause(error)}); or set reward_workers: 0")
        return
    pipe.send(None)
    group: list[Rollout] = []
    with asyncio.Runner() as runner:
        while True:
            try:
                tasks, payload, number, rows, earlier = pipe.recv()
            except EOFError:
                break
            try:
                if payload is not None:
                    group = unpickled(tasks, payload)
            except Exception as error:  # noqa: BLE001 - whatever a problem holds
                pipe.send(f"a reward worker cannot read a problem ({cause(error)}); set reward_workers: 0")
                continue
            for rollout, values in zip(group, earlier, strict=True):
                rollout.rewards = values
            weighted = rewards[number]
            assert weighted is not None
            findings: list[Finding] = []
            for item in [rows] if weighted.grouped else [[row] for row in rows]:
                pipe.send(item[0])
                with _bounded(weighted.reward.memory_mb):
                    findings += _awaited(judge(weighted, [group[row] for row in item]), runner)
            pipe.send(findings)
    forget_tasks()


def _awaited(answer: Answer, runner: asyncio.Runner) -> list[Finding]:
    return runner.run(answer) if inspect.iscoroutine(answer) else answer  # type: ignore[return-value]


@contextmanager
def _bounded(megabytes: int | None) -> Iterator[None]:
    """Inside, the process may map so many MiB more than it does now."""
    if megabytes is None or sys.platform != "linux":
        yield
        return
    import resource

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    bound = mapped + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (bound if before[1] < 0 else min(bound, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _follow_parent() -> None:
    """Do not outlive the process that trains, however it ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    if hasattr(os, "setsid"):
        with suppress(OSError):  # it leads a group already
            os.setsid()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
