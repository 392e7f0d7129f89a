"""Inside a confined process: run the program.

From the first line of a program on, everything in its process is the program's: it can read and change whatever stands
here. So nothing that would tell it the right answers is ever in this process, and what it sends is taken for data.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import sys
import threading
import types
from typing import Any

from lit_reason_code.sandbox import wire

FINISHED, RAISED, SYNTAX, MEMORY, BROKEN = 0, 10, 11, 12, 13
"""Exit codes. They name a failure; that something was right they cannot say. BROKEN: could not be confined."""


def run_script(source: int) -> int:
    """Run a program that reads its standard input and writes its standard output.

    Args:
        source: descriptor of `{"setup": text, "program": text}`.

    Returns:
        The exit code.
    """
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), encoding="utf-8", errors="replace")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w"), 2**16), encoding="utf-8", errors="replace")
    code = _run(source, _module("__main__"))
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as the interpreter does: wait for threads
        atexit._run_exitfuncs()  # noqa: SLF001 - likewise
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - the program may have replaced any of these
        return code or RAISED
    return code


def run_calls(source: int, requests: int, answers: int) -> int:
    """Run a program, then answer calls to its functions until there are no more.

    Args:
        source: as for `run_script`.
        requests: descriptor with a frame `[function, arguments, named arguments]` for each call.
        answers: descriptor for a frame `[value]`, or `{"raised": name of the exception}`, for each.

    Returns:
        The exit code.
    """
    module = _module("solution")  # not __main__, whose guarded part wants a user
    if code := _run(source, module):
        return code
    while True:
        try:
            name, arguments, named = wire.read_frame(requests)
        except EOFError:
            return FINISHED
        answer: Any
        try:
            function = _function(module, name)
            value = function(*map(wire.decode, arguments), **{key: wire.decode(item) for key, item in named.items()})
            answer = wire.frame([wire.encode(value)])
        except BaseException as error:  # noqa: BLE001 - whatever the program raises is its answer
            answer = wire.frame({"raised": type(error).__name__})
        wire.write(answers, answer)


def _module(name: str) -> types.ModuleType:
    """An empty module where dataclasses and the like will look for it."""
    sys.modules[name] = module = types.ModuleType(name)
    return module


def _run(source: int, module: types.ModuleType) -> int:
    text = json.loads(wire.read_all(source))
    try:
        codes = [compile(text[part], f"<{part}>", "exec", dont_inherit=True) for part in ("setup", "program")]
    except (SyntaxError, ValueError, RecursionError, OverflowError):  # ValueError: NUL characters, lone surrogates
        return SYNTAX
    except MemoryError:
        return MEMORY
    del text
    try:
        for code in codes:
            exec(code, module.__dict__)  # noqa: S102 - what all of this is for
    except SystemExit:
        return FINISHED
    except MemoryError:
        return MEMORY
    except BaseException:  # noqa: BLE001 - whatever the program raises
        return RAISED
    return FINISHED


def _function(module: types.ModuleType, name: str) -> Any:  # noqa: ANN401 - whatever the program has under that name
    """A function of the program, or a method of its class `Solution`, as some collections of problems want it."""
    if not hasattr(module, name) and hasattr(module, "Solution"):
        return getattr(module.Solution(), name)
    return getattr(module, name)


def leave(code: int) -> None:
    """End this process, at once: no finalizers, no handlers, no buffers."""
    os._exit(code)
