"""`lit-reason-code doctor`: what confines programs on this machine, and whether it holds."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections import Counter

from lit_reason_code.sandbox.pool import Sandbox, SandboxError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: in place of those of the process.

    Returns:
        The exit code: 0 when programs can be confined here, 1 when not.
    """
    parser = argparse.ArgumentParser(prog="lit-reason-code", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="try the sandbox out")
    doctor.add_argument("--standard", action="store_true", help="do without namespaces, as where they are not allowed")
    doctor.add_argument("--quick", action="store_true", help="the self-test alone, without the hostile programs")
    doctor.add_argument(
        "--grace", type=float, default=1.0, help="seconds that a hostile program may take to end at its limit of 1 s"
    )
    options = parser.parse_args(arguments)
    return _doctor(namespaces=False if options.standard else None, quick=options.quick, grace=options.grace)


def _doctor(*, namespaces: bool | None, quick: bool, grace: float) -> int:
    user = f"user {os.geteuid()}" if hasattr(os, "geteuid") else "some user"
    print(f"machine    {platform.system()} {platform.release()}, {platform.machine()}, as {user}")
    print(f"python     {platform.python_version()}, {sys.executable}")
    sandbox = Sandbox(namespaces=namespaces)
    try:
        report = sandbox.report()
    except SandboxError as error:
        print(f"sandbox    none: {error}")
        print("Programs will not be run here. Use another kernel, or a container or virtual machine that has one.")
        return 1
    for note in report.notes:
        print(f"           {note}")
    spaces = "pid, network, mount, ipc, uts and cgroup namespaces, " if report.tier == "full" else ""
    print(f"sandbox    {report.tier}: {spaces}Landlock (version {report.landlock}), seccomp, resource limits")
    threads = "with" if report.threads else "without"
    print(f"programs   run as user {report.user}, {threads} threads, {sandbox.workers} at once")
    print("self-test  passed")
    if quick:
        sandbox.close()
        return 0
    return _battery(sandbox, grace)


def _battery(sandbox: Sandbox, grace: float) -> int:
    from lit_reason_code.battery import run_battery

    findings = run_battery(sandbox, grace=grace)
    statuses = Counter(finding.status for finding in findings if finding.status)
    told = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    slowest = max(finding.seconds for finding in findings)
    print(f"hostile    {statuses.total()} programs: {told}; the longest took {slowest:.2f} s of 1 s")
    bad = [finding for finding in findings if finding.complaints]
    for finding in bad:
        print(f"           {finding.name}: {'; '.join(finding.complaints)}")
    print("           none achieved anything, and nothing of them is left" if not bad else "the sandbox is not tight")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
