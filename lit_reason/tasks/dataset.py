"""`dataset`: problems from your own files or the hub, whatever their columns are called.

    task:
      dataset: {path: my_problems.jsonl}

Rows hold a question and a gold answer (to sample and judge), a worked completion (to learn from), or both; see
`lit_reason.tasks.columns` for what is recognised.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, overload

from lit_reason.task import Split, Task
from lit_reason.tasks.columns import Columns, Example, RowError, recognise
from lit_reason.tasks.rows import Rows, read_rows
from lit_reason.types import Message, Problem, UserError

log = logging.getLogger(__name__)

_HELD_OUT = 0.05
_LONGEST_NUMBER = 1_000  # characters
_NUMBER = re.compile(r"(?P<sign>[-+]?)\s?(?:\\?\$)?\s?(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?P<rest>\.[0-9]*)?")


class Dataset(Task):
    """Problems from a JSONL, JSON, CSV or parquet file, a folder of them, or a hub data set.

    A row that cannot be used is left out and counted by reason. Without a validation split, a share of the questions is
    held out by their hash: always the same ones, and equal questions never on both sides. An answer is right when it is
    the gold answer as text, or the same number: '1,000' is '1000', '3.0' is '3' and '$5' is '5'.

    Args:
        path: a file, a folder or a hub id; parquet and the hub need `pip install 'lit-reason[data]'`.
        name: configuration of a hub data set; None where it has one.
        split: the rows to train on. In a folder, files called after a split belong to it.
        validation_split: rows to validate on; questions that also stand there are left out of training.
        validation_fraction: share of the questions to hold out, in [0, 1); None: 0.05, or none with a
            validation_split.
        columns: part -> column where the names are not recognised: messages, prompt, completion, solution, answer,
            system, think. Given, only these columns are used.
        system_prompt: text of the system turn, in place of any the rows have; None keeps theirs.
        think: True / False asks the chat template for think / no-think mode; a row's own `think` comes first; None
            leaves the template's default.
        limit: read only so many rows of each split; None reads all.

    Raises:
        UserError: an option is wrong; when the problems are asked for, that the data is missing, empty, broken or
            nowhere usable.
    """

    name = "dataset"

    def __init__(
        self,
        *,
        path: str,
        name: str | None = None,
        split: str = "train",
        validation_split: str | None = None,
        validation_fraction: float | None = None,
        columns: dict[str, str] | None = None,
        system_prompt: str | None = None,
        think: bool | None = None,
        limit: int | None = None,
    ) -> None:
        if validation_split is not None and validation_fraction is not None:
            raise UserError("task 'dataset': set validation_split or validation_fraction, not both")
        if validation_fraction is not None and not 0 <= validation_fraction < 1:
            raise UserError(f"task 'dataset': validation_fraction must be 0 to below 1, got {validation_fraction}")
        if validation_split == split:
            raise UserError(f"task 'dataset': validation_split is the training split '{split}'; name another")
        if limit is not None and limit < 1:
            raise UserError(f"task 'dataset': limit must be 1 row or more, got {limit}")
        self.path = path
        self.configuration = name
        self.split = split
        self.validation_split = validation_split
        self.validation_fraction = _HELD_OUT if validation_fraction is None else validation_fraction
        self.columns = columns
        self.system_prompt = system_prompt
        self.think = think
        self.limit = limit
        self.rejected: Counter[str] = Counter()
        """Rows that were left out, counted by reason; filled when the problems are first asked for."""
        self._first: dict[str, str] = {}  # where each reason came up first
        self._splits: dict[Split, _Problems] | None = None

    def problems(self, split: Split) -> Sequence[Problem]:
        if self._splits is None:
            self._splits = self._load()
        return self._splits[split]

    def score(self, problem: Problem, answer: str | None) -> float:
        return same_answer(problem, answer)

    def problem(self, part: Part, index: int) -> Problem:
        """The problem in row `index` of a part of the data."""
        row = part.rows[index]
        example = part.columns.example(row)
        prompt = example.prompt
        if self.system_prompt is not None:
            system: Message = {"role": "system", "content": self.system_prompt}
            prompt = [system, *(turn for turn in prompt if turn["role"] != "system")]
        used = part.columns.used()
        return Problem(
            prompt=prompt,
            answer=example.answer,
            completion=example.completion,
            think=self.think if example.think is None else example.think,
            task=self.name,
            id=f"{part.split}/{index}",
            metadata={column: value for column, value in row.items() if column not in used},
            scorer=same_answer,
        )

    def recognise(self, rows: Rows) -> Columns:
        """What the columns of a split mean; for subclasses that know other columns."""
        return recognise(rows.columns, f"'{self.path}'", self.columns)

    def __getstate__(self) -> dict[str, Any]:
        """Without the data, which the other process reads for itself."""
        return {**self.__dict__, "_splits": None}

    def _load(self) -> dict[Split, _Problems]:
        self.rejected, self._first = Counter(), {}
        part = self._part(self.split)
        if self.validation_split is None:
            source = part
            bound = int(self.validation_fraction * 2**64)
            train = [index for index, key in part.usable if key >= bound]
            held_out = [index for index, key in part.usable if key < bound]
        else:
            source = self._part(self.validation_split)
            held_out = [index for index, _ in source.usable]
            known = {key for _, key in source.usable}
            train = [index for index, key in part.usable if key not in known]
            if twice := [index for index, key in part.usable if key in known]:
                reason = "the question is also in the validation split"
                self.rejected[reason], self._first[reason] = len(twice), part.rows.where(twice[0])
        if self.rejected:
            reasons = [f"{n}: {reason} (first: {self._first[reason]})" for reason, n in self.rejected.most_common()]
            log.warning("task 'dataset': left out rows of '%s': %s", self.path, "; ".join(reasons))
        return {
            "train": _Problems(self, part, train),
            "validation": _Problems(self, source, held_out),
        }

    def _part(self, split: str) -> Part:
        """Read a split and sort out the rows that can be used."""
        rows = read_rows(self.path, split=split, name=self.configuration)
        count = min(len(rows), self.limit or len(rows))
        columns = self.recognise(rows)
        part = Part(split, rows, columns)
        rejected: Counter[str] = Counter()
        first: dict[str, str] = {}
        for index in range(count):
            try:
                part.usable.append((index, _key(columns.example(rows[index]))))
            except RowError as error:
                rejected[str(error)] += 1
                first.setdefault(str(error), rows.where(index))
        if not part.usable:
            reasons = "; ".join(f"{rejected[reason]}: {reason} ({first[reason]})" for reason in rejected)
            raise UserError(f"task 'dataset': none of the {count} rows of '{self.path}' can be used. {reasons}")
        self.rejected += rejected
        self._first = {**first, **self._first}
        return part


class Part:
    """The rows of a split, what their columns mean, and which can be used: (index, hash of the question)."""

    def __init__(self, split: str, rows: Rows, columns: Columns) -> None:
        self.split, self.rows, self.columns = split, rows, columns
        self.usable: list[tuple[int, int]] = []


class _Problems(Sequence[Problem]):
    """Some rows of a part, as problems, made when asked for."""

    def __init__(self, task: Dataset, part: Part, indices: Sequence[int]) -> None:
        self.task, self.part, self.indices = task, part, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self.task.problem(self.part, i) for i in self.indices[index]]
        return self.task.problem(self.part, self.indices[index])


def same_answer(problem: Problem, answer: str | None) -> float:
    """1.0 when an answer is the gold answer, as text up to white space or as a number; else 0.0."""
    gold = problem.answer
    return float(answer is not None and gold is not None and _normal(answer) == _normal(gold))


def _normal(text: str) -> str | Decimal:
    """What is compared: a number where the text is one, else the text with single spaces."""
    text = " ".join(text.split())
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if match is None or not any(c.isdigit() for c in text):
        return text
    return Decimal(match["sign"] + match["digits"].replace(",", "") + (match["rest"] or ""))


def _key(example: Example) -> int:
    """A 64-bit hash of the question, the same for questions that differ in case or white space only."""
    turns = [f"{turn['role']} {turn['content']}" for turn in example.prompt if turn["role"] != "system"]
    text = " ".join("\n".join(turns).casefold().split())
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
