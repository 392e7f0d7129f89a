"""What tests made of `assert` statements say before they run: whether they can judge anything at all."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

_RUN_TEXT = frozenset({"eval", "exec", "compile", "__import__", "__builtins__"})
_BRING_CODE = frozenset({"builtins", "code", "codeop", "importlib", "marshal", "pickle", "runpy", "shelve", "timeit"})


def fault(tests: ast.Module, setup: ast.Module) -> str | None:
    """Why tests cannot judge a program; None when they can.

    Args:
        tests: as `lit_reason_code.judging.Suite` has them.
        setup: what comes before them.
    """
    if any(map(_runs_text, (*ast.walk(tests), *ast.walk(setup)))):
        return "the tests run text as Python, which a program could have written"
    if not any(isinstance(node, ast.Assert) and not _constant(node) for node in _reached(tests)):
        return "the tests reach no assert"
    return None


def calls_check(tests: ast.Module) -> bool:
    """Whether they are a function `check(candidate)`, which somebody else must call, as in HumanEval."""
    return any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tests.body)


def _constant(node: ast.Assert) -> bool:
    return isinstance(node.test, ast.Constant)


def _runs_text(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _RUN_TEXT
    if isinstance(node, ast.Attribute):
        return node.attr in ("eval", "exec")
    modules: Iterable[str | None] = ()
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = [node.module]
    return any((name or "").partition(".")[0] in _BRING_CODE for name in modules)


def _reached(tests: ast.Module) -> Iterator[ast.AST]:
    """Every node that may run: what stands outside of functions, and functions whose names are mentioned there."""
    functions: dict[str, list[ast.AST]] = {}
    for node in ast.walk(tests):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.setdefault(node.name, []).append(node)
    waiting: list[ast.AST] = [*tests.body]
    if calls_check(tests):
        waiting += [child for check in functions.pop("check") for child in ast.iter_child_nodes(check)]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            mentioned = node.name if node.name.startswith("__") else ""  # methods that syntax calls
        else:
            waiting += node.orelse if _never(node) else ast.iter_child_nodes(node)  # type: ignore[attr-defined]  # of an `if`
            mentioned = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
        for function in functions.pop(mentioned, ()):
            waiting += ast.iter_child_nodes(function)


def _never(node: ast.AST) -> bool:
    """Whether it is an `if` whose condition does not hold where tests are run."""
    if not isinstance(node, ast.If):
        return False
    test = node.test
    main = isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"
    return main or (isinstance(test, ast.Constant) and not test.value)
