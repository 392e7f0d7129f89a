"""The sandbox as rewards use it: several zygotes, a self-test before the first program, and tiers."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from lit_reason_code.sandbox.probes import self_test
from lit_reason_code.sandbox.process import Ended, Lost, Missing, Process
from lit_reason_code.sandbox.program import BROKEN

Tier = Literal["full", "standard", "unsafe"]

_T = TypeVar("_T")
_R = TypeVar("_R")


class SandboxError(RuntimeError):
    """There is no sandbox here; the text names what is missing."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Report:
    """What confines programs here.

    Attributes:
        tier: "full" is namespaces, Landlock, seccomp and resource limits; "standard" is without namespaces; "unsafe" is
            resource limits alone.
        notes: why it is not a higher tier.
        landlock: version of Landlock's interface, 0 where it is not used.
        user: numeric id that programs run as, as they see it.
        threads: whether programs may start threads.
    """

    tier: Tier
    notes: list[str] = field(default_factory=list)
    landlock: int = 0
    user: int = 0
    threads: bool = True


class Sandbox:
    """Runs programs, many at a time, from any thread. Zygotes start when they are needed, and are replaced if they end.

    Args:
        workers: how many programs may run at once; None is one for each core this process may use.
        confined: False leaves only resource limits: for the caller to have warned about.
        namespaces: None uses them where the kernel allows; False does without.
        interpreter: path of the Python that runs programs; the one that runs this by default.

    Attributes:
        idle: zygotes that wait for programs.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        confined: bool = True,
        namespaces: bool | None = None,
        interpreter: str = sys.executable,
    ) -> None:
        self.workers = workers or len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
        self.confined, self.namespaces, self.interpreter = confined, namespaces, interpreter
        self._reset()
        _ALL.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.workers)
        self.idle: list[Process] = []
        self._busy: set[Process] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._report: Report | None = None

    def report(self) -> Report:
        """What confines programs; the first time, after a zygote has started and passed the self-test.

        Raises:
            SandboxError: programs cannot be confined here.
        """
        with self._lock:
            if self._report is None:
                self._report = self._establish()
            return self._report

    def run(self, what: int, source: bytes, second: bytes, *, seconds: float, memory: int, limit: int) -> Ended:
        """Run a program as soon as a zygote is free; see `Process.run`. The clock starts when the program does.

        A program whose zygote ended is tried once more, in a new one: the machine may have run out of memory.

        Raises:
            SandboxError: programs cannot be confined here.
        """
        for _ in range(2):
            with self._slots:
                process = self._take()
                try:
                    ended = process.run(what, source, second, seconds=seconds, memory=memory, limit=limit)
                except Lost:
                    self._drop(process)
                except BaseException:
                    self._drop(process)
                    raise
                else:
                    with self._lock:
                        self._busy.discard(process)
                        self.idle.append(process)
                    return ended
        return Ended(output=b"", flooded=False, late=False, codes=[BROKEN], seconds=0.0, took=0.0)

    def submit(self, function: Callable[[_T], _R], item: _T) -> Future[_R]:
        """Have something done, which runs programs, on a thread of the sandbox; there are as many as workers."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
            return self._threads.submit(function, item)

    def map(self, function: Callable[[_T], _R], items: Iterable[_T]) -> Sequence[_R]:
        """`submit` for each item, and all results."""
        return [future.result() for future in [self.submit(function, item) for item in items]]

    def close(self) -> None:
        """End all zygotes and whatever they run; the next program starts new ones."""
        with self._lock:
            for process in (*self.idle, *self._busy):
                process.close()
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)
            self.idle, self._threads = [], None

    def forget(self) -> None:
        """In a forked copy of this process: the zygotes belong to the other."""
        for process in (*self.idle, *self._busy):
            process.forget()
        self._reset()

    def _take(self) -> Process:
        report = self.report()
        with self._lock:
            process = self.idle.pop() if self.idle else None
        if process is None:
            try:
                process = self._start(namespaces=report.tier == "full")
            except (Missing, Lost) as error:
                raise SandboxError(f"a sandbox that was here is not any more: {error or 'it ended'}") from error
        with self._lock:
            self._busy.add(process)
        return process

    def _drop(self, process: Process) -> None:
        with self._lock:
            self._busy.discard(process)
        process.close()

    def _start(self, *, namespaces: bool) -> Process:
        return Process(interpreter=self.interpreter, confined=self.confined, namespaces=namespaces)

    def _establish(self) -> Report:
        if sys.platform != "linux":
            raise SandboxError(f"the sandbox is made of Linux's Landlock and seccomp, and this is {sys.platform}")
        tiers: list[tuple[Tier, bool]] = [("full", True), ("standard", False)]
        if not self.confined:
            tiers = [("unsafe", False)]
        elif self.namespaces is False:
            del tiers[0]
        notes: list[str] = []
        for tier, namespaces in tiers:
            try:
                process = self._start(namespaces=namespaces)
                leaks = self_test(process, self.interpreter) if self.confined else []
            except Missing as error:
                notes.append(f"no {tier} sandbox: {error}")
            except Lost:
                notes.append(f"no {tier} sandbox: '{self.interpreter}' did not start, or ended in the self-test")
            else:
                if not leaks:
                    self.idle.append(process)
                    told = {key: process.report[key] for key in ("landlock", "user", "threads")}
                    return Report(tier=tier, notes=notes, **told)
                process.close()
                notes.append(f"no {tier} sandbox: in the self-test {'; '.join(leaks)}")
        raise SandboxError("; ".join(notes))


_ALL: weakref.WeakSet[Sandbox] = weakref.WeakSet()
_SHARED: dict[bool, Sandbox] = {}
_SHARING = threading.Lock()


def shared(*, confined: bool = True) -> Sandbox:
    """The sandbox of this process, the same for everybody who asks."""
    with _SHARING:
        return _SHARED.setdefault(confined, _SHARED.get(confined) or Sandbox(confined=confined))


def _in_child() -> None:
    global _SHARING  # noqa: PLW0603 - a thread of the other process may hold it
    _SHARING = threading.Lock()
    for sandbox in _ALL:
        sandbox.forget()


def _at_exit() -> None:
    for sandbox in _ALL:
        sandbox.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
atexit.register(_at_exit)
