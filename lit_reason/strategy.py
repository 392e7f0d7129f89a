"""Lightning strategies beyond Lightning's own: `--trainer.strategy fsdp2`."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from signal import SIGKILL
from subprocess import TimeoutExpired

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lit_reason.checkpoint_shards import ShardedCheckpoints

LAST_WORDS_SECONDS = 10.0
"""How long a rank that has failed may take to end by itself, its error said."""

_ENDINGS = (KeyboardInterrupt, SystemExit)  # of all ranks at once, and in good order; Lightning's SIGTERM is the latter
_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "Broken pipe")


class FSDP2(ShardedCheckpoints, ModelParallelStrategy):
    """Weights, gradients and optimizer states sharded over all ranks; on CPUs (gloo) and GPUs (NCCL), one rank or many.

    Lightning's ModelParallelStrategy with every process in one data-parallel group, under the name `fsdp2`.

    Args:
        save_distributed_checkpoint: each rank writes its part, into a folder; off, rank 0 writes all in one file, which
            any strategy and any number of ranks can load.
        process_group_backend: of torch.distributed; None chooses by device.
        timeout: of an operation between ranks; as long as the slowest rollout may take longer than the quickest.
    """

    strategy_name = "fsdp2"

    def __init__(
        self,
        *,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = timedelta(minutes=30),
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()


class EndTogether(Callback):
    """Where one rank fails, the others end too, and quickly: they would wait for it as long as the timeout.

    Lightning's launcher looks after the ranks it has started, but not after itself; torchrun and SLURM look after all.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        launcher = trainer.strategy.launcher
        if not isinstance(launcher, _SubprocessScriptLauncher) or isinstance(exception, _ENDINGS):
            return
        if lost_rank(exception):  # which is about to say why
            for process in launcher.procs:
                with suppress(TimeoutExpired):
                    process.wait(LAST_WORDS_SECONDS)
        launcher.kill(SIGKILL)


def lost_rank(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _GONE)


if FSDP2.strategy_name not in StrategyRegistry:  # a module may be imported twice, a name registered once
    StrategyRegistry.register(FSDP2.strategy_name, FSDP2, "FSDP2 over all ranks, on CPUs and GPUs")
