"""Programs that mean well, and zygotes that come and go."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from lit_reason_code.battery import descendants
from lit_reason_code.sandbox import wire
from lit_reason_code.sandbox.pool import Sandbox
from lit_reason_code.sandbox.process import Ended
from lit_reason_code.sandbox.zygote import CALLS, SCRIPT

PACKAGE = str(Path(__file__).parent.parent)


def script(sandbox: Sandbox, program: str, given: str = "", *, seconds: float = 5.0, memory_mb: int = 256) -> Ended:
    source = json.dumps({"setup": "", "program": textwrap.dedent(program)}).encode()
    return sandbox.run(SCRIPT, source, given.encode(), seconds=seconds, memory=memory_mb * 2**20, limit=2**16)


def calls(sandbox: Sandbox, program: str, arguments: list[object]) -> list[object]:
    source = json.dumps({"setup": "", "program": program}).encode()
    asked = b"".join(wire.frame(["f", [wire.encode(argument)], {}]) for argument in arguments)
    return wire.frames(sandbox.run(CALLS, source, asked, seconds=5, memory=2**28, limit=2**20).output)


@pytest.mark.parametrize(
    ("program", "given", "output"),
    [
        ("print(int(input()) + 1)", "41\n", "42\n"),
        ("import sys\nfor line in sys.stdin: print(line.strip()[::-1])", "ab\ncd\n", "ba\ndc\n"),
        ("import sys\nsys.stdout.write(str(sum(map(int, open(0)))))", "1\n2\n", "3"),
        ("import os\nos.write(1, os.read(0, 100))", "abc", "abc"),
        ("print('é☃', input())", "ß", "é☃ ß\n"),
        ("print(1)\nexit()\nprint(2)", "", "1\n"),
        ("import atexit\natexit.register(print, 'last')\nprint('first')", "", "first\nlast\n"),
        ("if __name__ == '__main__': print('main')", "", "main\n"),
        (
            "def f(n): return n and 1 + f(n - 1)\nimport sys\nsys.setrecursionlimit(10**6)\nprint(f(50000))",
            "",
            "50000\n",
        ),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n x: int\nprint(A(1))", "", "A(x=1)\n"),
        (
            "import numbers, heapq, decimal, email, hashlib, random, statistics, zoneinfo, xml.dom\nprint('in')",
            "",
            "in\n",
        ),
        ("print({c for c in 'sandbox'} == set('sandbox'), hash('a') == hash('a'))", "", "True True\n"),
    ],
)
def test_scripts_run_as_they_would_outside(sandbox: Sandbox, program: str, given: str, output: str) -> None:
    ended = script(sandbox, program, given)
    assert (ended.output.decode(), ended.codes) == (output, [0])


def test_a_script_waits_for_its_threads_where_there_are_any(sandbox: Sandbox) -> None:
    ended = script(
        sandbox,
        """
        import threading, time
        threading.stack_size(2**26)
        threading.Thread(target=lambda: (time.sleep(0.05), print('done'))).start()
        """,
    )
    assert (ended.output == b"done\n") == sandbox.report().threads


def test_sets_of_text_print_in_the_same_order_every_time(sandbox: Sandbox) -> None:
    program = "print({str(n) for n in range(50)})"
    first = script(sandbox, program).output
    sandbox.close()
    assert script(sandbox, program).output == first


def test_values_arrive_as_what_they_are(sandbox: Sandbox) -> None:
    values = [
        None,
        True,
        0,
        -(10**30),
        10**5000,
        1.5,
        "é\ud800",
        b"\0\xff",
        2j,
        [1, [2]],
        (1,),
        {1, 2},
        {(1, 2): {"a": 1}},
    ]
    answers = calls(sandbox, "def f(x): return x", values)
    assert [wire.decode(answer[0]) for answer in answers] == values
    assert [type(wire.decode(answer[0])) for answer in answers] == list(map(type, values))


def test_subclasses_arrive_as_plain_values_and_the_rest_as_names(sandbox: Sandbox) -> None:
    program = """
