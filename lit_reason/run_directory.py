"""Where a run keeps its files, and how runs of one name are kept apart."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_reason.types import UserError

CHECKPOINTS = "checkpoints"
_CHOSEN = "LIT_REASON_RUN_DIR"


def config_name(subcommand: str) -> str:
    """File of the resolved configuration: a fit's is `config.yaml`, the others' do not overwrite it."""
    return "config.yaml" if subcommand == "fit" else f"{subcommand}.yaml"


def resolve_run_directory(
    run_dir: str | None, ckpt_path: str | None, *, model: str, subcommand: str, resume: bool = False
) -> Path:
    """The directory a run writes into.

    A run that starts from a checkpoint inside a run directory continues there: inside `run_dir` when one is given, else
    wherever the checkpoint's own run lies. Any other run gets a directory of its own, numbered when the name is taken.

    Args:
        run_dir: what the user asked for, or None for `runs/<model>`, with `-<subcommand>` when that is not fit.
        ckpt_path: the checkpoint to start from, or None.
        model: name of the model's class in lower case.
        subcommand: fit, validate, test or predict.
        resume: go on in the directory, whatever it holds.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" and _CHOSEN in os.environ:
        return Path(os.environ[_CHOSEN])  # the process that started this one has chosen for both
    folder = _choose(run_dir, "last" if resume else ckpt_path, model=model, subcommand=subcommand)
    os.environ[_CHOSEN] = str(folder)
    return folder


def _choose(run_dir: str | None, ckpt_path: str | None, *, model: str, subcommand: str) -> Path:
    suffix = "" if subcommand == "fit" else f"-{subcommand}"
    folder = Path(run_dir) if run_dir else Path("runs") / f"{model}{suffix}"
    if ckpt_path == "last":
        return folder
    if ckpt_path:
        checkpoint = Path(ckpt_path).resolve()
        if checkpoint.is_relative_to(folder.resolve()):
            return folder
        home = Path(ckpt_path).parent.parent
        if run_dir is None and checkpoint.parent.name == CHECKPOINTS and (home / config_name("fit")).is_file():
            return home
    number, fresh = 1, folder
    while (fresh / config_name(subcommand)).exists():
        number += 1
        fresh = folder.with_name(f"{folder.name}-{number}")
    return fresh


def resolve_checkpoint(ckpt_path: str | None, folder: Path) -> str | None:
    """`ckpt_path`, checked; `last` and `best` are those of the run directory.

    Raises:
        UserError: there is no such file.
    """
    if not ckpt_path or "://" in ckpt_path:
        return ckpt_path
    path = folder / CHECKPOINTS / f"{ckpt_path}.ckpt" if ckpt_path in ("last", "best") else Path(ckpt_path)
    if not path.exists():
        raise UserError(f"ckpt_path: no checkpoint at '{path}'. Give the path of a .ckpt file, or leave the option out")
    return str(path)


class Hold(Callback):
    """Keeps a run directory for one run, from before it writes anything until its process ends.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: TextIO | None = None  # the system's, as long as the file is open

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self._lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # children do not inherit it
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # else it is a file system without locks
                raise UserError(
                    f"run_dir: another process is training in '{self.folder}': wait for it, end it, or give another "
                    "--run_dir"
                ) from error


LOOSE = (
    *("run_dir", "ckpt_path", "resume", "weights_only"),
    *("trainer.", "checkpoints.", "data.validation_", "model.init_args.validation_samples"),
)
"""Options that may change in the middle of a run: how long it is, where it runs and what it shows."""
FIXED = ("model.class_path", "model.init_args.policy.model", "model.init_args.policy.lora")
"""Options whose change makes the weights of a checkpoint another model's."""


def check_same_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Compare the configuration of a run with that it is resumed with; warn of options that change what it means.

    Args:
        folder: the run directory; without a readable configuration there is nothing to compare.
        config: the configuration now, as plain data.

    Raises:
        UserError: the checkpoint's weights are not those of the model that is asked for.
    """
    file = folder / config_name("fit")
    try:
        saved = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        saved = None
    if not isinstance(saved, Mapping):
        if file.exists():
            rank_zero_warn(f"resume: '{file}' is no configuration any more, so none is compared with that of now")
        return
    changed = {name: text for name, text in _changes(saved, config) if not name.startswith(LOOSE)}
    fixed = [text for name, text in changed.items() if name.startswith(FIXED)]
    if fixed:
        raise UserError(
            f"resume: {fixed[0]}: the run in '{folder}' trains another model. Leave the option out to go on with it, "
            "or give another --run_dir"
        )
    for text in changed.values():
        rank_zero_warn(f"resuming with another configuration: {text}")


def _changes(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - plain data
    """Options by name that differ, with what they were and are."""
    if before == now:
        return
    if isinstance(before, Mapping) and isinstance(now, Mapping) and before.keys() & now.keys():
        for part in sorted(before.keys() | now.keys(), key=str):
            yield from _changes(before.get(part), now.get(part), f"{name}.{part}" if name else str(part))
    else:
        yield name, f"{name} was {_short(before)}, now {_short(now)}"


def _short(value: Any) -> str:  # noqa: ANN401 - likewise
    """A value in few words: of a plugin its name."""
    if isinstance(value, Mapping):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
