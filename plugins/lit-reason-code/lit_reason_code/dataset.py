"""`code_dataset`: programming problems from your own files or the hub, in the columns of the well-known collections.

    task:
      code_dataset: {path: HumanEval.jsonl}

Rows become questions, right programs where there are any, and tests in the form that reward `code` runs.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from lit_reason.task import Split
from lit_reason.tasks.columns import Columns, Example, RowError
from lit_reason.tasks.dataset import Dataset, Part
from lit_reason.tasks.rows import Row, Rows
from lit_reason.types import Problem, UserError
from lit_reason_code.judging import Suite, is_name
from lit_reason_code.reward import is_confined, passes
from lit_reason_code.sandbox.asserts import fault

_HOW = "Answer with a Python program in a ```python block between <answer> and </answer>."


@dataclass(kw_only=True, slots=True, frozen=True)
class _Read:
    """What a row says: the question, a right program if there is one, and the tests."""

    question: str
    program: str | None
    tests: Suite


class CodeDataset(Dataset):
    """Programming problems with tests, from a JSONL, JSON, CSV or parquet file, a folder of them, or a hub data set.

    Three shapes of columns are recognised: HumanEval (prompt, test, entry_point, canonical_solution), MBPP (text or
    prompt, test_list, test_setup_code or test_imports, code) and APPS (question, input_output, starter_code,
    solutions). Reward `code` runs the tests; so does the task itself when it judges an answer. Splits are made as by
    `dataset`. Sources: arXiv 2107.03374, 2108.07732, 2105.09938.

    Args:
        path: a file, a folder or a hub id; parquet and the hub need `pip install 'lit-reason[data]'`.
        name: configuration of a hub data set; None where it has one.
        split: the rows to train on. In a folder, files called after a split belong to it.
        validation_split: rows to validate on; questions that also stand there are left out of training.
        validation_fraction: share of the questions to hold out, in [0, 1); None: 0.05, or none with a
            validation_split.
        system_prompt: text of a system turn; None has none.
        think: True / False asks the chat template for think / no-think mode; None leaves the template's default.
        limit: read only so many rows of each split; None reads all.
        sandbox: where the task runs programs, as for reward `code`.

    Raises:
        UserError: an option is wrong; when the problems are asked for, that the data is missing, empty, broken or of
            another shape.
    """

    name = "code_dataset"

    def __init__(
        self,
        *,
        path: str,
        name: str | None = None,
        split: str = "train",
        validation_split: str | None = None,
        validation_fraction: float | None = None,
        system_prompt: str | None = None,
        think: bool | None = None,
        limit: int | None = None,
        sandbox: Literal["auto", "unsafe"] = "auto",
    ) -> None:
        super().__init__(
            path=path,
            name=name,
            split=split,
            validation_split=validation_split,
            validation_fraction=validation_fraction,
            system_prompt=system_prompt,
            think=think,
            limit=limit,
        )
        self.confined = is_confined("task 'code_dataset'", sandbox)

    def problems(self, split: Split) -> Sequence[Problem]:
        try:
            return super().problems(split)
        except UserError as error:
            raise UserError(str(error).replace("task 'dataset'", "task 'code_dataset'")) from error

    def score(self, problem: Problem, answer: str | None) -> float:
        return passes(problem, answer, confined=self.confined)

    def problem(self, part: Part, index: int) -> Problem:
        tests = _shape(part.rows)(part.rows[index]).tests
        metadata = {
            key: value
            for key in ("inputs", "outputs", "tests", "entry_point", "setup")
            if (value := getattr(tests, key))
        }
        scorer = partial(passes, confined=self.confined)
        return replace(super().problem(part, index), metadata=metadata, scorer=scorer)

    def recognise(self, rows: Rows) -> _Columns:
        return _Columns(read=_shape(rows), names=frozenset(rows.columns))


@dataclass(kw_only=True, slots=True, frozen=True)
class _Columns(Columns):
    """All columns, read in one of the shapes."""

    read: Callable[[Row], _Read]
    names: frozenset[str]

    def used(self) -> set[str]:
        return set(self.names)

    def example(self, row: Row) -> Example:
        read = self.read(row)
        turns = [{"role": "user", "content": f"{read.question.strip()}\n\n{_HOW}"}]
        return Example(prompt=turns, completion=None, answer=read.program, think=None)


def _shape(rows: Rows) -> Callable[[Row], _Read]:
    columns = set(rows.columns)
    for wanted, read in (
        ({"prompt", "test", "entry_point"}, _humaneval),
        ({"test_list"}, _mbpp),
        ({"question", "input_output"}, _apps),
    ):
        if wanted <= columns:
            return read
    raise UserError(
        f"task 'code_dataset': the columns are {', '.join(rows.columns) or 'none'}; expected those of HumanEval "
        "(prompt, test, entry_point), MBPP (text or prompt, test_list) or APPS (question, input_output)"
    )


def _humaneval(row: Row) -> _Read:
    head = _text(row, "prompt")
    solution = row.get("canonical_solution")
    return _Read(
        question=f"Complete this Python function; write all of it.\n\n```python\n{head.rstrip()}\n```",
        program=head + solution if isinstance(solution, str) else None,
        tests=_asserts(_text(row, "test"), setup=head, entry_point=_name(row["entry_point"])),
    )


def _mbpp(row: Row) -> _Read:
    lines = _list(row, "test_list")
    imports = row.get("test_imports")
    setup = "\n".join(map(str, imports)) if isinstance(imports, list) else row.get("test_setup_code")
    setup = setup if isinstance(setup, str) else ""
    question = _text(row, "text" if row.get("text") else "prompt")
    program = row.get("code")
    return _Read(
        # not the tests themselves: a program could repeat what they expect
        question=f"{question}\n\nIt is called like this: `{_first_call(lines, setup)}`",
        program=program if isinstance(program, str) else None,
        tests=_asserts("\n".join(lines), setup=setup),
    )


def _asserts(tests: str, *, setup: str, entry_point: str | None = None) -> Suite:
    try:
        complaint = fault(ast.parse(tests), ast.parse(setup))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RowError("a test is no Python") from None
    if complaint:
        raise RowError(complaint)
    return Suite(tests=tests, setup=setup, entry_point=entry_point)


def _first_call(lines: list[str], setup: str) -> str:
    """The call of the program's function in the first test: the outermost of a name that nothing else defines.

    What the setup defines or imports compares: its arguments would give away what is expected.
    """
    try:
        tree, given = ast.parse(lines[0]), _defined(ast.parse(setup))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RowError("a test is no Python") from None
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and not (hasattr(builtins, node.func.id) or node.func.id in given)
        ):
            return ast.unparse(node)
    raise RowError("a test calls no function")


def _defined(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
    return names


def _apps(row: Row) -> _Read:
    data = row["input_output"]
    try:
        data = json.loads(data) if isinstance(data, str) else data
        inputs, outputs, name = data["inputs"], data["outputs"], data.get("fn_name")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise RowError("'input_output' is no JSON object with inputs and outputs") from None
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs or len(inputs) != len(outputs):
        raise RowError("inputs and outputs are no lists of the same length")
    name = _name(name) if name else None
    if name and not all(isinstance(arguments, list) for arguments in inputs):
        raise RowError("a function's inputs are no lists of arguments")
    if not name and not all(map(_is_text, [*inputs, *outputs])):
        raise RowError("a script's inputs and outputs are no texts")
    if all(map(_says_nothing, outputs)):
        raise RowError("all expected outputs are empty")
    solutions = row.get("solutions")
    try:
        solutions = json.loads(solutions) if isinstance(solutions, str) and solutions else solutions
    except ValueError:
        solutions = None
    starter = row.get("starter_code")
    where = "It reads standard input and prints to standard output."
    if name:
        where = f"It is called as `{name}`."
    if isinstance(starter, str) and starter.strip():
        where += f" Begin with:\n\n```python\n{starter.strip()}\n```"
    return _Read(
        question=f"{_text(row, 'question')}\n\n{where}",
        program=solutions[0] if isinstance(solutions, list) and solutions and isinstance(solutions[0], str) else None,
        tests=Suite(inputs=inputs, outputs=outputs, entry_point=name),
    )


def _name(value: object) -> str:
    if not is_name(value):
        raise RowError("the function to call has no name that Python could know")
    return str(value)


def _is_text(value: object) -> bool:
    """Text, or the lines of one, as `lit_reason_code.judging` takes them."""
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(line, str | int | float) for line in value)
    )


def _says_nothing(output: object) -> bool:
    """Whether a program that does nothing gives it."""
    if isinstance(output, list):
        return all(map(_says_nothing, output))
    return output is None or (isinstance(output, str) and not output.strip())


def _text(row: Row, column: str) -> str:
    value: Any = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"'{column}' is missing or no text")
    return value


def _list(row: Row, column: str) -> list[str]:
    value: Any = row.get(column)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise RowError(f"'{column}' is no list of texts")
    return value
