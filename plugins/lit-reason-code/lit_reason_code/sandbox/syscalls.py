"""Which system calls a confined program may make, as a seccomp filter.

A list of what is allowed, not of what is forbidden: system calls that kernels gain later are closed from the start. A
call that is not on it fails with EPERM, so that a program which merely tries (`os.getlogin()`) sees an exception.
Numbers are those of the kernel's headers, `asm/unistd_64.h` (x86_64) and `asm-generic/unistd.h` (aarch64).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

X86_64, AARCH64 = "x86_64", "aarch64"

# name: (x86_64, aarch64); None where the architecture has no such call
_ALLOWED: dict[str, tuple[int, int | None]] = {
    # input and output on what is open, and reading files (which ones, Landlock and the mounts say)
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "close": (3, 57),
    "close_range": (436, 436),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "stat": (4, None),
    "lstat": (6, None),
    "statx": (332, 291),
    "lseek": (8, 62),
    "open": (2, None),
    "openat": (257, 56),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    # memory, bounded by RLIMIT_AS
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "brk": (12, 214),
    "madvise": (28, 233),
    # signal handlers and timers of its own; sending signals is not here
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "alarm": (37, None),
    "pause": (34, None),
    # threads wait for each other
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    # clocks, names and numbers
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
_IOCTL, _FCNTL, _CLONE, _CLONE3, _PRLIMIT = (16, 29), (72, 25), (56, 220), (435, 435), (302, 261)
_AUDIT_ARCH = {X86_64: 0xC000003E, AARCH64: 0xC00000B7}

_TERMINAL_QUERIES = (0x5401, 0x5451)  # TCGETS, which isatty() asks, and FIOCLEX; others reach into drivers
_DESCRIPTOR_QUERIES = (0, 1, 2, 3, 1030)  # DUPFD, GETFD, SETFD, GETFL, DUPFD_CLOEXEC; F_SETOWN would send signals

_THREAD = 0x00000100 | 0x00000800 | 0x00010000  # CLONE_VM, CLONE_SIGHAND, CLONE_THREAD: without all three, a process
_NEW_NAMESPACES = 0x7E020000 | 0x80
_TRACE_OR_REPARENT = 0x00002000 | 0x00008000

_LOAD, _EQUAL, _RETURN, _AND = 0x20, 0x15, 0x06, 0x54  # of the classic Berkeley packet filter
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; little-endian, low half first


def seccomp_filter(machine: str, *, threads: bool) -> bytes:
    """The filter, as an array of struct sock_filter.

    Args:
        machine: X86_64 or AARCH64, as `os.uname().machine` names them.
        threads: whether a program may start threads; never processes.

    Raises:
        KeyError: the numbers of this machine are not known.
    """
    column = {X86_64: 0, AARCH64: 1}[machine]
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _step(_RETURN, _KILL_PROCESS),  # 32-bit calls on a 64-bit kernel have other numbers
        _step(_LOAD, _NUMBER),
    ]
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            code += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    code += _if_argument(_IOCTL[column], 1, _TERMINAL_QUERIES)
    code += _if_argument(_FCNTL[column], 1, _DESCRIPTOR_QUERIES)
    code += _if_argument(_PRLIMIT[column], 0, (0,))  # its own limits, and of those only the soft ones can grow
    if threads:
        code += _if_argument(_CLONE[column], 0, (_THREAD,), mask=_THREAD | _NEW_NAMESPACES | _TRACE_OR_REPARENT)
        # its flags lie in memory, where no filter can look; told that it does not exist, the C library uses clone
        code += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, _ERRNO | _ENOSYS)]
    return b"".join([*code, _step(_RETURN, _ERRNO | _EPERM)])


def _if_argument(number: int, argument: int, values: Sequence[int], mask: int | None = None) -> list[bytes]:
    """Allow call `number` when the low half of an argument, masked, is one of `values`."""
    block = [_step(_LOAD, _ARGUMENTS + 8 * argument)]
    if mask is not None:
        block.append(_step(_AND, mask))
    for value in values:
        block += [_step(_EQUAL, value, 0, 1), _step(_RETURN, _ALLOW)]
    block.append(_step(_RETURN, _ERRNO | _EPERM))
    return [_step(_EQUAL, number, 0, len(block)), *block]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
