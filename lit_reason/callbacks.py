"""What a run keeps and says: samples, curve, checkpoints, predictions, and the lines at its end.

Each works in any Trainer whose model is a `Reasoner`; the command line adds them all.
"""

from __future__ import annotations

import functools
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import rich
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn

from lit_reason.answer import extract_answer
from lit_reason.checkpoint_callback import steps_over
from lit_reason.console import metrics_table, percent, prompt_text, sample_table
from lit_reason.plot import draw_curve
from lit_reason.progress import steps_done
from lit_reason.run_log import FILENAME, RunLogger, keep_lines, read_metrics
from lit_reason.types import Rollout, Stopped, UserError

if TYPE_CHECKING:
    from lit_reason.modules.base import Reasoner


def sample_row(rollout: Rollout) -> dict[str, Any]:
    """One rollout as plain values a person can read."""
    advantage = rollout.advantage if isinstance(rollout.advantage, float | int) else rollout.advantage.tolist()
    return {
        "prompt": prompt_text(rollout.problem),
        "completion": rollout.text,
        "answer": extract_answer(rollout.text),
        "gold": rollout.problem.answer,
        "rewards": rollout.rewards,
        "statuses": rollout.statuses,
        "reward": rollout.reward,
        "advantage": advantage,
        "length": rollout.length,
        "finish_reason": rollout.finish_reason,
    }


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file; a lone surrogate, which UTF-8 cannot hold, becomes its JSON escape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class Samples(Callback):
    """Every so often, shows a few completions of one problem and writes all of the step's to `samples.jsonl`.

    After a training step those are its scored rollouts; a module that samples none (SFT) shows its greedy answers
    after a validation instead.

    Args:
        folder: the run directory.
        every_n_steps: how often; the first step is always shown.
        rows: completions in the table.
    """

    def __init__(self, folder: Path, every_n_steps: int = 25, rows: int = 4) -> None:
        self.path = folder / "samples.jsonl"
        self.every_n_steps = every_n_steps
        self.rows = rows

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401 - the rest goes unused
        step = steps_done(trainer)
        if step == 1 or step % self.every_n_steps == 0:
            rollouts = cast("Reasoner", pl_module).last_rollouts
            rows = self._rows(trainer, rollouts, step, "train")
            groups: dict[int, list[Rollout]] = {}
            for rollout in rollouts:
                groups.setdefault(rollout.group, []).append(rollout)
            if groups and trainer.is_global_zero:
                mixed = [group for group in groups.values() if len({rollout.reward for rollout in group}) > 1]
                self._show((mixed or list(groups.values()))[0], f"step {step}")
                append_rows(self.path, rows)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        module = cast("Reasoner", pl_module)
        step = steps_done(trainer)
        rows = self._rows(trainer, [] if module.last_rollouts else module.last_validation, step, "validation")
        if trainer.is_global_zero and module.last_validation and not module.last_rollouts:
            self._show(module.last_validation[:1], f"step {step}, held out")
            append_rows(self.path, rows)

    def _show(self, group: list[Rollout], title: str) -> None:
        """The best and the worst, and what lies between, as many as there is room for, each text once."""
        distinct = {rollout.text: rollout for rollout in reversed(group)}.values()
        ranked = sorted(distinct, key=lambda r: -1e9 if r.reward is None else r.reward, reverse=True)
        half = self.rows // 2
        shown = ranked if len(ranked) <= self.rows else ranked[: self.rows - half] + ranked[len(ranked) - half :]
        rich.get_console().print(sample_table(shown, title))

    @staticmethod
    def _rows(trainer: Trainer, rollouts: Sequence[Rollout], step: int, split: str) -> list[dict[str, Any]]:
        """All ranks' rollouts as plain values, rank by rank; every rank must ask."""
        mine = [{"step": step, "split": split, **sample_row(rollout)} for rollout in rollouts]
        if trainer.world_size == 1:
            return mine
        everyones: list[list[dict[str, Any]]] = [[]] * trainer.world_size
        dist.all_gather_object(everyones, mine)
        return [row for rows in everyones for row in rows]


class Rewind(Callback):
    """Forgets what an interrupted run recorded after the checkpoint that is gone on from, for it is recorded again.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = steps_over(trainer)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, RunLogger):
                    logger.rewind(step)
            keep_lines(self.folder, "samples.jsonl", "step", step + 1)
            keep_lines(self.folder, "accepted*.jsonl", "round", cast("Reasoner", pl_module).phase)
        trainer.strategy.barrier()  # before another rank records anything


class FinalValidation(Callback):
    """Makes the last step of a fit end in a validation, whenever the interval would have had the next one.

    Lightning validates at once when it is asked to stop, as early stopping does; asking for that at the step the limits
    end the run at anyway keeps the validation inside the fit, where checkpoints and loggers see it.
    """

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401 - the rest goes unused
        steps_over = trainer.max_steps >= 0 and trainer.global_step >= trainer.max_steps
        last_epoch = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
        if steps_over or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True


class OptimizerOptions(Callback):
    """Gives a resumed run the optimizer options it was asked for; a checkpoint's own would silently take their place.

    Only what the command line changed is changed: moments and step counts stay the checkpoint's, and a learning rate
    that a scheduler has moved is scaled by new over old.
    """

    def __init__(self) -> None:
        self._asked: list[dict[str, Any]] = []
        self._before: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # the constructors' arguments, which loading a state does not touch
        self._asked = [dict(optimizer.defaults) for optimizer in trainer.optimizers]
        for optimizer, asked, before in zip(trainer.optimizers, self._asked, self._before, strict=False):
            changed = {name: value for name, value in asked.items() if before.get(name) != value}
            scale = asked["lr"] / before["lr"] if "lr" in changed and before["lr"] else 1.0
            for group in optimizer.param_groups:
                rates: dict[str, Any] = {
                    name: group[name] * scale for name in ("lr", "initial_lr", "max_lr", "min_lr") if name in group
                }
                if group["lr"] == before["lr"]:
                    rates["lr"] = asked["lr"]  # to the last digit
                group.update({name: value for name, value in changed.items() if name in group})
                group.update(rates)
            for config in trainer.lr_scheduler_configs:
                if config.scheduler.optimizer is optimizer and "lr" in changed:
                    config.scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self._asked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["asked"]


class SavedModel(Callback):
    """Writes the policy of the last step to `model/`, as plain transformers (with adapters: PEFT) loads it.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "model"

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            cast("Reasoner", pl_module).policy.save_pretrained(self.folder)  # on all ranks, each has its part
        except OSError as error:
            raise UserError(
                f"the trained model could not be written to '{self.folder}': {error.strerror or error}. The newest "
                f"checkpoint has it: make room, and `lit-reason export {self.folder.parent} --to hf` writes it"
            ) from error


