"""Hostile programs achieve nothing, as this user or one without rights; and where a piece is missing, none is run."""

import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from lit_reason_code.battery import PROBLEMS, run_battery
from lit_reason_code.hostile import ASSERTS, CALLS, SCRIPTS
from lit_reason_code.sandbox.pool import Sandbox
from lit_reason_code.sandbox.syscalls import seccomp_filter

PACKAGE = str(Path(__file__).parent.parent)
NOBODY = 65534
PROGRAMS = f"""
import os, sys
sys.path.insert(0, {PACKAGE!r})
from lit_reason_code.battery import run_battery
from lit_reason_code.sandbox.pool import Sandbox
findings = run_battery(Sandbox(), seconds=0.3, grace=30)
print(os.getuid(), len(findings), [finding for finding in findings if finding.complaints])
"""


def run_as_nobody(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a user without rights, with this Python, or a copy of it where it lies in somebody's home."""
    return subprocess.run(
        [readable_python(folder), "-c", program, *arguments],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(folder / "lib")},
        capture_output=True,
        text=True,
        check=False,
    )


def readable_python(folder: Path) -> str:
    executable = Path(sys.executable).resolve()
    library = Path(os.__file__).parent.resolve()
    if all(path.stat().st_mode & 0o005 == 0o005 for path in (library, *library.parents, *executable.parents)):
        return str(executable)
    folder.chmod(0o755)  # its parent is the system's folder for temporary files, which all can enter
    if (folder / "bin").exists():
        return str(folder / "bin" / executable.name)
    (folder / "bin").mkdir()
    shutil.copy(executable, folder / "bin" / executable.name)
    for shared in executable.parents[1].glob("lib/libpython*.so*"):
        (folder / "lib").mkdir(exist_ok=True)
        shutil.copy(shared, folder / "lib")
    unneeded = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "idlelib", "config-*", "tests", "ensurepip"
    )
    shutil.copytree(library, folder / "lib" / library.name, ignore=unneeded)
    return str(folder / "bin" / executable.name)


def test_there_are_more_than_forty_of_them() -> None:
    assert len(SCRIPTS) + len(CALLS) + len(ASSERTS) > 100


def test_hostile_programs_achieve_nothing_and_leave_nothing(sandbox: Sandbox) -> None:
    findings = run_battery(sandbox, seconds=0.3, grace=30)
    assert [finding for finding in findings if finding.complaints] == []
    assert len(findings) == 1 + sum(len(programs) for programs, _ in PROBLEMS.values())


@pytest.mark.usefixtures("needs_sandbox")
def test_the_same_as_a_user_without_rights() -> None:
    if os.geteuid() != 0:  # then the test above ran as one
        return
    with tempfile.TemporaryDirectory() as folder:
        done = run_as_nobody(Path(folder), PROGRAMS)
    count = 1 + len(SCRIPTS) + len(CALLS) + len(ASSERTS)
    assert done.stdout == f"{NOBODY} {count} []\n", done.stdout + done.stderr


def test_without_a_sandbox_the_same_battery_complains(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = ("read a file", "connect", "kill", "overwrite a file")
    monkeypatch.setitem(PROBLEMS, "script", ({name: SCRIPTS[name] for name in harmless}, PROBLEMS["script"][1]))
    monkeypatch.setitem(PROBLEMS, "calls", ({}, PROBLEMS["calls"][1]))
    monkeypatch.setitem(PROBLEMS, "asserts", ({}, PROBLEMS["asserts"][1]))
    findings = {finding.name: finding.complaints for finding in run_battery(Sandbox(confined=False, workers=1))}
    assert findings["script: read a file"] == ["read a canary"]
    afterwards = findings["all of them, afterwards"]
    assert "another process was killed" in afterwards
    assert "somebody connected" in afterwards


# --- what is missing is named, and nothing runs


def without(number: int, error: int, code: str, *, argument: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python where the kernel refuses a system call (with a certain first argument), as other kernels do."""

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    load, equal, give = 0x20, 0x15, 0x06
    steps = [step(load, 0), step(equal, number, 0, 4 if argument is not None else 1)]
    if argument is not None:
        steps += [step(load, 16), step(equal, argument, 0, 1), step(give, 0x50000 | error), step(give, 0x7FFF0000)]
    else:
        steps += [step(give, 0x50000 | error)]
    steps += [step(give, 0x7FFF0000)]
    program = f"""
import ctypes, struct, sys
sys.path.insert(0, {PACKAGE!r})
libc = ctypes.CDLL(None, use_errno=True)
code = ctypes.create_string_buffer({b"".join(steps)!r})
program = struct.pack("@HP", {len(steps)}, ctypes.addressof(code))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
from lit_reason_code.sandbox.pool import Sandbox, SandboxError
{code}
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


REPORT = "try: print(Sandbox().report())\nexcept SandboxError as error: print(error)"
NUMBERS = {"x86_64": (272, 157), "aarch64": (97, 167)}.get(platform.machine(), (0, 0))  # unshare, prctl


@pytest.mark.usefixtures("needs_sandbox")
def test_without_landlock_no_program_runs() -> None:
    done = without(444, 38, REPORT)
    assert "no full sandbox: Landlock: not in this kernel, 5.13 or newer; no standard" in done.stdout, done.stderr


@pytest.mark.usefixtures("needs_sandbox")
def test_without_seccomp_no_program_runs() -> None:
    done = without(NUMBERS[1], 22, REPORT, argument=22)
    assert "no standard sandbox: seccomp: no filters in this kernel, or not allowed here" in done.stdout, done.stderr


@pytest.mark.usefixtures("needs_sandbox")
def test_without_namespaces_the_tier_is_standard_and_says_why() -> None:
    done = without(NUMBERS[0], 1, REPORT)
    assert "tier='standard'" in done.stdout, done.stderr
    assert "no full sandbox: namespaces: Operation not permitted" in done.stdout


@pytest.mark.usefixtures("needs_sandbox")
def test_a_leak_found_by_the_self_test_is_named() -> None:
    # a kernel that says yes to Landlock and does nothing
    done = without(446, 0, REPORT.replace("Sandbox()", "Sandbox(namespaces=False)"))
    assert "no standard sandbox: in the self-test read_file(" in done.stdout, done.stderr
    assert "was possible" in done.stdout


def test_no_system_call_numbers_no_filter() -> None:
    with pytest.raises(KeyError):
        seccomp_filter("riscv64", threads=True)


def test_a_python_that_does_not_start_is_named() -> None:
    from lit_reason_code.sandbox.pool import SandboxError

    with pytest.raises(SandboxError, match="'/bin/false' did not start"):
        Sandbox(interpreter="/bin/false").report()
