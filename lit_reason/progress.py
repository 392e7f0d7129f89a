"""Where a run stands: a live bar on a terminal, a plain line every few steps anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import rich
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lit_reason.console import percent

SHOWN = ("reward", "accuracy", "length", "loss")
"""Training metrics worth a glance, in the order they are shown; those a module does not log are left out."""


def steps_done(trainer: Trainer) -> int:
    """Training steps (rollout phases) finished so far, those before a resume included."""
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1


def steps_planned(trainer: Trainer) -> int | None:
    """Training steps of the whole run, as far as `max_steps` and `max_epochs` tell; None when only time ends it.

    `max_steps` counts optimizer steps, of which a training step may hold several; how many shows after the first.
    """
    limits: list[float] = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs * trainer.num_training_batches)
    if trainer.max_steps >= 0:
        done = steps_done(trainer)
        each = trainer.global_step / done if done and trainer.global_step else 1.0
        limits.append(math.ceil(trainer.max_steps / each))
    limits = [limit for limit in limits if math.isfinite(limit)]
    return int(min(limits)) if limits else None


class RunProgress(ProgressBar):
    """Shows step, reward, accuracy, length and loss.

    Args:
        every_n_steps: how often a line is printed where there is no terminal to draw a bar on.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.console = rich.get_console()  # shared with every other table and line, so that none tears the bar
        self.enabled = True
        self._live: Progress | None = None
        self._training: TaskID | None = None
        self._evaluating: TaskID | None = None
        self._since = (time.perf_counter(), 0)

    def disable(self) -> None:
        self.enabled = False
        self._stop()

    def enable(self) -> None:
        self.enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's signature
        self.console.print(*args)

    # ------------------------------------------------------------------ training
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = (time.perf_counter(), steps_done(trainer))
        self._training = self._add("training", steps_planned(trainer), steps_done(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401 - unused
        step, planned = steps_done(trainer), steps_planned(trainer)
        if not self.enabled:
            return
        line = summary_line(trainer.callback_metrics)
        if self._live is not None and self._training is not None:
            self._live.update(self._training, completed=step, total=planned, metrics=line)
        elif step == 1 or step % self.every_n_steps == 0 or step == planned:
            started, first = self._since
            seconds = (time.perf_counter() - started) / max(step - first, 1)
            self._plain(f"{self._place(trainer)}  {line}  {seconds:.1f} s/step")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    # ------------------------------------------------------------------ validation, test, prediction
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_live:
            self._plain("validating the base policy ...")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()  # the time until training starts is no part of the bar's

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            self._evaluating = self._add("base validation", _total(trainer.num_sanity_val_batches))
        else:
            self._evaluating = self._add("validation", _total(trainer.num_val_batches))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluating = self._add("test", _total(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluating = self._add("prediction", _total(trainer.num_predict_batches))

    def on_validation_batch_end(self, *_: Any) -> None:  # noqa: ANN401 - none of the hook's arguments is used
        self._advance()

    def on_test_batch_end(self, *_: Any) -> None:  # noqa: ANN401 - likewise
        self._advance()

    def on_predict_batch_end(self, *_: Any) -> None:  # noqa: ANN401 - likewise
        self._advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish()
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            found = trainer.callback_metrics.items()
            metrics = {name.removeprefix("val/"): float(value) for name, value in found if name.startswith("val/")}
            if "accuracy" in metrics:
                length = f", length {metrics['length']:.1f}" if "length" in metrics else ""
                self._plain(f"{self._place(trainer)}  held-out accuracy {percent(metrics, 'accuracy')}{length}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish()

    on_predict_end = on_test_end

    # ------------------------------------------------------------------ drawing
    @property
    def _is_live(self) -> bool:
        return self.enabled and self.console.is_terminal

    def _place(self, trainer: Trainer) -> str:
        planned = steps_planned(trainer)
        return f"step {steps_done(trainer)}" + (f"/{planned}" if planned else "")

    def _plain(self, line: str) -> None:
        if self.enabled:
            # a line in a log file may be longer than 80 columns; on a terminal the window decides
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _add(self, what: str, total: float | None, completed: int = 0) -> TaskID | None:
        if not self._is_live:
            return None
        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=self.console,
                expand=True,
            )
            self._live.start()
        known = total if total is not None and math.isfinite(total) else None
        return self._live.add_task(what, total=known, completed=completed, metrics="")

    def _advance(self) -> None:
        if self._live is not None and self._evaluating is not None:
            self._live.advance(self._evaluating)

    def _finish(self) -> None:
        if self._live is not None and self._evaluating is not None:
            self._live.remove_task(self._evaluating)
            self._evaluating = None
            if self._training is None:
                self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._training = self._evaluating = None


def _total(batches: float | list[int | float]) -> float:
    return sum(batches) if isinstance(batches, list) else batches


def summary_line(metrics: Mapping[str, Any]) -> str:
    """The training metrics worth a glance: `reward 0.31  accuracy 0.25  length 34.2`."""
    parts = []
    for name in SHOWN:
        value = metrics.get(f"train/{name}")
        if value is not None:
            parts.append(f"{name} {float(value):.{1 if name == 'length' else 3}f}")
    return "  ".join(parts)
