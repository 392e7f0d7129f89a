"""Which answers a reasoning_gym scorer may see.

Some of the library's scorers hand the answer to `eval` or to sympy's parser, which evaluates it too: an answer such as
`__import__('os').system(...)` would run, and `9**9**9` would never return. What a model wrote is therefore held against
what the scorer can make sense of, before the scorer sees it; and scorers that hand formulas to sympy, whose time
nothing bounds, work in a child process with a deadline.
"""

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import re
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import IO, Any

from lit_reason.types import UserError

LONGEST_ANSWER = 20_000
"""Characters; no gold answer comes near, and some scorers take quadratic time."""

_LONGEST_FORMULA = 500  # characters; sympy is slow, and answers are a line
_FUNCTION = re.compile(r"Abs|a?(?:sin|cos|tan)h?|cot|csc|exp|ln|log|pi|sec|sqrt")
_TOKENS = re.compile(r"\d+\.?\d*|[A-Za-z]+|[-+*/() ]")
_DIGITS = re.compile(r"\d+")


def admissible(generator: str, answer: str) -> bool:
    """Whether a generator's scorer may be shown an answer; if not, the answer is wrong unless it is the gold text.

    Args:
        generator: as reasoning_gym registers it.
        answer: as extracted from a completion.
    """
    check = _CHECKS.get(generator)
    return len(answer) <= LONGEST_ANSWER and (check is None or check(answer))


def _is_literal(answer: str) -> bool:
    """A Python literal, such as a list of numbers: all that the evaluating scorers hope to find."""
    try:
        ast.literal_eval(answer)
    except Exception:  # noqa: BLE001 - the parser also raises RecursionError and MemoryError on deep nesting
        return False
    return True


def _is_arithmetic(answer: str) -> bool:
    """Numbers, the four operations and brackets; no powers, whose size nothing bounds."""
    return (
        len(answer) <= _LONGEST_FORMULA and "**" not in answer and re.fullmatch(r"[\d+\-*/(). ]+", answer) is not None
    )


def _is_formula(answer: str) -> bool:
    """Arithmetic with powers, one-letter variables and common functions, and so nothing that can reach an attribute."""
    tokens = _TOKENS.findall(answer)
    return (
        len(answer) <= _LONGEST_FORMULA
        and "".join(tokens) == answer
        and all(len(token) == 1 or _FUNCTION.fullmatch(token) for token in tokens if token[0].isalpha())
    )


def _has_small_numbers(answer: str) -> bool:
    """No run of digits long enough to stand for a repetition or an exponent that fills the memory."""
    return all(len(digits) <= 3 for digits in _DIGITS.findall(answer))


def _is_fraction(answer: str) -> bool:
    return len(answer) <= _LONGEST_FORMULA and re.fullmatch(r"[\d\s./+-]+(?:[eE][+-]?\d{1,3})?", answer) is not None


def _has_no_nan(answer: str) -> bool:
    """Nothing that a comparison of distances could take for near."""
    return "nan" not in answer.casefold()


def _is_nothing(answer: str) -> bool:  # noqa: ARG001 - every check takes the answer
    """For a scorer that takes any text for right: only the gold text is."""
    return False


_CHECKS: dict[str, Callable[[str], bool]] = {
    "binary_matrix": _is_literal,
    "n_queens": _is_literal,
    "spiral_matrix": _is_literal,
    "string_insertion": _is_literal,
    "countdown": _is_arithmetic,
    "puzzle24": _is_arithmetic,
    "intermediate_integration": _is_formula,
    "polynomial_multiplication": _is_formula,
    "simple_integration": _is_formula,
    "coin_flip": _is_fraction,
    "rubiks_cube": _has_small_numbers,
    "complex_arithmetic": _has_no_nan,
    "number_sorting": _has_no_nan,
    "game_of_life_halting": _is_nothing,
}


def gold_texts(entry: dict[str, Any]) -> list[str]:
    """Answers of an entry that are right as they stand, without a scorer."""
    return [text for text in (entry["answer"], *entry["metadata"].get("valid_answers", ())) if isinstance(text, str)]


