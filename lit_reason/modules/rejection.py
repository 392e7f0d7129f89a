"""Rejection sampling: sample, keep what is verified correct, imitate it; repeat.

    lit-reason fit --config configs/rejection.yaml

One Lightning batch is one round: `prompts_per_step` prompts, `group_size` samples each, then `passes` over what was
kept. With `restart` every round starts from the base weights (STaR, arXiv 2203.14465), so that the policy is always one
fine-tuning away from them; without it rounds build on each other (expert iteration). `rationalize` asks again with the
answer as a hint where no sample was correct, and learns the explanation as if there had been no hint (STaR's second
idea). What was kept is written to `accepted.jsonl`, ready for the `dataset` task.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn

from lit_reason.losses.cross_entropy import CrossEntropy
from lit_reason.modules.base import Stopwatch, check_problems
from lit_reason.modules.rewarded import Rewarded
from lit_reason.plugins import RewardRef
from lit_reason.policy import PolicyOptions
from lit_reason.reward import weighted_rewards
from lit_reason.rollout import Engine, Sampling
from lit_reason.scoring import Failures, Scorer
from lit_reason.types import Problem, Rollout, UserError

Select = Literal["first", "shortest", "longest", "random"]

HINT_STREAM = 1
"""Tells the random stream of hinted samples from the plain ones of the same phase."""


class RejectionSampling(Rewarded):
    """Fine-tune the policy on its own verified samples (STaR, ReST, R1's fourth stage).

    Args:
        rewards: what judges a completion; one is kept when its weighted sum reaches `threshold`.
        policy: which model, and how to hold it.
        group_size: samples for each prompt.
        threshold: least reward of a sample that is kept.
        select: which of a prompt's good samples to keep: the first, the shortest, the longest, or at random.
        keep: how many of them.
        restart: begin every round from the base weights and a fresh optimizer, instead of continuing.
        rationalize: where no sample is good, sample again with the answer as a hint, and learn it without the hint.
        hint: how the hint is added to the last user turn; `{answer}` becomes the gold answer.
        failures: a reward that raises, ends its process or returns what is no reward is an `error`; or such samples are
            `exclude`d and counted.
        reward_workers: processes of each rank that score groups while others still generate; worth it for rewards that
            take milliseconds. 0 scores in the training process, but for rewards with a deadline or a bound on memory,
            which get two processes of their own. Async rewards wait in the training process, all at once.
        optimizer: builds the optimizer from the trainable parameters.
        lr_scheduler: builds a scheduler from the optimizer; it steps once per optimizer step.
        sampling: how completions are drawn.
        validation_samples: sampled completions for each held-out problem, beside the greedy one; 0 for greedy only.
        minibatches: optimizer steps cut from one pass over a round's kept samples.
        passes: passes over a round's kept samples.
        tokens_per_microbatch: most input tokens, padding included, in one forward and backward pass; bounds memory.
        packing: put several sequences into one row of input.
        gradient_clip: clip the gradient's norm to this; null never clips.
        seed: of sampling, selection and shuffles; the command line links it to `seed_everything`.
        engine: what generates: null for the in-process engine, or class_path ContinuousBatching or VLLM with options.

    Raises:
        UserError: an option, a plugin or the model folder is wrong; one line says which.
    """

    def __init__(
        self,
        rewards: Sequence[RewardRef],
        *,
        policy: PolicyOptions = PolicyOptions(),
        group_size: int = 16,
        threshold: float = 1.0,
        select: Select = "random",
        keep: int = 1,
        restart: bool = False,
        rationalize: bool = False,
        hint: str = "\n\nHint: the answer is {answer}.",
        failures: Failures = "error",
        reward_workers: int = 0,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        sampling: Sampling = Sampling(),
        validation_samples: int = 4,
        minibatches: int = 8,
        passes: int = 1,
        tokens_per_microbatch: int = 16384,
        packing: bool = True,
        gradient_clip: float | None = 1.0,
        seed: int = 0,
        engine: Engine | None = None,
    ) -> None:
        for name, value in (("group_size", group_size), ("keep", keep)):
            if value < 1:
                raise UserError(f"{name} must be 1 or more, got {value}")
        if rationalize and "{answer}" not in hint:
            raise UserError("hint must contain {answer}, the place of the gold answer")
        self.rewards = weighted_rewards(rewards)
        super().__init__(
            policy=policy,
            loss=CrossEntropy(),
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
        )
        self.group_size, self.threshold = group_size, threshold
        self.select_by: Select = select
        self.keep, self.restart = keep, restart
        self.rationalize, self.hint = rationalize, hint
        self.scorer = Scorer(self.rewards, workers=reward_workers, failures=failures)
        self._base: dict[str, torch.Tensor] = {}

    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        check_problems(problems)
        watch = Stopwatch()
        rollouts = self.rollout(problems, self.group_size)
        rolled_out = watch.seconds
        self.last_rollouts = rollouts = self.score(rollouts)
        scored = watch.seconds
        self.log_rollouts(rollouts, len(problems) * self.group_size, rolled_out, [w.name for w in self.rewards])
        accepted = self.select(rollouts)
        explained: list[Rollout] = []
        if self.rationalize:
            solved = {r.group for r in accepted}
            explained = self.explain([p for g, p in enumerate(problems) if g not in solved])
        self.log_judging()
        self.log_phase({}, {"accepted": float(len(accepted)), "rationalized": float(len(explained))})
        accepted += explained
        self._write(accepted)
        if self.restart and self.phase > 0:
            self._back_to_base()
        watch_update = Stopwatch()
        if accepted or self.trainer.world_size > 1:
            self.update(accepted)
        else:
            rank_zero_warn(
                f"round {self.phase}: no sample reached the threshold of {self.threshold}; nothing was learnt"
            )
        self.log_seconds(rollout=rolled_out, reward=scored - rolled_out, update=watch_update.seconds)

    def score(self, rollouts: list[Rollout]) -> list[Rollout]:
        """Every reward by name, and their weighted sum."""
        self.scorer.collect(rollouts)
        return rollouts

    def select(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The samples to learn from: finished, good enough, distinct; at most `keep` for each prompt."""
        good: dict[int, dict[str, Rollout]] = defaultdict(dict)
        for rollout in rollouts:
            if rollout.reward is not None and rollout.reward >= self.threshold and rollout.finish_reason == "stop":
                good[rollout.group].setdefault(rollout.text.strip(), rollout)
        chooser = random.Random(self.seed * 1_000_003 + self.phase)
        accepted: list[Rollout] = []
        for group in sorted(good):
            candidates = list(good[group].values())
            if self.select_by == "random":
                chooser.shuffle(candidates)
            elif self.select_by != "first":
                candidates.sort(key=lambda r: r.length, reverse=self.select_by == "longest")
            accepted += candidates[: self.keep]
        return accepted

    def explain(self, problems: Sequence[Problem]) -> list[Rollout]:
        """STaR's rationalisation: sample with the answer as a hint, keep what is good, and take the hint away."""
        hinted = [self._with_hint(p) for p in problems if p.answer is not None]
        plain = {id(h): p for h, p in zip(hinted, [p for p in problems if p.answer is not None], strict=True)}
        stream = (self.seed, self.phase, HINT_STREAM)
        rollouts = self.sample(hinted, self.sampling, self.group_size, stream=stream, on_group=self.on_group)
        accepted = self.select(self.score(rollouts))
        for rollout in accepted:
            rollout.problem = plain[id(rollout.problem)]
            rollout.sampler_logprobs = None  # they were those of the prompt with the hint
            rollout.prompt_ids = self.policy.render(rollout.problem.prompt, rollout.problem.think)
        return accepted

    def _with_hint(self, problem: Problem) -> Problem:
        last = problem.prompt[-1]
        asked = {**last, "content": last["content"] + self.hint.replace("{answer}", str(problem.answer))}
        return replace(problem, prompt=[*problem.prompt[:-1], asked])

    # ------------------------------------------------------------------ rounds
    def configure_model(self) -> None:
        super().configure_model()
        if self.restart and not self._base:  # before a checkpoint is restored: these are the base weights
            trainable = {n: p for n, p in self.policy.named_parameters() if p.requires_grad}
            self._base = {name: parameter.detach().cpu().clone() for name, parameter in trainable.items()}

    @torch.no_grad()
    def _back_to_base(self) -> None:
        for name, parameter in self.policy.named_parameters():
            if name in self._base:
                parameter.copy_(self._base[name])
        optimizer: Any = self.optimizers()
        optimizer.optimizer.state.clear()
        self.weights_moved = True

    def _write(self, accepted: Sequence[Rollout]) -> None:
        """Append the round's accepted samples to accepted.jsonl, in the columns the `dataset` task reads."""
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        name = "accepted.jsonl" if self.trainer.world_size == 1 else f"accepted-rank{self.global_rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("a", encoding="utf-8") as file:
            for rollout in accepted:
                row = {
                    "prompt": rollout.problem.prompt,
                    "completion": rollout.text.strip(),
                    "answer": rollout.problem.answer,
                    "task": rollout.problem.task,
                    "id": rollout.problem.id,
                    "reward": rollout.reward,
                    "round": self.phase,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
