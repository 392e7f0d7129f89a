"""When a run's checkpoints are written, and which of them are kept."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.trainer.states import TrainerFn

from lit_reason.checkpoint import SUFFIX, age, point, remove_drafts
from lit_reason.types import UserError


@dataclass(kw_only=True, frozen=True)
class CheckpointOptions:
    """When checkpoints are written, and which are kept.

    Attributes:
        every_n_steps: write one after every so many steps; null writes them by time and after validations alone.
        minutes: longest time between two, so that a crash costs no more; null for no such bound.
        keep_last: how many of the newest are kept. With two there is one to fall back on when the newest is damaged.
        best: the validation metric whose best checkpoint is kept as `best.ckpt` too; null for none.
        mode: whether the largest (`max`) or the smallest (`min`) value of `best` is the best.
        grace: seconds a step may still take after SIGTERM, before the run stops without finishing it.
    """

    every_n_steps: int | None = None
    minutes: float | None = 10.0
    keep_last: int = 2
    best: str | None = "val/accuracy"
    mode: Literal["max", "min"] = "max"
    grace: float = 20.0

    def __post_init__(self) -> None:
        checks = {
            "every_n_steps": (self.every_n_steps is None or self.every_n_steps >= 1, "1 or more, or null"),
            "minutes": (self.minutes is None or self.minutes >= 0, "0 (after every step) or more, or null"),
            "keep_last": (self.keep_last >= 1, "1 or more"),
            "grace": (0 <= self.grace < math.inf, "0 seconds or more"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise UserError(f"checkpoints.{name} must be {wanted}, got {getattr(self, name)}")


class RunCheckpoints(Checkpoint):
    """Keeps the newest checkpoints of a run, and the best.

    They are `step-<n>.ckpt`, where n counts training steps; `last.ckpt` and `best.ckpt` are links to two of them. One
    is written after each validation, as often as the options say, and at the end. All are written between two steps,
    when a step's metrics, samples and validation have been recorded, so that a run goes on from it as if nothing had
    happened. An exception writes none: it may have come in the middle of an update.

    Args:
        folder: where they go.
        options: when, and how many.
    """

    def __init__(self, folder: Path, options: CheckpointOptions | None = None) -> None:
        self.folder = folder
        self.options = options or CheckpointOptions()
        self.best: tuple[float, int] | None = None  # value and step
        self.saved: Path | None = None
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._due = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            remove_drafts(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._saved_step = time.monotonic(), steps_over(trainer)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401 - the rest goes unused
        step, options = steps_over(trainer), self.options
        if step == self._saved_step:
            return
        regular = options.every_n_steps is not None and step % options.every_n_steps == 0
        if self._due or regular or self._late(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._due = True
        value = trainer.callback_metrics.get(self.options.best or "")
        if value is not None:
            sign = 1 if self.options.mode == "max" else -1
            if self.best is None or sign * float(value) > sign * self.best[0]:
                self.best = (float(value), steps_over(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of the steps that are over, unless there is one; every rank must call this."""
        step = steps_over(trainer)
        self._due = False
        if step == self._saved_step or trainer.fast_dev_run:  # type: ignore[attr-defined] # set by a connector
            return
        self._saved_at, self._saved_step = time.monotonic(), step
        path = self.folder / f"step-{step}{SUFFIX}"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            if self.best is not None and self.best[1] == step:  # first: a run that goes on from `last` has passed it
                point(self.folder / f"best{SUFFIX}", path.name)
            point(self.folder / f"last{SUFFIX}", path.name)
            self._remove_old(trainer)
        self.saved = path

    def _late(self, trainer: Trainer) -> bool:
        """Whether it is time; every rank must save or none, so rank 0's clock decides."""
        if self.options.minutes is None:
            return False
        late: bool = trainer.strategy.broadcast(time.monotonic() - self._saved_at >= 60 * self.options.minutes)
        return late

    def _remove_old(self, trainer: Trainer) -> None:
        linked = {(self.folder / f"{name}{SUFFIX}").resolve() for name in ("last", "best")}
        paths = sorted(self.folder.glob(f"step-*{SUFFIX}"), key=age, reverse=True)
        # one of a later step, of a run that went on from an earlier one, is not this one's to remove
        steps = [path for path in paths if age(path)[0] <= self._saved_step]
        for path in steps[self.options.keep_last :]:
            if path.resolve() not in linked:
                trainer.strategy.remove_checkpoint(path)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """`max_time` is of a session, not of all that a run has ever taken."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
            if isinstance(callback, Timer):
                checkpoint.get("callbacks", {}).pop(callback.state_key, None)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


def steps_over(trainer: Trainer) -> int:
    """Training steps that are over; the one that a batch has been fetched for is not."""
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total  # Lightning's annotation is of a base class
    return int(total.processed)