import collections, enum
class Kind(enum.IntEnum): A = 3
Point = collections.namedtuple('Point', 'x y')
def f(n): return [collections.Counter('aab'), Kind.A, Point(1, 2), range(3), len][n]
"""
    answers = [answer[0] for answer in calls(sandbox, program, [0, 1, 2, 3, 4])]
    other = [{"other": "range"}, {"other": "builtin_function_or_method"}]
    assert answers == [{"dict": [["a", 2], ["b", 1]]}, 3, {"tuple": [1, 2]}, *other]


def test_limits_end_a_program_and_say_which(sandbox: Sandbox) -> None:
    assert script(sandbox, "while True: pass", seconds=0.2).late
    assert script(sandbox, "import time\ntime.sleep(60)", seconds=0.2).late
    assert script(sandbox, "print('x' * 2**17)").flooded
    assert script(sandbox, "x = bytearray(2**29)").codes == [12]
    assert script(sandbox, "x =").codes == [11]
    assert script(sandbox, "x = 1 / 0").codes == [10]
    assert script(sandbox, "print('still here')").output == b"still here\n"


def test_nothing_is_left_after_many_runs_of_all_sorts(sandbox: Sandbox) -> None:
    programs = [
        "print(1)",
        "1 / 0",
        "import os; os._exit(3)",
        "x =",
        "import ctypes; ctypes.string_at(0)",
        "print('x' * 2**18)",
    ]
    others = descendants()
    sandbox.map(lambda program: script(sandbox, program), programs)
    descriptors, processes = len(list(Path("/proc/self/fd").iterdir())), descendants()
    sandbox.map(lambda program: script(sandbox, program), programs * 30)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert descendants() == processes
    sandbox.close()
    assert descendants() <= others


def test_what_is_installed_beside_the_library_cannot_be_read(sandbox: Sandbox) -> None:
    ended = script(
        sandbox,
        """
        import os, sys
        read = []
        for place in [f"{path}/{name}" for path in sys.path for name in ("site-packages", "dist-packages")]:
            for folder, _, names in os.walk(place):
                for name in names:
                    try:
                        read.append(open(f"{folder}/{name}", "rb").read(1))
                    except OSError:
                        pass
        print(len(read), len(open(os.__file__).read()) > 1000)
        """,
    )
    assert ended.output == b"0 True\n"


def test_any_thread_may_ask(sandbox: Sandbox) -> None:
    outputs: dict[int, bytes] = {}

    def ask(number: int) -> None:
        outputs[number] = script(sandbox, f"print({number})").output

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {number: b"%d\n" % number for number in range(20)}
    assert len(sandbox.idle) <= 2


def test_a_zygote_that_ended_is_replaced(sandbox: Sandbox) -> None:
    script(sandbox, "print(1)")
    (process,) = sandbox.idle
    os.kill(process.process.pid, signal.SIGKILL)
    process.process.wait()
    assert script(sandbox, "print(2)").output == b"2\n"


def test_a_forked_process_has_zygotes_of_its_own(sandbox: Sandbox) -> None:
    assert script(sandbox, "print(1)").output == b"1\n"
    child = os.fork()
    if child == 0:
        right = script(sandbox, "print(2)").output == b"2\n"
        sandbox.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert script(sandbox, "print(3)").output == b"3\n"


def work(namespaces: bool | None) -> bytes:
    return script(Sandbox(namespaces=namespaces, workers=1), "print('from a worker')").output


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_worker_processes_may_ask(sandbox: Sandbox, method: str) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(work, sandbox.namespaces).result(60) == b"from a worker\n"


def test_zygotes_and_programs_do_not_outlive_a_killed_trainer(sandbox: Sandbox) -> None:
    program = f"""
import json, sys, threading, time
sys.path.insert(0, {PACKAGE!r})
from lit_reason_code.sandbox.pool import Sandbox
sandbox = Sandbox(namespaces={sandbox.namespaces}, workers=1)
sandbox.report()
source = json.dumps({{"setup": "", "program": "while True: pass"}}).encode()
run = lambda: sandbox.run(0, source, b"", seconds=60, memory=2**28, limit=100)
threading.Thread(target=run).start()
time.sleep(0.3)
print("running", flush=True)
"""
    others = descendants()
    trainer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == b"running\n"
    started = descendants() - others
    assert len(started) == 4  # trainer, guard, zygote and program
    trainer.kill()
    trainer.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process}/exe").exists() for process in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{process}/exe").exists() for process in started)
