"""Rows of a data set, from local files or the hub, each knowing the file and line it came from.

JSON and CSV are read here, text staying the text it is (readers that infer types turn dates into time stamps and "007"
into 7); parquet and the hub go through the `datasets` library.
"""

from __future__ import annotations

import bisect
import csv
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from lit_reason.types import UserError

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_SPLIT_WORDS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"} | {
    "dev": "validation",
    "test": "test",
}


class Source(ABC):
    """The rows of one file, or of one split of a hub data set."""

    name: str
    columns: list[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Row: ...

    def where(self, index: int) -> str:
        """What a person calls row `index`."""
        return f"{self.name}, row {index + 1}"


class JsonLines(Source):
    """A JSONL file, read row by row; only the places of the lines are kept in memory.

    Args:
        path: of the file; blank lines do not count as rows.

    Raises:
        UserError: a line is no JSON object; the message has its number.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.starts, self.lines = array("Q"), array("Q")
        columns: dict[str, None] = {}  # in the order they first appear
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    columns.update(dict.fromkeys(self._parse(line, number)))
                    self.starts.append(start)
                    self.lines.append(number)
                start += len(line)
        self.columns = list(columns)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Row:
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            return self._parse(file.readline(), self.lines[index])

    def where(self, index: int) -> str:
        return f"{self.name}, line {self.lines[index]}"

    def _parse(self, line: bytes, number: int) -> Row:
        try:
            row = json.loads(line.rstrip(b"\r\n").decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"{self.name}, line {number}: not valid JSON ({why}); mend or delete the line") from error
        if not isinstance(row, dict):
            raise UserError(f"{self.name}, line {number}: expected a JSON object with a row, got {type(row).__name__}")
        return row


class Table(Source):
    """Rows held in memory, or by `datasets`.

    Args:
        name: of the file or data set.
        rows: anything indexable.
        columns: their names.
        lines: the line each row begins on, where there are lines.
    """

    def __init__(
        self,
        name: str,
        rows: Any,  # noqa: ANN401 - a list, or a data set of the library, which ships no types
        columns: Sequence[str],
        lines: Sequence[int] | None = None,
    ) -> None:
        self.name, self.rows, self.columns, self.lines = name, rows, list(columns), lines

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return dict(self.rows[index])

    def where(self, index: int) -> str:
        return super().where(index) if self.lines is None else f"{self.name}, line {self.lines[index]}"


class Rows:
    """All rows of one split, one source after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = [source for source in sources if len(source)]
        self.columns = list(dict.fromkeys(column for source in self.sources for column in source.columns))
        self.ends = list(accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Row:
        source, local = self._find(index)
        return source[local]

    def where(self, index: int) -> str:
        """File and line of a row."""
        source, local = self._find(index)
        return source.where(local)

    def _find(self, index: int) -> tuple[Source, int]:
        source = bisect.bisect_right(self.ends, index)
        return self.sources[source], index - (self.ends[source - 1] if source else 0)


def read_rows(path: str, *, split: str, name: str | None = None) -> Rows:
    """The rows of a split.

    Args:
        path: a file, a folder of files, or a hub id. In a folder a file belongs to the split that its name, or the name
            of a folder above it, says (train, validation, test); files that say none, and a single file, are train.
        split: which rows.
        name: configuration of a hub data set; None takes its only one.

    Raises:
        UserError: there is no such data, it is empty or it cannot be read; the message names the file and line.
    """
    local = Path(path).expanduser()
    if not local.exists():
        if local.suffix in SUFFIXES or local.is_absolute() or path.startswith((".", "~")):
            raise UserError(f"task 'dataset': path: there is no file or folder '{path}'")
        return Rows([_from_hub(path, split, name)])
    if name is not None:
        raise UserError(
            f"task 'dataset': name: '{name}' would choose a configuration on the hub, but '{path}' is local"
        )
    by_split = _files_by_split(local)
    if split not in by_split:
        found = ", ".join(sorted(by_split))
        raise UserError(f"task 'dataset': '{path}' has no split '{split}'; found: {found}")
    rows = Rows([_from_file(file) for file in by_split[split]])
    if not len(rows):
        raise UserError(f"task 'dataset': '{path}' is empty: expected at least one row")
    return rows


def _files_by_split(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"task 'dataset': path: '{path}' is no {', '.join(SUFFIXES)} file")
        return {"train": [path]}
    found: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.is_file() and file.suffix in SUFFIXES and not any(part.startswith(".") for part in inside.parts):
            words = "".join(c if c.isalnum() else " " for c in str(inside.with_suffix("")).lower()).split()
            split = next((_SPLIT_WORDS[word] for word in reversed(words) if word in _SPLIT_WORDS), "train")
            found.setdefault(split, []).append(file)
    if not found:
        raise UserError(f"task 'dataset': path: the folder '{path}' holds no {', '.join(SUFFIXES)} file")
    return found


def _from_file(path: Path) -> Source:
    try:
        if path.suffix == ".parquet":
            return _from_parquet(path)
        if path.suffix == ".csv":
            return _from_csv(path)
        with path.open("rb") as file:
            first = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return _from_json(path) if path.suffix == ".json" and first == b"[" else JsonLines(path)
    except OSError as error:
        raise UserError(f"task 'dataset': cannot read '{path}': {error.strerror or error}") from error


def _from_json(path: Path) -> Source:
    """A file that is one JSON array of rows."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); mend the file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {index + 1}: expected a JSON object, got {type(row).__name__}")
    return Table(str(path), rows, list(dict.fromkeys(column for row in rows for column in row)))


def _from_csv(path: Path) -> Source:
    """A comma-separated file whose first line names the columns; every value stays text."""
    rows: list[Row] = []
    lines: list[int] = []
    with path.open("rb") as file:
        reader = csv.reader((line.decode("utf-8-sig") for line in file), strict=True)
        begun = 1
        try:
            header = next(reader, [])
            begun = reader.line_num + 1
            for cells in reader:
                if cells:
                    if len(cells) != len(header):
                        raise UserError(f"{path}, line {begun}: expected {len(header)} values, got {len(cells)}")
                    rows.append(dict(zip(header, cells, strict=True)))
                    lines.append(begun)
                begun = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line {begun}: not valid CSV in UTF-8 ({error})") from error
    return Table(str(path), rows, header, lines)


def _from_parquet(path: Path) -> Source:
    library = _library()
    try:
        rows = library.Dataset.from_parquet(str(path))
    except Exception as error:
        raise UserError(f"task 'dataset': cannot read '{path}': {_root(error)}") from error
    return Table(str(path), rows, rows.column_names)


def _from_hub(path: str, split: str, name: str | None) -> Source:
    library = _library()
    try:
        rows = library.load_dataset(path, name, split=split)
    except Exception as error:
        raise UserError(
            f"task 'dataset': path: '{path}' is no file or folder here, and the hub did not give it: {_root(error)}"
        ) from error
    return Table(f"{path} ({split})", rows, rows.column_names)


def _library() -> Any:  # noqa: ANN401 - the `datasets` module, which ships no types
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "task 'dataset': parquet files and hub data sets need the package datasets: pip install 'lit-reason[data]'"
        ) from error
    return datasets


def _root(error: BaseException) -> str:
    """What lies behind a library's "an error occurred", in one line."""
    while "error occurred" in str(error) and error.__cause__:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())
