"""The other end of a zygote, in the process that trains."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_reason_code.sandbox.zygote import REQUEST, STOP

_START = 60.0
"""Seconds until a zygote must have reported; a busy machine with a slow disk is granted that."""

_GRACE = 5.0
"""Seconds after the deadline until a zygote that has not reported is given up."""

_BOOTSTRAP = """
import sys
sys.path.append(sys.argv[1])
from lit_reason_code.sandbox import zygote
sys.path.remove(sys.argv[1])
control, confined, namespaces = map(int, sys.argv[2:])
sys.argv[:] = [""]
zygote.main(control, confined=bool(confined), namespaces=bool(namespaces))
"""


class Lost(Exception):  # noqa: N818 - not a mistake of the caller
    """The zygote ended, or does not answer."""


class Missing(Exception):  # noqa: N818 - likewise
    """The zygote could not confine itself; the text names what is missing."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        output: what came out, up to the limit.
        flooded: whether more came.
        late: whether it was killed at the deadline.
        codes: exit code, or minus the signal, of the program and of the judge if there was one.
        seconds: of CPU, all together.
        took: seconds by the wall's clock.
    """

    output: bytes
    flooded: bool
    late: bool
    codes: list[int]
    seconds: float
    took: float


class Process:
    """A zygote: runs one program at a time.

    Args:
        interpreter: path of a Python 3.11 or newer.
        confined: False leaves only resource limits.
        namespaces: whether to use them.

    Raises:
        Missing: it cannot confine itself so.
        Lost: it ended without saying why.
    """

    def __init__(self, *, interpreter: str, confined: bool = True, namespaces: bool = True) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = str(Path(__file__).parents[2])
        arguments = [package, str(theirs.fileno()), str(int(confined)), str(int(namespaces))]
        # no user's or site's packages; and sets print in the same order in every process
        command = [interpreter, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", _BOOTSTRAP, *arguments]
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
                command,
                env={"PYTHONHASHSEED": "0"} | _library_path(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the process that trains
            )
        except OSError:
            self.control.close()
            raise Lost from None
        finally:
            theirs.close()
        try:
            self.report = self._receive(_START)
        except Lost:
            self.close()
            raise
        if "missing" in self.report:
            self.close()
            raise Missing(self.report["missing"])

    def run(self, what: int, source: bytes, second: bytes, *, seconds: float, memory: int, limit: int) -> Ended:
        """Run a program and wait for its end.

        Args:
            what: SCRIPT, CALLS or ASSERTS.
            source: the program, for its process only.
            second: standard input, calls or tests; tests are for the judge's process only.
            seconds: until it is killed.
            memory: bytes of address space.
            limit: bytes of output after which it is killed.

        Raises:
            Lost: the zygote ended, or does not answer.
        """
        output, theirs = os.pipe()
        descriptors = [theirs]
        try:
            descriptors += [_file(source), _file(second)]
            try:
                socket.send_fds(self.control, [REQUEST.pack(what, seconds, memory)], [*descriptors[1:], theirs])
            except OSError:
                raise Lost from None
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            return self._follow(output, time.monotonic(), seconds + _GRACE, limit)
        finally:
            os.close(output)

    def _follow(self, output: int, start: float, patience: float, limit: int) -> Ended:
        os.set_blocking(output, False)
        poll = select.poll()
        poll.register(output, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        pieces: list[bytes] = []
        size, more = 0, True
        while True:
            ready = dict(poll.poll(max(start + patience - time.monotonic(), 0) * 1000))
            if not ready:
                raise Lost
            while more:  # before the report is read: all that the program wrote came before its end
                try:
                    piece = os.read(output, 2**16)
                except BlockingIOError:
                    break
                pieces.append(piece)
                size += len(piece)
                if not piece or size > limit:
                    more = False
                    poll.unregister(output)
                    if piece:
                        with suppress(OSError):
                            self.control.send(STOP)
            if self.control.fileno() in ready:
                end = self._receive(0)
                took = time.monotonic() - start
                return Ended(output=b"".join(pieces)[:limit], flooded=size > limit, took=took, **end)

    def close(self) -> None:
        """End it, and whatever it is running."""
        self.control.close()
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def forget(self) -> None:
        """In a forked copy of the process that trains: the zygote is not ours."""
        self.control.close()
        self.process.returncode = 0  # nothing to wait for

    def _receive(self, seconds: float) -> dict[str, Any]:
        """The next report."""
        if not select.select([self.control], [], [], seconds)[0]:
            raise Lost
        try:
            message = self.control.recv(2**16)
        except OSError:
            raise Lost from None
        if not message:
            raise Lost
        report: dict[str, Any] = json.loads(message)
        return report


def _file(content: bytes) -> int:
    """A descriptor to read something from that stands on no disk."""
    descriptor = os.memfd_create("lit-reason-code")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _library_path() -> dict[str, str]:
    """What some interpreters need to start at all; the zygote forgets it."""
    name = "LD_LIBRARY_PATH"
    return {name: os.environ[name]} if name in os.environ else {}
