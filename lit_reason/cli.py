"""`lit-reason fit|validate|test|predict`: LightningCLI with a run directory and errors of one line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import rich
import transformers
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from lit_reason.__main__ import debugging, one_line
from lit_reason.callbacks import (
    Curve,
    FinalValidation,
    OptimizerOptions,
    Predictions,
    Report,
    Rewind,
    Samples,
    SavedModel,
    Summary,
)
from lit_reason.checkpoint import AtomicCheckpointIO, examine, newest
from lit_reason.checkpoint_callback import CheckpointOptions, RunCheckpoints
from lit_reason.cli_errors import OneLineParser, cause_of, check_configs, config_files
from lit_reason.data import ReasoningData
from lit_reason.engines.continuous import ContinuousBatching
from lit_reason.engines.in_process import InProcess
from lit_reason.engines.vllm import VLLM
from lit_reason.interruption import Interruption
from lit_reason.modules.base import Reasoner
from lit_reason.modules.grpo import GRPO
from lit_reason.modules.rejection import RejectionSampling
from lit_reason.modules.sft import SFT
from lit_reason.progress import RunProgress
from lit_reason.run_directory import (
    CHECKPOINTS,
    Hold,
    check_same_run,
    config_name,
    resolve_checkpoint,
    resolve_run_directory,
)
from lit_reason.run_log import RunLogger
from lit_reason.strategy import lost_rank
from lit_reason.types import UserError

MODELS = (SFT, GRPO, RejectionSampling)
ENGINES = (InProcess, ContinuousBatching, VLLM)
"""Importing them is what makes `class_path: SFT` and `engine: VLLM` known by their short names."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "log_every_n_steps": 1,  # a step is a whole rollout phase, seconds at the least
    "num_sanity_val_steps": -1,  # the sanity check is the base policy's validation, in full
    "check_val_every_n_epoch": None,  # validation is counted in steps, not in epochs
    "val_check_interval": 50,
    "enable_model_summary": False,
}

# jsonargparse's denylist of dangerous standard modules stays as it is, and no allowlist is set: configs are there to
# name one's own modules, callbacks, loggers and plugins, so a config has the rights of the code it names.


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run directory, ready to be given to `--config` again.

    It goes to `config.yaml` for fit and to `validate.yaml` and so on for the others, which may share a fit's directory.
    A resumed run replaces the file: `overwrite` is on, and `run_directory` keeps fresh runs apart. A run that ends
    before its model is loaded has never begun, and leaves no directory.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "predict")


