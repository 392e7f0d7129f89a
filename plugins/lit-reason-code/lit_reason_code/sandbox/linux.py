"""What the kernel offers to confine a process, through ctypes: seccomp, Landlock, namespaces, mounts, capabilities.

Each function raises `Unavailable` with the name of what is missing. Sources: the kernel's user-space documentation
(`userspace-api/landlock`, `userspace-api/seccomp_filter`) and the manual pages of the calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from lit_reason_code.sandbox.syscalls import X86_64, seccomp_filter

_LIBC = ctypes.CDLL(None, use_errno=True)

# one number on all architectures for what came after 5.0
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 4, 38, 47
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_CAP_AMBIENT_CLEAR_ALL = 22, 2, 4

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x00020000,
    0x02000000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 2, 4, 4096, 16384, 1 << 18, 2
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _AT_RECURSIVE, _AT_FDCWD = 1, 2, 4, 0x8000, -100

NOBODY = 65534
_PRIVATE_UIDS = range(61184, 65520)
"""No account has these: service managers give them to services while they run. Small, for nested containers."""

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ACCESS_BITS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Landlock version -> how many kinds of file access it knows."""


class Unavailable(Exception):  # noqa: N818 - it says what is not there, which may or may not be an error
    """The kernel, or whoever configured it, does not offer something; the text names it."""


def _check(what: str, result: int) -> int:
    if result < 0:
        raise Unavailable(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _prctl(what: str, option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    _check(what, _LIBC.prctl(option, *map(ctypes.c_ulong, padded)))


# --- seccomp


class Seccomp:
    """The system-call filter, made once and installed in each program.

    Args:
        threads: whether programs may start threads.

    Raises:
        Unavailable: the kernel has no such filters, or the machine's system-call numbers are not known here.
    """

    def __init__(self, *, threads: bool) -> None:
        if _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None) == 0 or ctypes.get_errno() != errno.EFAULT:
            raise Unavailable("seccomp: no filters in this kernel, or not allowed here")
        machine = os.uname().machine
        try:
            code = seccomp_filter(machine, threads=threads)
        except KeyError:
            raise Unavailable(f"seccomp: no system-call numbers for machine '{machine}'") from None
        self._code = ctypes.create_string_buffer(code, len(code))  # the pointer below does not keep it alive
        self._program = ctypes.create_string_buffer(
            struct.pack("@HP", len(code) // 8, ctypes.addressof(self._code)), struct.calcsize("@HP")
        )

    def install(self) -> None:
        """Put this process, for ever, under the filter; `no_new_privileges` must have come before."""
        _prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(self._program))


# --- Landlock


class Landlock:
    """A set of files that may be read; nothing else may be opened, written, connected to or signalled.

    Args:
        readable: folders and files; what a folder holds is readable, too.
        listed: folders whose names may be listed, and of which nothing may be read unless it is in `readable`.

    Raises:
        Unavailable: the kernel has no Landlock (it came with 5.13), or it is switched off.
    """

    def __init__(self, readable: Iterable[Path], listed: Iterable[Path]) -> None:
        self.version = landlock_version()
        kinds = (1 << max(bits for version, bits in _ACCESS_BITS.items() if version <= self.version)) - 1
        network = 0b11 if self.version >= 4 else 0  # bind and connect, TCP
        scoped = 0b11 if self.version >= 6 else 0  # abstract unix sockets and signals
        attributes = struct.pack("=QQQ", kinds, network, scoped)
        size = 24 if scoped else 16 if network else 8
        self._ruleset = _check("Landlock", _LIBC.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0))
        for path in readable:
            self._allow(path, _READ_FILE | _READ_DIR if path.is_dir() else _READ_FILE)
        for path in listed:
            self._allow(path, _READ_DIR)

    def _allow(self, path: Path, access: int) -> None:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access, descriptor)
        try:
            _check("Landlock", _LIBC.syscall(_LANDLOCK_ADD, self._ruleset, 1, rule, 0))
        finally:
            os.close(descriptor)

    def restrict(self) -> None:
        """Put this process, for ever, under the rules; `no_new_privileges` must have come before."""
        _check("Landlock", _LIBC.syscall(_LANDLOCK_RESTRICT, self._ruleset, 0))


