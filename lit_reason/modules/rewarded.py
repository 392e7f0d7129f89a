"""What modules with rewards share: scoring while others still generate, how rewards did, and where the time goes."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_reason.findings import NONFINITE
from lit_reason.modules.base import Reasoner
from lit_reason.reward import WeightedReward
from lit_reason.scoring import Scorer
from lit_reason.scoring_group import Tally
from lit_reason.task import Task
from lit_reason.types import Rollout


class Rewarded(Reasoner):
    """A policy that learns from rewards.

    Attributes:
        rewards: what judges; subclasses build them.
        scorer: scores rollouts, in this process or in workers; subclasses make it.
    """

    rewards: list[WeightedReward]
    scorer: Scorer

    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), _RewardWorkers(self.scorer)]

    def rank_state(self) -> dict[str, Any]:
        return {**super().rank_state(), "scorer": self.scorer.state_dict()}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        super().load_rank_state(state)
        self.scorer.load_state_dict(state.get("scorer", {}))

    def on_group(self, group: list[Rollout]) -> None:
        """Have a group scored; not in validation, where the task alone judges."""
        if self.training:
            self.scorer.submit(group)

    def log_judging(self) -> None:
        """Log how each reward did since this was last called, on all ranks together; each of them must call it.

        As `train/reward/<name>/…`: `seconds` spent judging, over all processes and rows; `seconds_per_item`, where an
        item is a rollout, or a group for rewards that judge groups; `cached`, for rewards with a `cache_key`, the share
        of rows that got the judgement of another row; and by status the share of rows that have it, from the phase on
        in which it first appeared: `timeout` where the deadline passed, `failed` and `nonfinite` where the row was left
        out for it, and whatever the reward itself says. A reward that has only ever said "ok" has no statuses.
        As `train/nonfinite/<name>` and `train/failures/<name>`, where such rows are left out: their number.
        """
        everyone: list[dict[str, Tally]] = [self.scorer.take()]
        if self.trainer.world_size > 1:
            mine, everyone = everyone[0], [{}] * self.trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)  # ranks have seen different statuses
        for weighted in self.rewards:
            name, tally = weighted.name, Tally()
            for tallies in everyone:
                tally.add(tallies[name])
            figures = {f"reward/{name}/{figure}": value for figure, value in tally.figures(weighted).items()}
            if self.scorer.nonfinite == "mask":
                figures[f"nonfinite/{name}"] = float(tally.statuses[NONFINITE])
            if self.scorer.failures == "exclude":
                figures[f"failures/{name}"] = float(tally.failures)
            self.log_dict({f"train/{figure}": value for figure, value in figures.items()}, batch_size=1)

    def log_seconds(self, *, rollout: float, reward: float, update: float) -> None:
        """Log where the time of a phase went, as the mean over ranks.

        Args:
            rollout: seconds of generation.
            reward: seconds spent waiting for rewards once generation was over.
            update: seconds of learning.
        """
        self.log_phase({"rollout_seconds": [rollout], "reward_seconds": [reward], "update_seconds": [update]}, {})


class _RewardWorkers(Callback):
    """Sets rewards up, and keeps the workers of their scorer from before the model loads until the fit is over."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            task = getattr(getattr(trainer, "datamodule", None), "task", None)
            tasks = [task] if isinstance(task, Task) else []
            first = next((problems[0] for known in tasks if (problems := known.problems("train"))), None)
            for weighted in self.scorer.rewards:
                weighted.reward.setup(first)
            self.scorer.start(tasks)  # they import what they need while the model loads

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.scorer.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.scorer.close()