class LitReasonCLI(LightningCLI):
    """The command line: a `Reasoner`, `ReasoningData` and a Trainer, each from YAML or options.

    Args:
        args: arguments after the program's name.

    Raises:
        UserError: something a person can mend; `lit_reason.__main__` prints it as one line.
        SystemExit: with code 2 after one line on stderr, when the arguments or a config cannot be parsed.
    """

    run_dir: Path
    subcommand: str
    dry_run: bool

    def __init__(self, args: Sequence[str]) -> None:
        self.arguments = list(args)
        check_configs(config_files(args))
        super().__init__(
            model_class=Reasoner,
            datamodule_class=ReasoningData,
            subclass_mode_model=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=OneLineParser,
            auto_configure_optimizers=False,
            # what a checkpoint keeps of the configuration is saved below, without private hooks into the constructors
            load_from_checkpoint_support=False,
            args=self.arguments,
        )

    # ------------------------------------------------------------------ arguments
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401 - Lightning's signature
        # no abbreviations: one that works today clashes with an option of tomorrow
        parser = super().init_parser(**{"prog": "lit-reason", "allow_abbrev": False, **kwargs})
        cast("OneLineParser", parser).arguments = self.arguments
        cast("OneLineParser", parser).folder = Path.cwd()
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands; `verbose` and `return_predictions` go, our own callbacks show and keep results."""
        data = {"model", "dataloaders", "datamodule"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {*data, "verbose"},
            "test": {*data, "verbose"},
            "predict": {*data, "return_predictions"},
        }

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=self.seed_everything_default,
            help="Seed of everything random; the same configuration and seed repeat a run.",
        )
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Directory of the run. By default `runs/<model>`, or that of `--ckpt_path`; a number is added to one "
            "that holds another run.",
        )
        parser.add_argument(
            "--resume",
            action="store_true",
            help="Go on from the newest checkpoint of the run directory that is whole; begin there when it has none.",
        )
        parser.add_class_arguments(CheckpointOptions, "checkpoints")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.seed")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401 - Lightning's signature
        parser: LightningArgumentParser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        # checkpoints hold plain data: never run code that a downloaded one may carry
        parser.set_defaults({"weights_only": True})
        if subcommand == "fit":
            parser.add_argument(
                "--dry_run",
                "--dry-run",
                action="store_true",
                help="Check everything that can be checked without loading weights, print the memory the run would "
                "take by part, and write nothing.",
            )
        return parser

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let a checkpoint's hyperparameters override the command line."""

    # ------------------------------------------------------------------ the run directory and what is in it
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        for section in ("trainer", "data"):
            if not isinstance(config[section], Namespace):
                raise UserError(f"{section}: expected a mapping of options, got {config[section]!r}")
        self.dry_run = config.pop("dry_run", False)
        name = config.model.class_path.rpartition(".")[2].lower()
        if config.resume and (self.subcommand != "fit" or config.ckpt_path):
            raise UserError("resume: it is for fit, and finds the checkpoint itself: leave it or ckpt_path out")
        self.run_dir = resolve_run_directory(
            config.run_dir, config.ckpt_path, model=name, subcommand=self.subcommand, resume=config.resume
        )
        config.ckpt_path = resolve_checkpoint(config.ckpt_path, self.run_dir)
        if config.ckpt_path and Path(config.ckpt_path).exists():
            try:
                examine(Path(config.ckpt_path))
            except UserError as error:
                raise UserError(f"ckpt_path: {error}") from error
        if config.resume:
            self._resume(config)
        if not 0 <= config.seed_everything < 2**32:
            raise UserError(f"seed_everything: expected 0 to {2**32 - 1}, got {config.seed_everything}")
        unlimited = config.trainer.max_steps == -1 and config.trainer.max_time is None
        if config.trainer.max_epochs is None and unlimited:
            config.trainer.max_epochs = 1  # Lightning's own answer to no limit at all is 1000

    def _resume(self, config: Namespace) -> None:
        found = newest(self.run_dir / CHECKPOINTS)
        rank_zero_info(f"going on from {found}" if found else f"nothing to resume in {self.run_dir}: the run begins")
        config.ckpt_path = str(found) if found else None
        if found:
            parser = self._parser(self.subcommand)
            check_same_run(self.run_dir, yaml.safe_load(parser.dump(config, skip_none=False, skip_check=True)))

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            ours = cause_of(error)
            if ours is None or debugging():
                raise
            raise ours from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401 - Lightning's signature
        config = {**self._get(self.config_init, "trainer"), **kwargs}
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        config["callbacks"] = [*given, *self._own_callbacks(given, config)]
        if config["default_root_dir"] is None:
            config["default_root_dir"] = str(self.run_dir)
        if self.subcommand == "fit":
            loggers = config["logger"] if isinstance(config["logger"], list) else [config["logger"]]
            config["logger"] = [RunLogger(self.run_dir), *(x for x in loggers if not isinstance(x, bool | None))]
        elif isinstance(config["logger"], bool | None):
            config["logger"] = False  # one row of metrics needs no log
        plugins = config["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, AtomicCheckpointIO()]
        self.save_config_kwargs["config_filename"] = config_name(self.subcommand)
        try:
            return self._instantiate_trainer(config, [])
        except (TypeError, ValueError) as error:  # the Trainer's own checks of its options
            raise UserError(f"trainer: {error}") from error

    def _own_callbacks(self, given: list[Callback], config: dict[str, Any]) -> list[Callback]:
        """The run's callbacks; one the user configured takes the place of ours of the same kind."""
        options = self._get(self.config_init, "checkpoints")
        keeps = self.subcommand == "fit" and config["enable_checkpointing"] is not False
        checkpoints = RunCheckpoints(self.run_dir / CHECKPOINTS, options) if keeps else None
        interruption = Interruption(checkpoints, options.grace)
        own: list[Callback] = []
        if config["enable_progress_bar"] is not False and not _any(given, ProgressBar):
            own.append(RunProgress())
        if self.subcommand == "predict":
            return [*own, Predictions(self.run_dir), interruption]
        if self.subcommand != "fit":
            return [*own, Report(self.run_dir), interruption]
        if not _any(given, Samples):
            own.append(Samples(self.run_dir))
        own += [
            Hold(self.run_dir),
            OptimizerOptions(),
            Rewind(self.run_dir),
            FinalValidation(),
            SavedModel(self.run_dir),
            Curve(self.run_dir),
            Summary(self.run_dir),
            interruption,
        ]
        if checkpoints is not None:
            own.append(checkpoints)
        return own

    def after_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.ckpt_path and Path(config.ckpt_path).resolve().is_relative_to(self.run_dir.resolve()):
            # what is saved describes the whole run and not its resumption; the Trainer has a copy of its own
            config.ckpt_path = None
        config.run_dir, config.resume = str(self.run_dir), False
        self._dump_config()
        _keep_hyperparameters(self.model, self.config_dump["model"])
        _keep_hyperparameters(self.datamodule, self.config_dump["data"])

    # ------------------------------------------------------------------ subcommands
    def _run_subcommand(self, subcommand: str) -> None:
        if not self.dry_run:
            super()._run_subcommand(subcommand)
            return
        from lit_reason.memory import estimate, report

        table, verdict = report(estimate(self.model, self.datamodule, self.trainer), self.trainer)
        rich.get_console().print(table)
        rich.get_console().print(verdict, markup=False, highlight=False, soft_wrap=True)

    def validate(self, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's signature
        """Measure the policy; `Report` shows the result."""
        self.trainer.validate(**kwargs, verbose=False)

    def test(self, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's signature
        """As `validate`, under the name the literature gives a last measurement."""
        self.trainer.test(**kwargs, verbose=False)

    def predict(self, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's signature
        """Write completions; `Predictions` keeps them, so that none pile up in memory."""
        self.trainer.predict(**kwargs, return_predictions=False)


def run(arguments: Sequence[str]) -> int:
    """Run a subcommand.

    Args:
        arguments: the subcommand and its options.

    Returns:
        The exit code: 0, 130 when Ctrl-C ended it, 143 when SIGTERM did.
    """
    quieten()
    sys.path.insert(0, str(Path.cwd()))  # a reward in a file of the current folder is found, as with `python -m`
    try:
        LitReasonCLI(arguments)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:
        if not lost_rank(error) or debugging():
            raise
        raise UserError(
            "another rank has failed, and says why, or was killed: this one ends with it; a run goes on with --resume"
        ) from error
    except SystemExit as stop:
        # Lightning turns Ctrl-C into exit code 1, after letting callbacks finish
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def quieten() -> None:
    """Silence advice that does not concern a run, for this process."""
    for text in (
        r"The '.*' does not have many workers",  # problems are text, loading them takes no time
        r"Checkpoint directory .* exists and is not empty",  # it is the run that is resumed
        r"You're resuming from a checkpoint that ended before the epoch",  # ReasoningData knows its place in the epoch
        r"Be aware that when using `ckpt_path`, callbacks used",  # measuring needs none of them
        r"It is recommended to use `self.log\('val/",  # validation metrics are gathered before they are logged
        r"You have overridden `transfer_batch_to_device`",  # on purpose: problems stay where they are
        r"LightningCLI's args parameter",  # given on purpose: __main__ took its own options out of them
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
        r"`is_gradient_checkpointing` is deprecated",  # between PEFT and transformers
    ):
        warnings.filterwarnings("ignore", message=text)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {one_line(str(message))}\n"
    transformers.utils.logging.disable_progress_bar()  # each lives for a fraction of a second
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns whenever something forks
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_concerns_the_user)


def _concerns_the_user(record: logging.LogRecord) -> bool:
    chatter = ("Tip:", "Seed set to", "GPU available", "TPU available", "Restoring states", "KeyboardInterrupt")
    return not any(text in record.getMessage() for text in chatter)


def _any(callbacks: Sequence[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _keep_hyperparameters(target: LightningModule | LightningDataModule, config: dict[str, Any]) -> None:
    """Put plain configuration into checkpoints, in the form `load_from_checkpoint` rebuilds objects from.

    Objects would make a checkpoint that only unpickling arbitrary code can read.
    """
    plain = {"_class_path": config["class_path"], **config["init_args"]} if "class_path" in config else config
    target.save_hyperparameters({"_instantiator": "lightning.pytorch.cli.instantiate_module", **plain}, logger=False)
