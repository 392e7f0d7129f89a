"""What modules with rewards share: processes that score groups while others still generate, and where the time goes."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_reason.modules.base import Reasoner
from lit_reason.scoring import Scorer
from lit_reason.task import Task
from lit_reason.types import Rollout


class Rewarded(Reasoner):
    """A policy that learns from rewards.

    Attributes:
        scorer: scores rollouts, in this process or in workers; subclasses make it.
    """

    scorer: Scorer

    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), _RewardWorkers(self.scorer)]

    def on_group(self, group: list[Rollout]) -> None:
        """Have a group scored; not in validation, where the task alone judges."""
        if self.training:
            self.scorer.submit(group)

    def log_seconds(self, *, rollout: float, reward: float, update: float) -> None:
        """Log where the time of a phase went, as the mean over ranks.

        Args:
            rollout: seconds of generation.
            reward: seconds spent waiting for rewards once generation was over.
            update: seconds of learning.
        """
        self.log_phase({"rollout_seconds": [rollout], "reward_seconds": [reward], "update_seconds": [update]}, {})


class _RewardWorkers(Callback):
    """Keeps the workers of a scorer from before the model loads until the fit is over, however it ends."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # they import what they need while the model loads
            task = getattr(getattr(trainer, "datamodule", None), "task", None)
            self.scorer.start([task] if isinstance(task, Task) else [])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.scorer.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.scorer.close()
