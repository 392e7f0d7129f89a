"""Inside a confined process of its own: run tests made of `assert` statements against a program in another process.

Tests hold the right answers, so they never share a process with the program. Here its functions are stand-ins: a call
sends the arguments to the program's process, and the result comes back as data, with no `__eq__` of its own. The tests
are confined, too, since data sets are strangers' code.
"""

from __future__ import annotations

import ast
import builtins
import json
import sys
from collections.abc import Callable
from typing import Any

from lit_reason_code.sandbox import asserts, wire
from lit_reason_code.sandbox.program import FINISHED, RAISED

_MARK = "__mark__"
_CODE_COMES = frozenset(
    {"compile", "exec", "code.__new__", "function.__new__", "marshal.loads", "pickle.find_class"}
)  # audit events
_OF_THE_LIBRARY = frozenset(
    {"importlib._bootstrap", "importlib._bootstrap_external", "ast", "collections", "dataclasses", __name__}
)
"""Modules that compile or run code for ends of their own: `ast` to read data, others because of what they define."""


class ProgramEnded(BaseException):
    """The other process is gone, or does not answer in frames; a BaseException, so that no test swallows it."""


class Unsupported(BaseException):
    """The tests need something that cannot be had here; likewise."""


class Forbidden(BaseException):
    """The tests were about to run what a program may have written; likewise."""


class Judge:
    """Runs the tests and says of each `assert` whether it ever ran and ever failed.

    Args:
        requests: descriptor that takes calls to the program.
        answers: descriptor that gives their results.
        verdicts: descriptor for lines: `total N`, `pass I` and `fail I` when statement I first does so, `done` when
            the tests have run to their end, `unsupported` and why.
    """

    def __init__(self, requests: int, answers: int, verdicts: int) -> None:
        self.requests, self.answers, self.verdicts = requests, answers, verdicts
        self.said: set[str] = set()
        self.raised_there: set[type[BaseException]] = set()  # kinds of exceptions that came from the program
        self.forbidden = False

    def run(self, source: int) -> int:
        """Run tests.

        Args:
            source: descriptor of `{"setup": text, "tests": text, "entry_point": name or null}`.

        Returns:
            The exit code.
        """
        try:
            self._run(json.loads(wire.read_all(source)))
        except (ProgramEnded, Forbidden):
            return RAISED
        except (Unsupported, SyntaxError, ImportError, NameError) as error:
            if type(error) not in self.raised_there:  # a program could spare itself a bad mark by raising one of these
                self._say(f"unsupported {error}")
            return RAISED
        except Exception:  # noqa: BLE001 - tests may stop anywhere; what has not run has not passed
            return RAISED
        if self.forbidden:  # whatever has become of the exception
            return RAISED
        self._say("done")
        return FINISHED

    def _run(self, text: dict[str, str | None]) -> None:
        tree = ast.parse(text["tests"] or "")
        if fault := asserts.fault(tree, ast.parse(text["setup"] or "")):
            raise Unsupported(fault)
        marked = _Marked()
        tests = compile(ast.fix_missing_locations(marked.visit(tree)), "<tests>", "exec", dont_inherit=True)
        self._say(f"total {marked.count}")
        sys.addaudithook(self._watch)
        space: dict[str, Any] = {"__name__": "tests", _MARK: self._mark}
        exec(text["setup"] or "", space)  # noqa: S102 - confined
        names = _names(tree, ast.Load) - _bound(tree) - set(space) - set(vars(builtins))
        for name in names | {text["entry_point"] or ""}:
            space[name] = self._stand_in(name)
        exec(tests, space)  # noqa: S102 - confined
        if asserts.calls_check(tree):
            space["check"](space[text["entry_point"] or ""])

    def _stand_in(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the tests say
            trees = [wire.encode(value) for value in arguments], {k: wire.encode(v) for k, v in named.items()}
            body = json.dumps(trees, separators=(",", ":"))
            if '{"other":"Opaque"}' in body:  # a result of the program, not the tests' fault
                raise TypeError("no plain data")
            if '{"other":' in body:
                raise Unsupported(f"an argument of {name} is no plain data: {body[:100]}")
            try:
                wire.write(self.requests, wire.frame([name, *trees]))
                answer = wire.read_frame(self.answers)
                if isinstance(answer, list):
                    return wire.decode(answer[0])
                error = _exception(answer["raised"])
            except (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
                raise ProgramEnded from None
            self.raised_there.add(type(error))
            raise error

        return call

    def _watch(self, event: str, _: tuple[object, ...]) -> None:
        """Nothing that is not in the tests runs here: it would stand where verdicts are written."""
        if event in _CODE_COMES and sys._getframe(1).f_globals.get("__name__") not in _OF_THE_LIBRARY:  # noqa: SLF001 - who asks
            self.forbidden = True
            raise Forbidden

    def _mark(self, number: int, passed: object) -> None:
        self._say(f"{'pass' if passed else 'fail'} {number}")

    def _say(self, line: str) -> None:
        if line not in self.said:
            self.said.add(line)
            wire.write(self.verdicts, f"{' '.join(line.split())}\n".encode(errors="replace"))


class _Marked(ast.NodeTransformer):
    """Each `assert` becomes a note of whether it held, and the tests go on; constant ones are no tests."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        if isinstance(node.test, ast.Constant):
            return node
        (noted,) = ast.parse(
            f"try:\n {_MARK}({self.count}, None)\nexcept Exception:\n {_MARK}({self.count}, False)"
        ).body
        self.count += 1
        assert isinstance(noted, ast.Try)
        assert isinstance(noted.body[0], ast.Expr)
        assert isinstance(noted.body[0].value, ast.Call)
        noted.body[0].value.args[1] = node.test
        return ast.copy_location(noted, node)


def _names(tree: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


def _bound(tree: ast.AST) -> set[str]:
    """Every name that the tests themselves give a meaning to, anywhere."""
    bound = _names(tree, ast.Store)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return bound


def _exception(name: str) -> Exception:
    """An exception of the same name, if it is one that tests could expect; ends of iterations would mislead them."""
    kind = getattr(builtins, name, None)
    usable = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, StopIteration)
    try:
        return kind() if usable and kind is not None else RuntimeError(name)
    except TypeError:  # UnicodeDecodeError and its like want arguments
        return RuntimeError(name)