TIMED = frozenset({"intermediate_integration", "polynomial_multiplication", "simple_integration"})
"""Generators whose scorers let sympy simplify a formula."""


class Referee:
    """A child process that scores answers, one at a time; it is started when first needed, and again after a timeout.

    Any thread may ask. The child lives no longer than its parent, however that ends and whatever the child is at.

    Args:
        deadline: seconds an answer may take; then it is wrong.
        module: what the child runs; it calls `serve`.
    """

    def __init__(self, deadline: float = 5.0, module: str = __name__) -> None:
        self.deadline, self.module = deadline, module
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._turn = threading.Lock()

    def score(self, *question: Any) -> float:  # noqa: ANN401 - anything that can be pickled
        """What the child's function returns for these arguments; 0.0 when the deadline passes or the child dies."""
        self._follow_fork()
        with self._turn:
            child = self._running()
            assert child.stdin is not None and child.stdout is not None  # noqa: PT018 - both are pipes
            try:
                child.stdin.write(pickle.dumps(question))
                child.stdin.flush()
                return float(_line(child.stdout, self.deadline))
            except (OSError, ValueError, TimeoutError):
                self.close()
                return 0.0

    def start(self) -> None:
        """Have the child ready before the first answer, which otherwise waits for it."""
        self._follow_fork()
        with self._turn:
            self._running()

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            _end(self._child, self._owner)
            self._child = None

    def __reduce__(self) -> tuple[type[Referee], tuple[float, str]]:
        """A copy has a child of its own."""
        return type(self), (self.deadline, self.module)

    def _follow_fork(self) -> None:
        """A forked worker must not read another one's scores, nor wait for its turn."""
        if self._owner != os.getpid():
            self._child, self._owner, self._turn = None, os.getpid(), threading.Lock()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(  # noqa: S603 - the module is named by a task, not by a person
                [sys.executable, "-m", self.module, str(self.deadline)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the run to handle, not for its children
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # it imports what we can
            )
            weakref.finalize(self, _end, self._child, self._owner)
            assert self._child.stdout is not None
            if _line(self._child.stdout, 120) != b"ready\n":  # imports are no part of an answer's time
                raise UserError(f"the process that judges formulas, {sys.executable} -m {self.module}, cannot start")
        return self._child


def _line(stream: IO[bytes], deadline: float) -> bytes:
    """The next line, which the child writes in one go; TimeoutError after `deadline` seconds."""
    if not select.select([stream], [], [], deadline)[0]:
        raise TimeoutError
    return stream.readline()


def _end(child: subprocess.Popen[bytes], owner: int) -> None:
    if owner == os.getpid():
        child.kill()
        with contextlib.suppress(OSError):  # what could not be written any more
            child.communicate()


def serve(judge: Callable[..., float]) -> None:
    """The child of a `Referee`: answers each question on standard input with its score on a line."""
    import resource
    import signal

    memory = 4 * 2**30  # bytes; a tower of powers stops here instead of taking the machine down
    with contextlib.suppress(OSError, ValueError):  # not every system limits memory; the deadline holds on all
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    deadline = float(sys.argv[1])
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever a scorer prints is no score
    print("ready", file=out, flush=True)
    while True:
        try:
            question = pickle.load(sys.stdin.buffer)  # noqa: S301 - the parent wrote it
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, deadline + 5)  # ends this process, should the parent have gone
        try:
            score = float(judge(*question))
        except Exception:  # noqa: BLE001 - whatever an answer does to a scorer, it is wrong
            score = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(score, file=out, flush=True)


def _by_generator(generator: str, answer: str, entry: dict[str, Any]) -> float:
    from reasoning_gym.factory import DATASETS

    dataset_class, config_class = DATASETS[generator]
    return float(dataset_class(config=config_class()).score_answer(answer, entry))


if __name__ == "__main__":
    import reasoning_gym.factory  # noqa: F401 - before the first answer's time begins

    serve(_by_generator)
