"""GRPO: sample a group of completions, score them by rule, reinforce the better ones of each group.

After arXiv 2402.03300, with the options its successors added: DAPO's token-level loss and clip-higher (the default),
Dr. GRPO's unbiased normalisers, GSPO's sequence ratio, two-sided clipping. Unlike the paper there is no reference model
unless the loss asks for one (`beta`).

    lit-reason fit --config configs/grpo.yaml
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_reason.advantage import Advantage, advantages, normalized_sum, std
from lit_reason.correction import Correction
from lit_reason.modules.base import Stopwatch, check_problems
from lit_reason.modules.rewarded import Rewarded
from lit_reason.plugins import LossRef, RewardRef
from lit_reason.policy import PolicyOptions
from lit_reason.reward import weighted_rewards
from lit_reason.rollout import Engine, Sampling
from lit_reason.scoring import Failures, Nonfinite, Scorer
from lit_reason.steps import credit_steps, outcomes, weighted_sums
from lit_reason.types import Problem, Rollout, UserError


class GRPO(Rewarded):
    """Group Relative Policy Optimization and its family.

    Args:
        rewards: what judges a completion: names, {name: {option: value, weight: w}}, or functions of a rollout, which
            may be async. One of weight 0 is a metric: it is logged and not learnt from.
        policy: which model, and how to hold it.
        loss: what to minimise: a name, or {name: {option: value}}.
        group_size: completions a prompt.
        advantage: what a completion is compared with: `group` (mean and std of its group), `batch` (its group's mean,
            std of all), `none` (the mean only, Dr. GRPO), `rloo` (the mean of the others), `reinforce++` (its group's
            mean, then whitened over all), `normalize_then_sum` (GDPO: each reward standardised in its group before the
            weighted sum, which is standardised over all, so that steps do not grow with the number of rewards).
        mask_truncated: completions cut off at `max_new_tokens` count neither in the loss nor in its normaliser.
        nonfinite: a reward of NaN or infinity is an `error`, or `mask`ed and counted.
        failures: a reward that raises, ends its process or returns what is no reward is an `error`; or such rows are
            `exclude`d and counted, unmasked NaN and infinity among them.
        reward_workers: processes of each rank that score groups while others still generate; worth it for rewards that
            take milliseconds. 0 scores in the training process, but for rewards with a deadline or a bound on memory,
            which get two processes of their own. Async rewards wait in the training process, all at once.
        optimizer: builds the optimizer from the trainable parameters.
        lr_scheduler: builds a scheduler from the optimizer; it steps once per optimizer step.
        sampling: how completions are drawn, in training and for sampled validation.
        validation_samples: sampled completions for each held-out problem, beside the greedy one; 0 for greedy only.
        minibatches: optimizer steps cut from one pass over a rollout phase.
        passes: passes over a rollout phase (the PPO epochs).
        tokens_per_microbatch: most input tokens, padding included, in one forward and backward pass; bounds memory.
        packing: put several sequences into one row of input.
        gradient_clip: clip the gradient's norm to this; null never clips.
        seed: of sampling and of shuffles; the command line links it to `seed_everything`.
        engine: what generates: null for the in-process engine, or class_path ContinuousBatching or VLLM with options.
        correction: for an engine that is not the trained policy to the last digit: truncate each token's importance
            weight at `correction_cap` (tis), leave out tokens beyond it (mis), or only measure (none).
        correction_cap: see `correction`.

    Raises:
        UserError: an option, a plugin or the model folder is wrong; one line says which.
    """

    def __init__(
        self,
        rewards: Sequence[RewardRef],
        *,
        policy: PolicyOptions = PolicyOptions(),
        loss: LossRef = LossRef("dapo"),
        group_size: int = 8,
        advantage: Advantage = "group",
        mask_truncated: bool = False,
        nonfinite: Nonfinite = "error",
        failures: Failures = "error",
        reward_workers: int = 0,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        sampling: Sampling = Sampling(),
        validation_samples: int = 4,
        minibatches: int = 1,
        passes: int = 1,
        tokens_per_microbatch: int = 16384,
        packing: bool = False,
        gradient_clip: float | None = 1.0,
        seed: int = 0,
        engine: Engine | None = None,
        correction: Correction = "tis",
        correction_cap: float = 2.0,
    ) -> None:
        if group_size < 2:
            raise UserError(f"group_size must be 2 or more, to compare completions with each other; got {group_size}")
        if sampling.temperature == 0:
            raise UserError("sampling.temperature must be above 0: greedy completions of a group are all the same")
        self.rewards = weighted_rewards(rewards)
        super().__init__(
            policy=policy,
            loss=LossRef.of(loss).build(),
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            sampling=sampling,
            validation_samples=validation_samples,
            minibatches=minibatches,
            passes=passes,
            tokens_per_microbatch=tokens_per_microbatch,
            packing=packing,
            gradient_clip=gradient_clip,
            seed=seed,
            engine=engine,
            correction=correction,
            correction_cap=correction_cap,
        )
        self.group_size = group_size
        self.advantage: Advantage = advantage
        self.mask_truncated = mask_truncated
        self.scorer = Scorer(self.rewards, workers=reward_workers, nonfinite=nonfinite, failures=failures)

    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        check_problems(problems)
        watch = Stopwatch()
        rollouts = self.rollout(problems, self.group_size)
        rolled_out = watch.seconds
        self.last_rollouts = rollouts = self.score(rollouts)
        scored = watch.seconds
        self.log_rollouts(rollouts, len(problems) * self.group_size, rolled_out, [w.name for w in self.rewards])
        self.log_judging()
        rollouts = self.credit(rollouts)
        watch_update = Stopwatch()
        self.update(rollouts)
        self.log_seconds(rollout=rolled_out, reward=scored - rolled_out, update=watch_update.seconds)

    def score(self, rollouts: list[Rollout]) -> list[Rollout]:
        """Every reward by name, and their weighted sum."""
        self.scorer.collect(rollouts)
        return rollouts

    def credit(self, rollouts: list[Rollout]) -> list[Rollout]:
        """An advantage for every completion, or for each of its tokens where a reward scored steps.

        Truncated completions leave the loss when `mask_truncated`.
        """
        groups, weights = [r.group for r in rollouts], [w.weight for w in self.rewards]
        rewards = [outcomes(rollouts, w.name) for w in self.rewards]
        if self.advantage == "normalize_then_sum":
            values = normalized_sum(rewards, weights, groups, self._spread)
        else:
            values = advantages(weighted_sums(rewards, weights), groups, self.advantage, self._spread)
        for rollout, value in zip(rollouts, values.tolist(), strict=True):
            rollout.advantage = value
            if self.mask_truncated and rollout.finish_reason == "length":
                rollout.mask = torch.zeros(rollout.length, dtype=torch.bool)
        for weighted in self.rewards:
            credit_steps(rollouts, weighted, self.policy.decode, self.advantage)
        informative = [float(bool(torch.as_tensor(r.advantage).any())) for r in rollouts]
        self.log_phase({"informative": informative}, {})
        return rollouts

    def _spread(self, values: Tensor) -> float:
        """The standard deviation of values of a phase over all ranks, each of which must ask for it."""
        if self.trainer.world_size == 1:
            return std(values)
        here = values.to(self.device)
        n, total = self.sum_of_ranks(here.new_tensor([len(here), float(here.sum())])).tolist()
        squares = self.sum_of_ranks((here - total / max(n, 1.0)).square().sum())
        return math.sqrt(float(squares) / max(n - 1.0, 1.0))
