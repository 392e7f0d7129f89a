"""What a checkpoint holds for a resumed run to repeat the uninterrupted one: random states, the place in the loops."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn


def random_states() -> dict[str, Any]:
    """The global random states of this process, as plain data."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        name, keys, *rest = sys.modules["numpy"].random.get_state()
        states["numpy"] = (name, keys.tolist(), *rest)
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put this process's global random states where `random_states` found them."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    if "numpy" in states:
        import numpy as np

        np.random.set_state(states["numpy"])  # noqa: NPY002 - it is the global generator that is restored


def of_all_ranks(mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What every rank says, in order; each of them must call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    everyone: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def of_this_rank(everyone: list[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
    """What this rank said; the first rank's, without random states, when there are more or fewer ranks now.

    Completions do not depend on the number of ranks: each is drawn from a stream named by seed, phase, problem and
    sample. Only what draws from the global generators, such as a reward of one's own, then draws anew.
    """
    if len(everyone) == world_size:
        return everyone[rank]
    if not everyone:
        return {}
    rank_zero_warn(
        f"{len(everyone)} processes wrote the checkpoint and {world_size} go on from it: prompts and completions stay "
        "those of one run, sums over ranks are rounded differently, and global random states begin anew"
    )
    return {name: value for name, value in everyone[0].items() if name != "random"}


def between_steps(loops: dict[str, Any], batches: float) -> None:
    """Let Lightning's counts say that the last step is over, with its validation, and no other has begun.

    A checkpoint is dumped somewhere inside Lightning's loops, and what a resume then repeats or leaves out depends on
    where: after the hooks of a batch a validation that was due is skipped, and a run ended by `max_steps` counts its
    last epoch as finished. The place between two steps is one from which everything goes on as if nothing had happened.

    Args:
        loops: the checkpoint's entry of that name, which is changed.
        batches: training batches of an epoch.
    """
    fit = loops["fit_loop"]
    progress, epochs = fit["epoch_loop.batch_progress"], fit["epoch_progress"]
    done, epoch = progress["current"]["processed"], epochs["current"]["ready"] - 1
    if epoch < 0:  # no fit has begun
        return
    if done >= batches:
        done, epoch = 0, epoch + 1
    total = progress["total"]["processed"]
    progress["total"].update(ready=total, started=total, completed=total)
    progress["current"].update(ready=done, started=done, processed=done, completed=done)
    progress["is_last_batch"] = False
    for counts in (epochs["total"], epochs["current"]):
        counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = total
