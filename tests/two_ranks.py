"""Two gloo ranks, forked from the process that tests: what it has imported they need not import again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(work: Callable[[int, Path], Any], folder: Path) -> tuple[Any, Any]:
    """What work(rank, folder) returns on each of them."""
    mp.start_processes(_start, (work, folder), nprocs=2, start_method="fork")
    zero, one = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return zero, one


def _start(rank: int, work: Callable[[int, Path], Any], folder: Path) -> None:
    torch.set_num_threads(1)  # the pool of threads did not come along
    # a Trainer of two devices takes this process for one of its ranks, and leaves the number of threads alone
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", OMP_NUM_THREADS="1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank, folder), folder / f"{rank}.pt")
    dist.destroy_process_group()
