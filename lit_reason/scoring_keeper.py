"""Who sees a reward worker off, on Linux: a process between it and the one that trains.

Rewards may start processes, in sessions of their own too, and may end or hang their worker in any way. The keeper
adopts whatever loses its parent below it, does nothing that a reward could disturb, and ends when the worker or the
training process does, or on SIGTERM. Before it goes it ends everything that is left.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_SUBREAPER, _DEATH_SIGNAL = 36, 1  # of prctl
_PATIENCE = 5.0
"""Seconds after which it gives up on what cannot be killed, such as programs of another user."""


def keep() -> None:
    """Fork: this process becomes the keeper, and the child, which alone returns from here, the worker."""
    with suppress(OSError):  # it leads a session already
        os.setsid()
    prctl = ctypes.CDLL(None).prctl
    prctl(_SUBREAPER, 1, 0, 0, 0)
    keeper = os.getpid()
    worker = os.fork()
    if worker:
        _watch(worker)
    prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    if os.getppid() != keeper:
        os._exit(1)


def _watch(worker: int) -> NoReturn:
    """Wait for the end of the worker, and end in the same way."""
    code = -int(signal.SIGKILL)
    try:
        signal.signal(signal.SIGTERM, _stop)
        threading.Thread(target=_follow, daemon=True).start()
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except SystemExit:
        pass
    finally:
        _end_descendants()
        if code < 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with suppress(OSError):  # SIGKILL is as it is
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(max(code, 1) if code else 0)


def _stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


def _follow() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _end_descendants() -> None:
    """Kill until nothing is left; who is killed leaves its children here."""
    end = time.monotonic() + _PATIENCE
    with suppress(ChildProcessError):
        while time.monotonic() < end:
            for process in _descendants():
                with suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.001)


def _descendants() -> set[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, IndexError):  # it has ended meanwhile
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, grown = set(), {os.getpid()}
    while grown:
        found |= grown
        grown = {process for process, parent in parents.items() if parent in found} - found
    return found - {os.getpid()}
