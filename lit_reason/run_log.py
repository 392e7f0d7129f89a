"""`metrics.csv` of a run: one row a step, whatever was measured in it, readable while the run goes on."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

FILENAME = "metrics.csv"


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Rows of a `metrics.csv` by step; empty cells are left out, and no file is no rows."""
    return _read(path)[1]


def _read(path: Path) -> tuple[list[str], dict[int, dict[str, float]]]:
    """Columns of a `metrics.csv`, and its rows by step; a last line that a crash cut short is none."""
    if not path.is_file():
        return [], {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    reader = csv.DictReader(lines)
    rows = {}
    for row in reader:
        try:
            rows[int(row["step"])] = {name: float(value) for name, value in row.items() if value and name != "step"}
        except (KeyError, TypeError, ValueError):  # edited, or what a crash of the machine left
            warnings.warn(f"'{path}': a line that holds no figures is left out", stacklevel=2)
    return [name for name in reader.fieldnames or () if name != "step"], rows


def keep_lines(folder: Path, pattern: str, key: str, below: int) -> None:
    """Keep those lines of JSONL files whose `key` is below a number; a line that a crash cut short goes too."""
    for path in sorted(folder.glob(pattern)):
        whole, _, torn = path.read_bytes().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []  # texts may hold what `splitlines` takes for the end of a line
        kept = [line for line in lines if (number := _number(line, key)) is not None and number < below]
        if torn or kept != lines:
            replace(path, b"".join(line + b"\n" for line in kept))


def _number(line: bytes, key: str) -> float | None:
    """A number in a line of JSON; None where the line is damaged."""
    try:
        return float(json.loads(line)[key])
    except (KeyError, TypeError, ValueError):
        return None


def replace(path: Path, content: bytes) -> None:
    """Put something in the place of a file; a reader, or a crash, never meets half of it."""
    draft = path.with_name(f"{path.name}.part")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


class RunLogger(Logger):
    """Writes `metrics.csv` into the run directory.

    Row n holds what training step n saw and what a validation after it found; row 0 is the base policy, before any
    step. Lightning's own CSVLogger counts steps from 0, keeps two rows for a step that was also validated, and deletes
    the file of the run that is resumed.

    Args:
        folder: the run directory; rows already there are kept, and overwritten step by step when a run is resumed.

    Attributes:
        steps_done: says which step it is; None takes Lightning's count of batches, which falls behind by one with every
            resume from a checkpoint that was saved after a validation. `Summary` sets it.
    """

    steps_done: Callable[[], int] | None = None

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.path = folder / FILENAME
        self.columns, self.rows = _read(self.path)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    def log_dir(self) -> str:
        return str(self.folder)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as in the base class
        """Nothing: the run directory's `config.yaml` has them all."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add to the row of a step; Lightning's steps count from 0, rows from 1."""
        self.write((step or 0) + 1 if self.steps_done is None else self.steps_done(), metrics)

    @rank_zero_only
    def write(self, row: int, metrics: Mapping[str, float]) -> None:
        """Add to a row: 0 for the base policy, n for step n."""
        appends = row not in self.rows and row > max(self.rows, default=-1) and bool(self.columns)
        self.rows.setdefault(row, {}).update({name: float(value) for name, value in metrics.items()})
        new = [name for name in metrics if name not in self.columns]
        self.columns += new
        self.folder.mkdir(parents=True, exist_ok=True)
        if appends and not new:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                self._writer(file).writerow({"step": row, **self.rows[row]})
            return
        self._rewrite()

    def rewind(self, step: int) -> None:
        """Forget the rows after a step, which a resumed run writes again."""
        self.rows = {row: metrics for row, metrics in self.rows.items() if row <= step}
        self.columns = [name for name in self.columns if any(name in row for row in self.rows.values())]
        if self.path.exists():
            self._rewrite()

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows({"step": step, **self.rows[step]} for step in sorted(self.rows))
        replace(self.path, text.getvalue().encode())

    def _writer(self, file: Any) -> csv.DictWriter[str]:  # noqa: ANN401 - csv asks only for `write`
        return csv.DictWriter(file, ["step", *self.columns])
