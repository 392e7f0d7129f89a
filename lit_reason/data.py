"""From a task to Lightning batches: one batch is one rollout phase, a list of problems.

`prompts_per_step` counts the prompts of all ranks together; each rank gets its share of every phase, whatever the
numbers divide into. The order is a function of (seed, epoch) alone, and the place in it is part of the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lit_reason.plugins import TaskRef
from lit_reason.task import Task
from lit_reason.types import Problem, Rollout, UserError


class Phases(Dataset[list[Problem]]):
    """Problems cut into phases; item i is this rank's share of phase i.

    Args:
        problems: what to cut.
        size: problems of a phase, all ranks together; the last phase may be smaller.
        rank: of this process.
        world_size: number of processes.
        seed: of the shuffle; None keeps the order.
    """

    def __init__(self, problems: Sequence[Problem], size: int, rank: int, world_size: int, seed: int | None) -> None:
        self.problems, self.size, self.rank, self.world_size, self.seed = problems, size, rank, world_size, seed
        self.order: Sequence[int] = range(len(problems))

    def __len__(self) -> int:
        return math.ceil(len(self.problems) / self.size)

    def __getitem__(self, index: int) -> list[Problem]:
        mine = self.order[index * self.size : (index + 1) * self.size][self.rank :: self.world_size]
        return [self.problems[i] for i in mine]

    def shuffle(self, epoch: int) -> None:
        """Put the problems into the order of an epoch."""
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self.order = torch.randperm(len(self.problems), generator=generator).tolist()


class PhaseSampler(DistributedSampler[int]):
    """Walks the phases in order, from a given one; a DistributedSampler so that Lightning leaves the sharding to us."""

    def __init__(self, phases: Phases) -> None:
        super().__init__(cast("Dataset[int]", phases), num_replicas=1, rank=0, shuffle=False)
        self.phases = phases
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        # a generator, for a resumed fit makes the iterator before it says which epoch it is
        self.phases.shuffle(self.epoch)
        start, self.start = self.start, 0
        yield from range(start, len(self.phases))

    def __len__(self) -> int:
        return len(self.phases)


class ReasoningData(LightningDataModule):
    """The problems of one task.

    Args:
        task: a task plugin: its name, or {name: {option: value}}.
        prompts_per_step: unique prompts of a rollout phase, all ranks together (SFT: examples of an optimizer step).
        validation_problems: how many held-out problems a validation uses, the same ones every time.
        validation_batch: held-out problems answered at once, all ranks together; bounds memory, changes no result.
        seed: of the order of the problems; the command line links it to `seed_everything`.
    """

    def __init__(
        self,
        task: TaskRef,
        *,
        prompts_per_step: int = 16,
        validation_problems: int = 200,
        validation_batch: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("prompts_per_step", prompts_per_step), ("validation_batch", validation_batch)):
            if value < 1:
                raise UserError(f"data.{name} must be 1 or more, got {value}")
        if validation_problems < 0:
            raise UserError(f"data.validation_problems must be 0 (no validation) or more, got {validation_problems}")
        self.task_ref = TaskRef.of(task)
        self.prompts_per_step = prompts_per_step
        self.validation_problems = validation_problems
        self.validation_batch = validation_batch
        self.seed = seed
        self.phases_done = 0
        self._task: Task | None = None

    @property
    def task(self) -> Task:
        """The task, built on first use."""
        if self._task is None:
            self._task = self.task_ref.build()
        return self._task

    def setup(self, stage: str) -> None:
        """Read the problems now, so that missing data is found before a model loads."""
        if stage == "fit" and len(self.task.problems("train")) == 0:
            raise UserError(f"data.task '{self.task_ref.name}' has no problems to train on")

    def train_dataloader(self) -> DataLoader[list[Problem]]:
        phases = self._phases(self.task.problems("train"), self.prompts_per_step, self.seed)
        sampler = PhaseSampler(phases)
        sampler.start = self.phases_done % self._phases_an_epoch(len(phases))
        return _loader(phases, sampler)

    def _phases_an_epoch(self, there: int) -> int:
        """How many of them the trainer takes before it shuffles anew."""
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        return max(1, min(there, limit) if isinstance(limit, int) else int(there * limit))

    def val_dataloader(self) -> DataLoader[list[Problem]] | list[Any]:
        problems = self.task.problems("validation")
        count = min(self.validation_problems, len(problems))
        if count == 0:
            return []
        phases = self._phases([problems[i] for i in range(count)], self.validation_batch, None)
        return _loader(phases, PhaseSampler(phases))

    def test_dataloader(self) -> DataLoader[list[Problem]] | list[Any]:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[list[Problem]] | list[Any]:
        return self.val_dataloader()

    def observe(self, rollouts: Sequence[Rollout]) -> None:
        """Called by the modules after each phase: count it, and let an adaptive task see how it went."""
        self.phases_done += 1
        self.task.observe(rollouts)

    def state_dict(self) -> dict[str, Any]:
        return {"phases_done": self.phases_done, "task": self.task.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.phases_done = state_dict["phases_done"]
        self.task.load_state_dict(state_dict["task"])

    def _phases(self, problems: Sequence[Problem], size: int, seed: int | None) -> Phases:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Phases(problems, size, rank, world_size, seed)


def _loader(phases: Phases, sampler: PhaseSampler) -> DataLoader[list[Problem]]:
    # without a generator of its own each pass would draw a number from the global one, and a resumed run one more
    return DataLoader(phases, batch_size=None, sampler=sampler, generator=torch.Generator())
