"""The process that programs are forked from: a small interpreter with nothing in it that a program may not know.

It never sees a program, an input, a test or an output: those go in files and pipes from the process that trains to the
process that was forked for them. So nothing of one program is left for the next to find. It forks, waits, kills and
reports how it ended.

There are three: the *guard*, outside; the *zygote*, in the namespaces; one or two children that run programs.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_reason_code.sandbox import judge, linux, program

SCRIPT, CALLS, ASSERTS = range(3)
"""What to do: run a script, call functions, or run a program and tests made of asserts beside it."""

REQUEST = struct.Struct("=Bdq")
"""What to do, seconds, bytes of address space. With it come three descriptors: the program; the standard input, calls
or tests; and the pipe that takes the output."""

STOP = b"stop"

THREADS = 64
_STACK = 64 * 2**20
_PRELOADED = (  # noqa: SIM905 - a list would be a page long
    "abc array ast base64 binascii bisect bz2 calendar cmath collections collections.abc colorsys contextlib copy csv "
    "ctypes dataclasses datetime decimal difflib enum fractions functools gc hashlib heapq inspect io itertools json "
    "keyword lzma math numbers operator os pprint queue random re secrets select signal statistics string struct sys "
    "textwrap threading time traceback types typing unicodedata uuid weakref zlib concurrent.futures"
).split()
"""Imported once for all: saves every program the time, and some need libraries from folders that it cannot see."""


def main(control: int, *, confined: bool, namespaces: bool) -> None:
    """Be a guard and a zygote until the other end of `control` closes or its process ends.

    Args:
        control: descriptor of a SEQPACKET socket. A report comes first, as JSON: what confines, or what is missing.
        confined: False leaves only resource limits; who asks for that has been warned.
        namespaces: whether to live in new namespaces.
    """
    for name in _PRELOADED:
        with contextlib.suppress(ImportError):  # interpreters are built without some
            importlib.import_module(name)
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")  # the C library loads it when a thread ends
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # of `site`, which is not loaded
    os.environ.clear()
    os.umask(0o022)
    trainer = os.pidfd_open(os.getppid())
    connection = socket.socket(fileno=os.dup(control))  # to a low number: children close those
    os.close(control)
    ordinary = os.geteuid() != 0
    try:
        # in a user namespace the kernel counts an ordinary user's threads apart; root's it never counts
        private = namespaces and linux.enter_namespaces() and ordinary
    except linux.Unavailable as error:
        connection.send(json.dumps({"missing": str(error)}).encode())
        return
    if zygote := os.fork():
        connection.close()
        _guard(trainer, zygote)
        return
    os.close(trainer)
    try:
        serve = _Zygote(connection, confined=confined, namespaces=namespaces, private=private)
    except (linux.Unavailable, OSError) as error:
        connection.send(json.dumps({"missing": str(error)}).encode())
        return
    serve.run()


def _guard(trainer: int, zygote: int) -> None:
    """Wait for the zygote, and do not let it outlive the process that trains."""
    poll = select.poll()
    for descriptor in (trainer, ended := os.pidfd_open(zygote)):
        poll.register(descriptor, select.POLLIN)
    if all(descriptor != ended for descriptor, _ in poll.poll()):
        os.kill(zygote, signal.SIGKILL)
    os.waitpid(zygote, 0)


class _Zygote:
    """What forks.

    Args:
        connection: to the process that trains.
        confined: see `main`.
        namespaces: whether this process is in new ones.
        private: whether nothing but this zygote and its children runs as this user, so that the kernel can bound their
            threads; else there are none, for the bound would count the threads of the training, too.
    """

    def __init__(self, connection: socket.socket, *, confined: bool, namespaces: bool, private: bool) -> None:
        self.connection, self.confined = connection, confined
        library = [Path(path).resolve() for path in sys.path if Path(path).is_dir()]
        strangers = [found for path in library for name in _STRANGERS if (found := path / name).is_dir()]
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if namespaces:
            linux.enter_empty_root(_outermost(library), strangers)
        report: dict[str, object] = {"namespaces": namespaces, "landlock": 0, "threads": True}
        if confined:
            if os.geteuid() == 0 and (namespaces or all(map(_readable_by_others, library))):
                linux.become_private_user()
                private = True
            linux.drop_capabilities()
            linux.no_new_privileges()
            # where strangers' folders are covered one rule will do, which costs each program less than hundreds
            readable = library if namespaces else _entries(library, strangers)
            self.landlock = linux.Landlock(readable, library)
            self.seccomp = linux.Seccomp(threads=private)
            report |= {"landlock": self.landlock.version, "threads": private}
        linux.undumpable()
        linux.die_with_parent()
        self.processes = THREADS + 4 if private else None
        report |= {"user": os.getuid(), "private": private}
        gc.collect()
        gc.freeze()
        connection.send(json.dumps(report).encode())

    def run(self) -> None:
        """Answer requests until nobody is there to ask."""
        while True:
            message, descriptors, _, _ = socket.recv_fds(self.connection, REQUEST.size, 3)
            if not message:
                return
            if len(message) == REQUEST.size:  # a STOP may come after the end of what it was to stop
                what, seconds, memory = REQUEST.unpack(message)
                self.connection.send(json.dumps(self._run(what, seconds, memory, descriptors)).encode())

    def _run(self, what: int, seconds: float, memory: int, descriptors: list[int]) -> dict[str, object]:
        source, second, output = descriptors
        bound = (seconds, memory)
        if what == SCRIPT:
            children = [self._fork(bound, [second, output], [source], program.run_script)]
        elif what == CALLS:
            children = [self._fork(bound, [], [source, second, output], program.run_calls)]
        else:
            requests, asked = os.pipe()
            answers, answered = os.pipe()
            descriptors += [requests, asked, answers, answered]
            children = [
                self._fork(bound, [], [source, requests, answered], program.run_calls),
                self._fork(bound, [], [second, asked, answers, output], _judge),
            ]
        for descriptor in descriptors:
            os.close(descriptor)
        return self._wait(children, time.monotonic() + seconds)

    def _fork(
        self, bound: tuple[float, int], standard: Sequence[int], others: Sequence[int], work: Callable[..., int]
    ) -> int:
        """A confined child that does `work(3, 4, ...)` on copies of the descriptors `others`."""
        zygote = os.getpid()
        if child := os.fork():
            return child
        code = program.BROKEN
        try:
            self._confine(*bound, zygote)
            streams = [*standard, *[self.null] * (3 - len(standard))]
            wanted = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 40) for descriptor in (*streams, *others)]
            for number, descriptor in enumerate(wanted):
                os.dup2(descriptor, number)
            os.closerange(len(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            if self.confined:
                self.seccomp.install()
            code = program.RAISED
            code = work(*range(3, len(wanted)))
        finally:
            program.leave(code)
        raise AssertionError

    def _confine(self, seconds: float, memory: int, zygote: int) -> None:
        """All but the filter of system calls, which comes last."""
        cpu = int(seconds) + 2
        limits: dict[int, tuple[int, int]] = {
            resource.RLIMIT_CPU: (cpu, cpu + 1),
            resource.RLIMIT_AS: (memory, memory),
            resource.RLIMIT_FSIZE: (0, 0),
            resource.RLIMIT_NOFILE: (64, 64),
            resource.RLIMIT_CORE: (0, 0),
            resource.RLIMIT_MEMLOCK: (0, 0),
        }
        if self.processes is not None:
            limits[resource.RLIMIT_NPROC] = (self.processes, self.processes)
        limits[resource.RLIMIT_STACK] = (_STACK, _STACK)
        for kind, bounds in limits.items():
            ceiling = resource.getrlimit(kind)[1]  # which only root could raise
            if ceiling != resource.RLIM_INFINITY:
                bounds = min(bounds[0], ceiling), min(bounds[1], ceiling)  # noqa: PLW2901 - all that can be had
            resource.setrlimit(kind, bounds)
        linux.die_with_parent()
        if os.getppid() != zygote:
            program.leave(program.BROKEN)
        linux.undumpable()
        if self.confined:
            self.landlock.restrict()

    def _wait(self, children: list[int], deadline: float) -> dict[str, object]:
        """See the children off: at the deadline, when told to stop, or when the last one, the judge, has ended."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        ended = {os.pidfd_open(child): child for child in children}
        for descriptor in ended:
            poll.register(descriptor, select.POLLIN)
        codes: dict[int, int] = {}
        late = killed = False
        seconds = 0.0
        while len(codes) < len(children):
            ready = poll.poll(None if killed else max(deadline - time.monotonic(), 0) * 1000)
            for descriptor, _ in ready:
                if descriptor in ended:
                    child = ended[descriptor]
                    _, status, usage = os.wait4(child, 0)
                    codes[child] = os.waitstatus_to_exitcode(status)
                    seconds += usage.ru_utime + usage.ru_stime
                    poll.unregister(descriptor)
                    os.close(descriptor)
            if not killed:
                stop = any(descriptor == self.connection.fileno() for descriptor, _ in ready)
                late = not ready and time.monotonic() >= deadline
                if late or stop or children[-1] in codes:
                    killed = True
                    poll.unregister(self.connection)
                    for child in children:
                        if child not in codes:
                            os.kill(child, signal.SIGKILL)
        return {"codes": [codes[child] for child in children], "late": late, "seconds": seconds}


def _judge(source: int, requests: int, answers: int, verdicts: int) -> int:
    return judge.Judge(requests, answers, verdicts).run(source)


_STRANGERS = ("site-packages", "dist-packages")
"""Folders of the library that hold whatever else is installed; data sets and their answers, perhaps."""


def _outermost(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in folders if not any(other in folder.parents for other in folders)]


def _entries(library: Sequence[Path], strangers: Sequence[Path]) -> list[Path]:
    return [entry for folder in library for entry in folder.iterdir() if entry not in strangers and entry.exists()]


def _readable_by_others(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents))
