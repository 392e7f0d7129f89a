"""Lightning strategies beyond Lightning's own: `--trainer.strategy fsdp2`."""

from __future__ import annotations

from datetime import timedelta

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry

from lit_reason.checkpoint_shards import ShardedCheckpoints


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


if FSDP2.strategy_name not in StrategyRegistry:  # a module may be imported twice, a name registered once
    StrategyRegistry.register(FSDP2.strategy_name, FSDP2, "FSDP2 over all ranks, on CPUs and GPUs")
