"""`metrics.csv` of a run: one row a step, whatever was measured in it, readable while the run goes on."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

FILENAME = "metrics.csv"


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Rows of a `metrics.csv` by step; empty cells are left out, and no file is no rows."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {
            int(row["step"]): {name: float(value) for name, value in row.items() if value and name != "step"}
            for row in csv.DictReader(file)
        }


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
        self.rows = read_metrics(self.path)
        self.columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))

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

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add to the row of a step; Lightning's steps count from 0, rows from 1."""
        self.write((step or 0) + 1 if self.steps_done is None else self.steps_done(), metrics)

    def write(self, row: int, metrics: Mapping[str, float]) -> None:
        """Add to a row: 0 for the base policy, n for step n."""
        appends = row not in self.rows and row > max(self.rows, default=-1) and bool(self.columns)
        self.rows.setdefault(row, {}).update(metrics)
        new = [name for name in metrics if name not in self.columns]
        self.columns += new
        self.folder.mkdir(parents=True, exist_ok=True)
        if appends and not new:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                self._writer(file).writerow({"step": row, **self.rows[row]})
            return
        draft = self.path.with_suffix(".csv.part")  # a reader, or a crash, never meets half a file
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows({"step": step, **self.rows[step]} for step in sorted(self.rows))
        draft.replace(self.path)

    def _writer(self, file: Any) -> csv.DictWriter[str]:  # noqa: ANN401 - csv asks only for `write`
        return csv.DictWriter(file, ["step", *self.columns])