def landlock_version() -> int:
    """The version of Landlock's interface.

    Raises:
        Unavailable: there is none.
    """
    version: int = _LIBC.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        why = "switched off at boot" if ctypes.get_errno() == errno.EOPNOTSUPP else "not in this kernel, 5.13 or newer"
        raise Unavailable(f"Landlock: {why}")
    return version


# --- namespaces and mounts


def enter_namespaces() -> bool:
    """Leave the machine's processes, network, names and mounts behind; children will live in the new ones.

    Returns:
        Whether it took a user namespace, in which this process now is `NOBODY`. Root does without where it can.

    Raises:
        Unavailable: a namespace cannot be had.
    """
    flags = _NEWNS | _NEWCGROUP | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    user, group = os.geteuid(), os.getegid()
    if user == 0 and _LIBC.unshare(flags) == 0:
        return False
    _check("namespaces", _LIBC.unshare(flags | _NEWUSER))
    try:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1", encoding="ascii")
    except OSError as error:
        raise Unavailable(f"user namespace: {error.strerror}") from error
    return True


def enter_empty_root(shown: Iterable[Path], hidden: Iterable[Path]) -> None:
    """Make a root that holds nothing but a few folders at their old places, all of it read-only, and go there.

    Args:
        shown: folders to have.
        hidden: folders inside those to cover with empty ones.

    Raises:
        Unavailable: something cannot be mounted.
    """
    root = "/proc"  # covered in these mounts only: a folder that is always there and from which nothing is taken
    _mount("private mounts", "/", _MS_REC | _MS_PRIVATE)
    _mount("empty root", root, _MS_NOSUID | _MS_NODEV, kind="tmpfs", options="mode=0755,size=1m")
    for path in shown:
        place = Path(f"{root}{path}")
        place.mkdir(parents=True, exist_ok=True)
        _mount(f"mount of {path}", str(place), _MS_BIND | _MS_REC, source=str(path))
    for path in hidden:
        _mount(f"cover of {path}", f"{root}{path}", _MS_NOSUID | _MS_NODEV, kind="tmpfs", options="mode=0755,size=4k")
    attributes = struct.pack("=QQQQ", _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
    arguments = (_AT_FDCWD, root.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes)))
    _check("read-only mounts", _LIBC.syscall(_MOUNT_SETATTR, *arguments))
    os.chdir(root)
    pivot_root = 155 if os.uname().machine == X86_64 else 41
    _check("new root", _LIBC.syscall(pivot_root, b".", b"."))
    _check("old root", _LIBC.umount2(b".", _MNT_DETACH))
    os.chdir("/")


def _mount(
    what: str, target: str, flags: int, *, source: str = "none", kind: str | None = None, options: str = ""
) -> None:
    of_kind = None if kind is None else kind.encode()
    arguments = (os.fsencode(source), os.fsencode(target), of_kind, ctypes.c_ulong(flags), options.encode())
    _check(what, _LIBC.mount(*arguments))


# --- privileges


def become_private_user() -> None:
    """Stop being root, as a user and group that nothing else on the machine runs as.

    Raises:
        Unavailable: root may not change users here.
    """
    user = _PRIVATE_UIDS[os.getpid() % len(_PRIVATE_UIDS)]
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        raise Unavailable(f"another user: {error.strerror}") from error


def drop_capabilities() -> None:
    """Give up every capability, also those inside a user namespace."""
    _prctl("ambient capabilities", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _check("capabilities", _LIBC.capset(header, nothing))


def no_new_privileges() -> None:
    """From now on no program that is started gains anything by being set-uid."""
    _prctl("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def undumpable() -> None:
    """No core file, and no other process of this user may look into this one."""
    _prctl("dumpable", _PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """SIGKILL when the parent ends; to be called after the last change of user, which undoes it."""
    _prctl("death signal", _PR_SET_PDEATHSIG, 9)
