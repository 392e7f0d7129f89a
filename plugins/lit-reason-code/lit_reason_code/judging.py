"""A program and its tests: what tests there are, how they are run, and what came of them."""

from __future__ import annotations

import json
import keyword
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_reason_code.compare import same_output, same_result
from lit_reason_code.sandbox import wire
from lit_reason_code.sandbox.pool import Sandbox
from lit_reason_code.sandbox.process import Ended
from lit_reason_code.sandbox.program import FINISHED, MEMORY, SYNTAX
from lit_reason_code.sandbox.zygote import ASSERTS, CALLS, SCRIPT

_OUTPUT = 2**20
"""Bytes a program may put out beyond what is expected of it."""


class UnsupportedTestError(ValueError):
    """The tests of a problem are not of a kind that can be run."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        seconds: of wall time, for each start of the program.
        memory_mb: MiB of address space, some 60 of which are the interpreter's.
    """

    seconds: float = 5.0
    memory_mb: int = 512


@dataclass(kw_only=True, slots=True, frozen=True)
class Outcome:
    """What came of a program.

    Attributes:
        passed: how many tests it passed.
        total: of how many.
        status: "ok" when it passed all; else the first reason why not: "wrong", "error", "timeout", "memory",
            "output_limit", "syntax_error"; or "unsupported_test", which is not the program's fault.
    """

    passed: int
    total: int
    status: str


@dataclass(kw_only=True, slots=True, frozen=True)
class Suite:
    """The tests of a problem; what a task puts into a problem's metadata, under the same names.

    Attributes:
        inputs: standard inputs; or lists of arguments where there is an entry point and there are no `tests`.
        outputs: what is expected for each: standard output, or the function's result as JSON data.
        tests: Python with `assert` statements that call the program's functions; or a list of such statements. A
            function `check(candidate)` among them is called with the entry point, as in HumanEval.
        entry_point: name of the function to test.
        setup: Python that comes before the program, and before `tests`: imports, given functions.
    """

    inputs: Sequence[Any] = ()
    outputs: Sequence[Any] = ()
    tests: str = ""
    entry_point: str | None = None
    setup: str = ""

    @classmethod
    def of(
        cls, metadata: Mapping[str, Any], *, limit: int | None = None, entry_point: str | None = None
    ) -> Suite | None:
        """The tests in a problem's metadata; None when it has none.

        Args:
            metadata: of the problem.
            limit: how many of `inputs`, or of a list of `tests`, to use: the first; None uses all.
            entry_point: where the metadata names none.

        Raises:
            UnsupportedTestError: something is not what it should be.
        """
        inputs, outputs = metadata.get("inputs") or (), metadata.get("outputs") or ()
        tests = metadata.get("tests") or ""
        if not inputs and not tests:
            return None
        if not (_is_list(inputs) and _is_list(outputs) and len(inputs) == len(outputs)):
            raise UnsupportedTestError("inputs and outputs must be lists of the same length")
        name = metadata.get("entry_point") or entry_point
        setup = metadata.get("setup") or ""
        lines = list(tests) if _is_list(tests) else [tests]
        if not all(isinstance(text, str) for text in (*lines, setup, name or "")):
            raise UnsupportedTestError("tests, setup and entry_point must be text")
        if name and not is_name(name):
            raise UnsupportedTestError("entry_point must be the name of a function")
        if not tests and name and not all(map(_is_list, inputs)):
            raise UnsupportedTestError("with an entry_point, each of inputs must be a list of arguments")
        return cls(
            inputs=inputs[:limit],
            outputs=outputs[:limit],
            tests="\n".join(lines[:limit]),
            entry_point=name,
            setup=setup,
        )


def is_name(value: object) -> bool:
    """Whether a function can have this name."""
    return isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def judge(program: str, tests: Suite, sandbox: Sandbox, limits: Limits, *, thorough: bool = True) -> Outcome:
    """Run a program against tests.

    Nothing that the program is not meant to know goes into its process: neither expected outputs nor `tests`. After a
    run that did not end in time, or took too much of something, no more are started, so that a completion takes about
    one time limit at most beyond what good ones take; tests that did not run have not passed.

    Args:
        program: Python source.
        tests: of the problem.
        sandbox: where to run it.
        limits: of each run.
        thorough: False stops at the first test that fails.

    Raises:
        SandboxError: there is no sandbox here.
    """
    setup = tests.setup
    first = next((line for line in program.split("\n") if line.strip()), "")
    if setup and first[:1] in (" ", "\t"):  # the body that continues a given head
        setup, program = "", f"{setup}\n{program}"
    source = json.dumps({"setup": setup, "program": program}).encode()
    run = _Run(sandbox, source, limits)
    if tests.tests:
        return _run_asserts(run, tests)
    if tests.entry_point:
        return _run_calls(run, tests)
    return _run_scripts(run, tests, thorough=thorough)


