"""Tries the sandbox of plugins/lit-reason-code at length: hostile programs, thousands of runs, what is left, how fast.

    python tools/check_sandbox.py [--runs 10000]

The hostile programs run in both tiers, as this user and, started by root, as one without rights, too.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PLUGIN = Path(__file__).parents[1] / "plugins" / "lit-reason-code"
sys.path[:0] = [str(PLUGIN), str(PLUGIN / "tests")]

from lit_reason_code.battery import descendants  # noqa: E402 - it may not be installed
from lit_reason_code.generated import GeneratedCode  # noqa: E402
from lit_reason_code.judging import Limits, Suite, judge  # noqa: E402
from lit_reason_code.sandbox.pool import Sandbox, shared  # noqa: E402
from test_code_hostile import run_as_nobody  # noqa: E402

CALL = Suite(entry_point="f", inputs=[[n] for n in range(5)], outputs=[n * n for n in range(5)])
ASSERTS = Suite(tests="assert f(2) == 4\nassert f(3) == 9")
ECHO = Suite(inputs=["7\n"], outputs=["7\n"])
MIXED = [
    (ECHO, "print(input())", "ok"),
    (ECHO, "print(8)", "wrong"),
    (ECHO, "raise ValueError", "error"),
    (ECHO, "import os\nos._exit(0)", "wrong"),
    (ECHO, "import ctypes\nctypes.string_at(0)", "error"),
    (ECHO, "print('x' * 2**21)", "output_limit"),
    (ECHO, "x = bytearray(2**34)", "memory"),
    (ECHO, "while True: pass", "timeout"),
    (ECHO, "def f(:", "syntax_error"),
    (ECHO, "import os\nos.fork()", "error"),
    (CALL, "def f(x): return x * x", "ok"),
    (CALL, "def f(x): return x + x", "wrong"),
    (ASSERTS, "def f(x): return x * x", "ok"),
    (ASSERTS, "def f(x): return None", "wrong"),
]
RARE = {"timeout": 0.05}  # its share of what the others have; each costs all of its time


DOCTOR = f"""
import sys
sys.path.insert(0, {str(PLUGIN)!r})
from lit_reason_code.doctor import main
sys.exit(main(["doctor", *sys.argv[1:]]))
"""


def hostile_programs() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for tier in ([], ["--standard"]):
            subprocess.run([sys.executable, "-c", DOCTOR, *tier], check=True)
            if os.geteuid() == 0:
                print(run_as_nobody(Path(folder), DOCTOR, *tier).stdout, flush=True)


def mixed_runs(count: int) -> None:
    sandbox = Sandbox()
    draw = random.Random(0)
    weights = [RARE.get(expected, 1.0) for _, _, expected in MIXED]
    chosen = draw.choices(MIXED, weights, k=count)
    limits = Limits(seconds=2.0, memory_mb=256)
    sandbox.map(lambda item: judge(item[1], item[0], sandbox, limits), MIXED)
    before = len(list(Path("/proc/self/fd").iterdir())), len(descendants())
    start = time.perf_counter()
    outcomes = sandbox.map(lambda item: judge(item[1], item[0], sandbox, limits).status == item[2], chosen)
    seconds = time.perf_counter() - start
    after = len(list(Path("/proc/self/fd").iterdir())), len(descendants())
    told = Counter(expected for _, _, expected in chosen)
    print(f"{count} mixed runs in {seconds:.0f} s, {outcomes.count(True)} with the expected status: {dict(told)}")
    print(f"descriptors and processes before {before}, after {after}")
    sandbox.close()
    shared().close()
    print(f"processes after closing {len(descendants())}")


def speed(count: int = 1000) -> None:
    for namespaces in (None, False):
        for kind, (tests, program, _) in (("script", MIXED[0]), ("calls", MIXED[10]), ("asserts", MIXED[12])):
            sandbox = Sandbox(workers=1, namespaces=namespaces)
            tier = sandbox.report().tier
            begun, start = _cpu(), time.perf_counter()
            for _ in range(count):
                judge(program, tests, sandbox, Limits())
            seconds = time.perf_counter() - start
            sandbox.close()
            cpu = _cpu() - begun
            print(
                f"{tier}: {kind}: {count / seconds:.0f} a second one at a time, {count / cpu:.0f} a second of CPU",
                flush=True,
            )


def _cpu() -> float:
    """Seconds of CPU of this process and all that it has seen the end of."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def right_programs() -> None:
    problems = GeneratedCode(validation=200).problems("validation")
    print(
        f"{sum(problem.score(problem.answer) == 1.0 for problem in problems)} of {len(problems)} right programs score 1"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    options = parser.parse_args()
    hostile_programs()
    right_programs()
    speed()
    mixed_runs(options.runs)


if __name__ == "__main__":
    main()