class Curve(Callback):
    """Draws `curve.png` from `metrics.csv` when a fit ends, whichever way it ends.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING:
            try:
                draw_curve(self.folder / FILENAME, self.folder / "curve.png")
            except OSError as error:  # a picture is no reason to fail, nor to hide what a run failed of
                warnings.warn(f"curve.png could not be drawn: {error.strerror or error}", stacklevel=2)


class Summary(Callback):
    """Writes down the base policy's accuracy as step 0, and says at the end what was gained and where it lies.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._start = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.steps_done = functools.partial(steps_done, trainer)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = cast("Reasoner", pl_module).base_metrics or {}
        base = {f"val/{name}": value for name, value in found.items()}
        for logger in trainer.loggers if base else ():
            if isinstance(logger, RunLogger):
                logger.write(0, base)
            else:
                logger.log_metrics(base, step=0)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]  # set by a connector
        through = 0 <= trainer.max_steps <= trainer.global_step
        if not through and any((timer.time_remaining() or 1.0) < 0 for timer in timers):
            self._say(trainer, "stopped by max_time", f"lit-reason fit --config {self.folder / 'config.yaml'} --resume")
        else:
            self._say(trainer, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt | Stopped) and trainer.state.fn == TrainerFn.FITTING:
            self._say(trainer, "interrupted")

    def _say(self, trainer: Trainer, how: str, further: str | None = None) -> None:
        if trainer.is_global_zero:
            minutes = (time.monotonic() - self._start) / 60
            lines = closing_lines(self.folder, how=how, minutes=minutes)
            for line in lines if further is None else [*lines, f"go on     {further}"]:
                rich.get_console().print(line, markup=False, highlight=False, soft_wrap=True)


def closing_lines(folder: Path, *, how: str, minutes: float) -> list[str]:
    """The last lines of a run, from its `metrics.csv`: what was gained, and where everything lies."""
    rows = read_metrics(folder / FILENAME)
    lines = [f"{how} after {max(rows, default=0)} steps, {minutes:.1f} minutes"]
    validated = [
        (step, {name.removeprefix("val/"): value for name, value in row.items()})
        for step, row in sorted(rows.items())
        if "val/accuracy" in row
    ]
    if validated:
        (first, base), (last, final) = validated[0], validated[-1]
        if last == first:
            lines.append(f"accuracy  {percent(final, 'accuracy')} at step {last}")
        else:
            # the base's figure has come through float32 and back; the first of equals is the best
            best_step, best = max(validated, key=lambda entry: round(entry[1]["accuracy"], 6))
            points = 100 * (final["accuracy"] - base["accuracy"])
            start = "base" if first == 0 else f"step {first}"
            gained = (
                f"{start} {percent(base, 'accuracy')} -> step {last} {percent(final, 'accuracy')}: {points:+.1f} points"
            )
            lines.append(f"accuracy  {gained} on {final['problems']:.0f} held-out problems")
            if best_step == first:
                lines.append(f"best      no step beats {start}")
            else:
                lines.append(f"best      {percent(best, 'accuracy')} at step {best_step}")
            lines.append(f"length    {base['length']:.1f} -> {final['length']:.1f} tokens")
    names = ("config.yaml", FILENAME, "samples.jsonl", "accepted.jsonl", "curve.png", "checkpoints", "model")
    there = [name for name in names if (folder / name).exists()]
    lines.append(f"run       {folder}" + (f": {', '.join(there)}" if there else ""))
    return lines


class Report(Callback):
    """Prints the metrics of `validate` or `test` as a table, and writes them to `validate.json` or `test.json`.

    Args:
        folder: where the file goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._report(trainer, "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, "test")

    def _report(self, trainer: Trainer, what: str) -> None:
        metrics = {name.partition("/")[2]: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.is_global_zero and metrics:
            rich.get_console().print(metrics_table(metrics))
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{what}.json"
            path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
            rich.get_console().print(f"written to {path}", markup=False, highlight=False, soft_wrap=True)


class Predictions(Callback):
    """Writes what `predict` answers to `predictions.jsonl`, a file for each rank when there are several.

    Args:
        folder: where the file goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "predictions.jsonl"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            self.path = self.folder / f"predictions-rank{trainer.global_rank}.jsonl"
        self.path.unlink(missing_ok=True)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401 - the rest goes unused
        rows = []
        for rollout in outputs:
            row = sample_row(rollout)
            for name in (
                "rewards",
                "statuses",
                "reward",
                "advantage",
            ):  # nothing was rewarded; the task's own score takes their place
                del row[name]
            rows.append({**row, "score": rollout.problem.score(row["answer"])})
        append_rows(self.path, rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            rich.get_console().print(f"written to {self.path}", markup=False, highlight=False, soft_wrap=True)