class _Run:
    def __init__(self, sandbox: Sandbox, source: bytes, limits: Limits) -> None:
        self.sandbox, self.source, self.limits = sandbox, source, limits

    def __call__(self, what: int, second: bytes, expected: int = 0) -> Ended:
        memory = self.limits.memory_mb * 2**20
        limit = _OUTPUT + 2 * expected
        return self.sandbox.run(what, self.source, second, seconds=self.limits.seconds, memory=memory, limit=limit)

    def failure(self, ended: Ended) -> str | None:
        """The status of a run that did not end well; None if it did, which says nothing about what it put out."""
        code = ended.codes[0]
        if ended.flooded:
            return "output_limit"
        if ended.late or code == -signal.SIGXCPU or ended.seconds > self.limits.seconds + 1:
            return "timeout"
        if code == FINISHED:
            return None
        if code == SYNTAX:
            return "syntax_error"
        return "memory" if code in (MEMORY, -signal.SIGKILL) else "error"


def _run_scripts(run: _Run, tests: Suite, *, thorough: bool) -> Outcome:
    passed, status = 0, "ok"
    for given, expected in zip(tests.inputs, tests.outputs, strict=True):
        right = _text(expected)
        ended = run(SCRIPT, _text(given).encode(errors="replace"), len(right))
        failure = run.failure(ended)
        if failure is None and same_output(right, ended.output.decode(errors="replace")):
            passed += 1
            continue
        status = (failure or "wrong") if status == "ok" else status
        if not thorough or failure not in (None, "error"):
            break
    return Outcome(passed=passed, total=len(tests.inputs), status=status)


def _text(lines: object) -> str:
    """Standard input or output, which some collections hold as a list of lines."""
    return "\n".join(map(str, lines)) if isinstance(lines, list | tuple) else str(lines)


def _run_calls(run: _Run, tests: Suite) -> Outcome:
    calls: list[list[Any]] = [
        [tests.entry_point, [wire.encode(value) for value in arguments], {}] for arguments in tests.inputs
    ]
    right = len(json.dumps(tests.outputs, default=str))
    ended = run(CALLS, b"".join(map(wire.frame, calls)), right)
    answers = wire.frames(ended.output)
    passed, status = 0, "ok"
    for index, expected in enumerate(tests.outputs):
        answer = answers[index] if index < len(answers) else None
        if isinstance(answer, list) and len(answer) == 1 and same_result(expected, answer[0]):
            passed += 1
        elif status != "ok":
            continue
        elif isinstance(answer, dict):
            status = "memory" if answer.get("raised") == "MemoryError" else "error"
        else:
            status = "wrong" if answer is not None else run.failure(ended) or "error"
    return Outcome(passed=passed, total=len(tests.outputs), status=status)


def _run_asserts(run: _Run, tests: Suite) -> Outcome:
    second = json.dumps({"setup": tests.setup, "tests": tests.tests, "entry_point": tests.entry_point})
    ended = run(ASSERTS, second.encode())
    # the judge wrote this, in a process that the program has no part in
    said = [line.partition(" ") for line in ended.output.decode(errors="replace").split("\n")]
    total = max((int(rest) for word, _, rest in said if word == "total"), default=0)
    held, failed = ({rest for word, _, rest in said if word == kind} for kind in ("pass", "fail"))
    passed, done = len(held - failed), any(word == "done" for word, _, _ in said)
    if done and passed == total > 0:
        return Outcome(passed=passed, total=total, status="ok")
    if any(word == "unsupported" for word, _, _ in said) or (done and total == 0):
        return Outcome(passed=0, total=0, status="unsupported_test")
    # tests that were broken off have not all passed, whatever they would have said
    status = run.failure(ended) or ("wrong" if done or failed else "error")
    if status == "memory" and ended.codes[0] == -signal.SIGKILL:
        status = "wrong" if failed else "error"  # it waited for calls when the judge was done
    return Outcome(passed=min(passed, max(total - 1, 0)), total=max(total, 1), status=status)
