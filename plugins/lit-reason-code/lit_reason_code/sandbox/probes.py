"""The self-test: a program that really tries what no program may do, and the list of what it must not achieve.

`self_test` sends the text of this very file into the sandbox, as a program whose functions it calls. Each function does
one forbidden thing, in a form that does no harm where it succeeds, and then returns; confined, it raises instead.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_reason_code.sandbox.process import Process

CALLS = {  # name: (x86_64, aarch64)
    "clone": (56, 220),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "pidfd_open": (434, 434),
    "mount": (165, 40),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),
    "personality": (135, 92),
    "setresuid": (117, 147),
    "capset": (126, 91),
    "prctl": (157, 167),
    "shmget": (29, 194),
    "inotify_init1": (294, 26),
    "socket": (41, 198),
    "io_setup": (206, 0),
    "sched_setaffinity": (203, 122),
}
"""System calls that must fail as forbidden, not as misused: they are made with zeros and a nonsense pointer."""


def read_file(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def list_folder(path: str) -> list[str]:
    return os.listdir(path)  # noqa: PTH208 - as short as it can be


def write_file(path: str) -> int:
    return Path(path).write_text("written", encoding="utf-8")


def remove_file(path: str) -> None:
    Path(path).unlink()


def change_mode(path: str) -> None:
    Path(path).chmod(0o777)


def make_folder(path: str) -> None:
    Path(path).mkdir()


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def execute(path: str) -> None:
    os.execv(path, [path, "-c", ""])  # noqa: S606


def spawn(path: str) -> None:
    os.waitpid(os.posix_spawn(path, [path, "-c", ""], {}), 0)


def connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 1).close()


def connect_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(path)


def make_pair() -> None:
    socket.socketpair()


def send_signal(process: int) -> None:
    os.kill(process, 0)


def signal_zygote() -> None:
    os.kill(os.getppid(), 0)


def signal_by_descriptor(process: int) -> None:
    fcntl.fcntl(0, fcntl.F_SETOWN, process)  # the owner of a descriptor gets SIGIO


def raise_limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


def limit_of(process: int) -> None:
    resource.prlimit(process, resource.RLIMIT_CPU)


def grow_calls() -> None:
    place = os.lseek(4, 0, os.SEEK_CUR)  # descriptor 4 is the file that the calls are read from
    os.lseek(4, 0, os.SEEK_END)
    try:
        os.write(4, b"x" * 100)
    finally:
        os.lseek(4, place, os.SEEK_SET)


def system_call(number: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, ctypes.c_void_p(8), 0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def attempts(canary: Path, port: int, unix: Path, interpreter: str) -> Iterator[tuple[str, list[object]]]:
    """Every function above with arguments for it."""
    here = os.getpid()
    yield "read_file", [str(canary)]
    yield "list_folder", [str(canary.parent)]
    yield "list_folder", ["/"]
    yield "write_file", [str(canary)]
    yield "write_file", [str(canary.with_name("new"))]
    yield "write_file", ["here"]
    yield "write_file", ["/tmp/lit-reason-code-probe"]  # noqa: S108 - nothing is to be there
    yield "write_file", ["/dev/shm/lit-reason-code-probe"]  # noqa: S108 - likewise
    yield "make_folder", [str(canary.with_name("folder"))]
    yield "remove_file", [str(canary)]
    yield "change_mode", [str(canary)]
    for path in (f"/proc/{here}/environ", "/proc/self/status", "/proc/1/cmdline", "/etc/passwd", "/dev/null"):
        yield "read_file", [path]
    yield "list_folder", ["/proc"]
    yield "fork", []
    for path in (interpreter, "/bin/true"):
        yield "execute", [path]
        yield "spawn", [path]
    yield "connect", [port]
    yield "connect_unix", [str(unix)]
    yield "make_pair", []
    yield "send_signal", [here]
    yield "signal_zygote", []
    yield "signal_by_descriptor", [here]
    yield "raise_limit", []
    yield "limit_of", [here]
    yield "grow_calls", []
    column = 0 if os.uname().machine == "x86_64" else 1
    for numbers in CALLS.values():
        yield "system_call", [numbers[column]]


_EXPECTED = {"PermissionError", "FileNotFoundError"}  # the latter where the place itself is not there
_ELSEWHERE = {
    "raise_limit": {"ValueError", "PermissionError"},
    "system_call": {"PermissionError"},
    "write_file": {*_EXPECTED, "OSError"},  # a read-only file system
    "make_folder": {*_EXPECTED, "OSError"},
    "grow_calls": {"OSError"},
}


def self_test(process: Process, interpreter: str) -> list[str]:
    """What a program in the sandbox can do that it must not be able to, in words; empty when it is tight.

    Args:
        process: to try it in.
        interpreter: something that can be executed.
    """
    import json

    from lit_reason_code.sandbox import wire, zygote

    with tempfile.TemporaryDirectory() as folder, socket.socket() as server, socket.socket(socket.AF_UNIX) as local:
        place = Path(folder)
        place.chmod(0o755)  # to be read by any user but for the sandbox
        canary, unix = place / "canary", place / "socket"
        canary.write_text("sing")
        canary.chmod(0o666)
        server.bind(("127.0.0.1", 0))
        server.listen()
        local.bind(str(unix))
        local.listen()
        unix.chmod(0o777)
        tried = list(attempts(canary, server.getsockname()[1], unix, interpreter))
        calls = b"".join(wire.frame([name, [wire.encode(a) for a in arguments], {}]) for name, arguments in tried)
        source = json.dumps({"setup": "", "program": Path(__file__).read_text(encoding="utf-8")}).encode()
        ended = process.run(zygote.CALLS, source, calls, seconds=20, memory=2**29, limit=2**20)
        answers = wire.frames(ended.output)
        found = [
            f"{name}({', '.join(map(repr, arguments))}) {_said(answer)}"
            for (name, arguments), answer in zip(tried, [*answers, *[None] * len(tried)], strict=False)
            if not (isinstance(answer, dict) and answer.get("raised") in _ELSEWHERE.get(name, _EXPECTED))
        ]
        if canary.read_text() != "sing" or sorted(os.listdir(folder)) != ["canary", "socket"]:  # noqa: PTH208
            found.append("files were changed")
    return found


def _said(answer: object) -> str:
    if answer is None:
        return "ended the program"
    return f"raised {answer['raised']}" if isinstance(answer, dict) else "was possible"
