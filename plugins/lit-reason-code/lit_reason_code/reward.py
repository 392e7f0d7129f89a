"""`code`: does the model's program pass the tests?"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Hashable
from typing import Literal

from lit_reason.reward import Judgement, Reward
from lit_reason.types import Problem, Rollout, UserError
from lit_reason_code.extract import extract_program, program_in
from lit_reason_code.judging import Limits, Outcome, Suite, UnsupportedTestError, is_name, judge
from lit_reason_code.sandbox.pool import Sandbox, SandboxError, shared

UNSAFE = "LIT_REASON_UNSAFE_CODE"
"""Environment variable that must be 1 before programs run without a sandbox; `lit-reason --unsafe-code` sets it."""

log = logging.getLogger(__name__)


class Code(Reward):
    """Runs the Python program of a completion against the problem's tests, in a sandbox of the Linux kernel.

    The program is the last ```python block of the answer, or else the answer. Tests come in the problem's metadata:
    `inputs` and `outputs` of a script; the same with an `entry_point` for calls of a function; or `tests` made of
    `assert` statements. What is expected never enters the program's process, whose exit code and verdicts count for
    nothing. Statuses: ok, wrong, error, timeout, memory, output_limit, syntax_error, missing (no program); left out
    are no_tests and unsupported_test. Sources: the tests of HumanEval (arXiv 2107.03374), MBPP (2108.07732) and APPS
    (2105.09938).

    Args:
        timeout: seconds of wall time for each start of the program: once for all calls or asserts, and once for each
            standard input.
        memory_mb: MiB of address space of a program, some 60 of which are the interpreter's.
        score: "all" gives 1.0 if every test passes, else 0.0; "fraction" the share of tests that pass.
        max_tests: use only so many tests of a problem, the first; None uses all.
        entry_point: function to call where the problem's metadata names none.
        sandbox: "auto" takes the best there is and refuses to run where there is none; "unsafe" has none, and also
            needs the flag --unsafe-code on the command line (in Python, the environment variable
            LIT_REASON_UNSAFE_CODE=1).

    Raises:
        UserError: an option is wrong; or there is no sandbox here, and what it lacks.
    """

    def __init__(
        self,
        *,
        timeout: float = 5.0,
        memory_mb: int = 512,
        score: Literal["all", "fraction"] = "all",
        max_tests: int | None = None,
        entry_point: str | None = None,
        sandbox: Literal["auto", "unsafe"] = "auto",
    ) -> None:
        if not 0 < timeout <= 3600:
            raise UserError(f"reward 'code': timeout must be above 0 and at most 3600 seconds, got {timeout}")
        if not 128 <= memory_mb <= 2**40:
            raise UserError(f"reward 'code': memory_mb must be 128 MiB or more, and at most 2**40, got {memory_mb}")
        if score not in ("all", "fraction"):
            raise UserError(f"reward 'code': score must be 'all' or 'fraction', got '{score}'")
        if max_tests is not None and max_tests < 1:
            raise UserError(f"reward 'code': max_tests must be 1 or more, got {max_tests}")
        if entry_point is not None and not is_name(entry_point):
            raise UserError(f"reward 'code': entry_point must be the name of a function, got '{entry_point}'")
        self.limits = Limits(seconds=timeout, memory_mb=memory_mb)
        self.graded = score == "fraction"
        self.max_tests = max_tests
        self.entry_point = entry_point
        self.confined = is_confined("reward 'code'", sandbox)
        ready_sandbox("reward 'code'", confined=self.confined)

    def quick(self, rollout: Rollout) -> Judgement | None:
        try:
            if self._tests(rollout.problem) is None:
                return Judgement(value=None, status="no_tests")
        except UnsupportedTestError:
            return Judgement(value=None, status="unsupported_test")
        return Judgement(value=0.0, status="missing") if extract_program(rollout.text) is None else None

    def cache_key(self, rollout: Rollout) -> Hashable | None:
        # ids may be missing, and the same in two problems: what a judgement depends on are the tests
        try:
            tests = repr(self._tests(rollout.problem))
        except UnsupportedTestError:
            return None
        return hashlib.sha256(tests.encode(errors="surrogatepass")).digest(), extract_program(rollout.text)

    async def score(self, rollout: Rollout) -> Judgement:
        if (judgement := self.quick(rollout)) is not None:
            return judgement
        program, tests = extract_program(rollout.text), self._tests(rollout.problem)
        assert program is not None
        assert tests is not None
        sandbox = ready_sandbox("reward 'code'", confined=self.confined)

        def work(program: str) -> Outcome:
            return judge(program, tests, sandbox, self.limits, thorough=self.graded)

        try:
            outcome = await asyncio.wrap_future(sandbox.submit(work, program))
        except SandboxError as error:
            raise UserError(f"reward 'code': {error}") from error
        if outcome.status == "unsupported_test":
            return Judgement(value=None, status=outcome.status)
        share = outcome.passed / outcome.total
        return Judgement(value=share if self.graded else float(share == 1.0), status=outcome.status)

    def _tests(self, problem: Problem) -> Suite | None:
        return Suite.of(problem.metadata, limit=self.max_tests, entry_point=self.entry_point)


def passes(problem: Problem, answer: str | None, *, confined: bool = True) -> float:
    """1.0 when the program in an answer passes all tests of the problem, else 0.0; how code tasks judge answers.

    Args:
        problem: with tests in its metadata.
        answer: of a completion, or None.
        confined: False runs the program without a sandbox.

    Raises:
        UserError: there is no sandbox here.
    """
    if answer is None:
        return 0.0
    who = f"task '{problem.task}'"
    try:
        tests = Suite.of(problem.metadata)
        sandbox = ready_sandbox(who, confined=confined)
        outcome = None if tests is None else judge(program_in(answer), tests, sandbox, Limits(), thorough=False)
    except UnsupportedTestError:
        return 0.0
    except SandboxError as error:
        raise UserError(f"{who}: {error}") from error
    return float(outcome is not None and outcome.status == "ok")


def is_confined(who: str, sandbox: str) -> bool:
    """What the option `sandbox` means, with a warning if it means no sandbox.

    Args:
        who: has the option, for messages.
        sandbox: "auto" or "unsafe".

    Raises:
        UserError: it is neither, or the operator has not agreed to "unsafe".
    """
    if sandbox not in ("auto", "unsafe"):
        raise UserError(f"{who}: sandbox must be 'auto' or 'unsafe', got '{sandbox}'")
    if sandbox == "auto":
        return True
    if os.environ.get(UNSAFE) != "1":
        raise UserError(
            f"{who}: sandbox: unsafe runs the model's programs as you, with your files and network; on a machine to "
            f"throw away, agree with the flag --unsafe-code, or in Python with the environment variable {UNSAFE}=1"
        )
    log.warning("%s: sandbox: unsafe: the model's programs run without a sandbox", who)
    return False


def ready_sandbox(who: str, *, confined: bool) -> Sandbox:
    """The process's sandbox, tried out.

    Raises:
        UserError: it cannot be had, or is not tight.
    """
    sandbox = shared(confined=confined)
    try:
        sandbox.report()
    except SandboxError as error:
        raise UserError(f"{who}: programs cannot be confined here: {error}") from error
    return sandbox
