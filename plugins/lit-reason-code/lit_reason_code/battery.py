"""Tries a sandbox out with the programs of `lit_reason_code.hostile`, and looks at what they leave behind."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from lit_reason_code.hostile import ASSERTS, CALLS, SCRIPTS
from lit_reason_code.judging import Limits, Outcome, Suite, judge
from lit_reason_code.sandbox.pool import Sandbox
from lit_reason_code.sandbox.process import Ended

_SECRET = "the-canary-sings"  # noqa: S105 - nothing of worth
_VARIABLE = "LIT_REASON_CODE_CANARY"

PROBLEMS = {
    "script": (SCRIPTS, Suite(inputs=["3\n"], outputs=["7\n864209753\n40\n"])),
    "calls": (CALLS, Suite(entry_point="f", inputs=[[3], [4]], outputs=[864209753, 975318642])),
    "asserts": (ASSERTS, Suite(tests="assert f(3) == 864209753\nassert f(4) == 975318642")),
}


@dataclass(kw_only=True, slots=True)
class Finding:
    """What a hostile program achieved.

    Attributes:
        name: kind of problem and name of the program.
        status: of its outcome.
        seconds: its longest run took, by the wall's clock.
        complaints: what it should not have been able to do; empty is good.
    """

    name: str
    status: str
    seconds: float
    complaints: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True, frozen=True)
class Bait:
    """What hostile programs are after; the names are those of the placeholders in them, in lower case."""

    canary: Path
    folder: Path
    port: int
    abstract: str
    victim: int
    pid: int
    listeners: tuple[socket.socket, socket.socket]


class _Recorder(Sandbox):
    """Another sandbox that remembers how its programs ended."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.runs: list[Ended] = []

    def run(self, what: int, source: bytes, second: bytes, *, seconds: float, memory: int, limit: int) -> Ended:
        ended = self.sandbox.run(what, source, second, seconds=seconds, memory=memory, limit=limit)
        self.runs.append(ended)
        return ended


def run_battery(sandbox: Sandbox, *, seconds: float = 1.0, grace: float = 1.0, memory_mb: int = 256) -> list[Finding]:
    """Run every hostile program, as many at a time as the sandbox has workers.

    Args:
        sandbox: to try out.
        seconds: limit of each program.
        grace: seconds after which a program must have ended that is over its limit.
        memory_mb: limit of each program.

    Returns:
        What each achieved, and last what all of them left behind.
    """
    strangers = descendants()
    sandbox.report()
    limits = Limits(seconds=seconds, memory_mb=memory_mb)
    everything = [(kind, name) for kind, (programs, _) in PROBLEMS.items() for name in programs]
    with _bait() as bait, _traces(bait, strangers) as left:
        findings = list(sandbox.map(lambda item: _try(*item, bait, sandbox, limits), everything))
        sandbox.close()
    for finding in findings:
        if finding.seconds > seconds + grace:
            finding.complaints.append(f"ended after {finding.seconds:.1f} s of {seconds:g}")
    return [*findings, Finding(name="all of them, afterwards", status="", seconds=0.0, complaints=left)]


def _try(kind: str, name: str, bait: Bait, sandbox: Sandbox, limits: Limits) -> Finding:
    programs, tests = PROBLEMS[kind]
    values = {key.upper(): str(getattr(bait, key)) for key in Bait.__slots__}
    program = Template(programs[name]).safe_substitute(values)
    recorder = _Recorder(sandbox)
    outcome = judge(program, tests, recorder, limits)
    return Finding(
        name=f"{kind}: {name}",
        status=outcome.status,
        seconds=max(ended.took for ended in recorder.runs),
        complaints=list(_complaints(outcome, recorder.runs)),
    )


def _complaints(outcome: Outcome, runs: list[Ended]) -> Iterator[str]:
    if outcome.total == 0:
        yield "had itself left out"
    if outcome.passed == outcome.total:
        yield "passed"
    if any(_SECRET.encode() in ended.output for ended in runs):
        yield "read a canary"


@contextmanager
def _bait() -> Iterator[Bait]:
    os.environ[_VARIABLE] = _SECRET
    abstract = f"lit-reason-code-{os.getpid()}"
    victim = subprocess.Popen(["sleep", "600"])  # noqa: S607 - any sleep will do
    with tempfile.TemporaryDirectory() as name, socket.socket() as server, socket.socket(socket.AF_UNIX) as unix:
        folder = Path(name)
        folder.chmod(0o777)  # all that keeps programs out is the sandbox
        canary = folder / "canary"
        canary.write_text(_SECRET, encoding="utf-8")
        canary.chmod(0o666)
        server.bind(("127.0.0.1", 0))
        unix.bind(f"\0{abstract}")
        for listener in (server, unix):
            listener.listen()
            listener.setblocking(False)
        try:
            yield Bait(
                canary=canary,
                folder=folder,
                port=server.getsockname()[1],
                abstract=abstract,
                victim=victim.pid,
                pid=os.getpid(),
                listeners=(server, unix),
            )
        finally:
            del os.environ[_VARIABLE]
            victim.kill()
            victim.wait()


def _visited(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@contextmanager
def _traces(bait: Bait, strangers: set[int]) -> Iterator[list[str]]:
    """A list that in the end holds what is there and was not before: files, processes beside `strangers`."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans become children of this process, where they can be seen
    places = [Path(place) for place in ("/tmp", "/dev/shm", "/var/tmp")]  # noqa: S108 - looked at, not used
    floods = {path for place in places for path in place.glob("flood*")}
    complaints: list[str] = []
    yield complaints
    if bait.canary.read_text(encoding="utf-8") != _SECRET or list(bait.folder.iterdir()) != [bait.canary]:
        complaints.append("files were changed")
    if {path for place in places for path in place.glob("flood*")} - floods:
        complaints.append("files were made")
    others = descendants() - strangers - {bait.victim}
    if others:
        complaints.append(f"processes are left: {sorted(others)}")
    if any(map(_visited, bait.listeners)):
        complaints.append("somebody connected")
    if not _runs(bait.victim):
        complaints.append("another process was killed")


def descendants() -> set[int]:
    """Ids of all processes that this one, or its children and theirs, started; the dead that nobody waited for too."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):  # it has ended meanwhile
                continue
    found: set[int] = set()
    grown = {os.getpid()}
    while grown:
        found |= grown
        grown = {process for process, parent in parents.items() if parent in found} - found
    return found - {os.getpid()}


def _runs(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return False
