"""What SFT, GRPO and RejectionSampling share: one policy, one update, one validation."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lit_reason.answer import correct
from lit_reason.correction import Correction, check_correction
from lit_reason.loading import check_quantization, resolve
from lit_reason.loss import Loss
from lit_reason.metrics import ReasoningMetrics
from lit_reason.modules.kept import Kept
from lit_reason.policy import Policy, PolicyOptions
from lit_reason.rollout import Engine, Sampling, random_stream, roll_out
from lit_reason.strategy import EndTogether
from lit_reason.types import Problem, Rollout, UserError
from lit_reason.update import Updater

VALIDATION_STREAM = -1
"""Phase number of validation's random stream: the same sampled completions at every validation of a like policy."""

UPDATE_STREAM = 2
"""Tells the random stream of an update (dropout of adapters) from that of the same phase's samples."""


class Reasoner(Kept, ABC):
    """A policy that learns to reason. Subclasses say what a training step does; see the arguments they share here.

    Args:
        policy: which model, and how to hold it.
        loss: what `update` minimises.
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
        engine: what generates; null is the in-process engine.
        correction: weigh tokens of a sampler that is not the trained policy.
        correction_cap: largest weight.

    Attributes:
        last_rollouts: the scored rollouts of the last training phase on this rank.
        last_validation: the greedy rollouts of the last validation on this rank.
        base_metrics: what validation said before the first step, None until then.
    """

    policy: Policy

    def __init__(
        self,
        *,
        policy: PolicyOptions,
        loss: Loss,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        sampling: Sampling,
        validation_samples: int = 0,
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
        super().__init__()
        self.automatic_optimization = False
        for name, value in (
            ("minibatches", minibatches),
            ("passes", passes),
            ("tokens_per_microbatch", tokens_per_microbatch),
        ):
            if value < 1:
                raise UserError(f"{name} must be 1 or more, got {value}")
        if validation_samples < 0:
            raise UserError(f"validation_samples must be 0 (greedy only) or more, got {validation_samples}")
        if gradient_clip is not None and gradient_clip <= 0:
            raise UserError(f"gradient_clip must be above 0, or null for no clipping, got {gradient_clip}")
        check_correction(correction, correction_cap)
        check_quantization(policy.quantization, policy.lora)
        resolve(policy.model)  # a missing folder is found now, not after the data was read
        self.policy_options = policy
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.sampling = sampling
        self.validation_samples = validation_samples
        self.seed = seed
        self.phase = 0
        self.metrics = ReasoningMetrics()
        self.last_rollouts: list[Rollout] = []
        self.last_validation: list[Rollout] = []
        self.base_metrics: dict[str, float] | None = None
        self._fitted = self._warned = self._unjudged = False
        self._restored: dict[str, Any] = {}  # of this rank, from a checkpoint
        self.updater = Updater(
            self,
            loss,
            temperature=sampling.temperature,
            max_completion_tokens=sampling.max_new_tokens,
            minibatches=minibatches,
            passes=passes,
            tokens_per_microbatch=tokens_per_microbatch,
            packing=packing,
            gradient_clip=gradient_clip,
            exact=engine is None or engine.exact,
            correction=correction,
            correction_cap=correction_cap,
        )
        self.engine = engine
        self.weights_moved = True  # since the engine was told

    # ------------------------------------------------------------------ the stages
    @abstractmethod
    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        """One phase: the stages in order."""

    def rollout(
        self, problems: Sequence[Problem], group_size: int = 1, sampling: Sampling | None = None
    ) -> list[Rollout]:
        """`group_size` completions of every problem that fits the context, group by group, without gradient."""
        sampling = sampling or self.sampling
        stream = (self.seed, self.phase)
        rollouts = self.sample(problems, sampling, group_size, stream=stream, on_group=self.on_group)
        if sampling.trained_temperature != self.updater.temperature:
            for rollout in rollouts:  # log-probabilities at another temperature are of no use to the update
                rollout.sampler_logprobs = None
        return rollouts

    def sample(
        self,
        problems: Sequence[Problem],
        sampling: Sampling,
        group_size: int,
        *,
        stream: Sequence[int],
        on_group: Callable[[list[Rollout]], None] | None = None,
    ) -> list[Rollout]:
        """`roll_out` by this module's engine, which has heard of the policy's last step; all ranks must take part."""
        with self.policy.whole():
            if self.engine is not None and self.weights_moved:
                self.engine.weights_changed(self.policy)
            self.weights_moved = False
            return roll_out(
                self.policy,
                problems,
                sampling,
                group_size,
                stream=stream,
                engine=self.engine,
                on_group=on_group,
            )

    def on_group(self, group: list[Rollout]) -> None:
        """Called by `rollout` with each group as soon as its last completion has finished, while others generate."""

    def update(self, rollouts: Sequence[Rollout]) -> None:
        """Minibatches -> micro-batches -> loss -> optimizer step."""
        with random_stream(self.seed, self.phase, self.global_rank, UPDATE_STREAM):
            metrics = self.updater(rollouts, seed=self.seed * 1_000_003 + self.phase)
        self.weights_moved = True
        self.log_dict({f"train/{name}": value for name, value in metrics.items()}, batch_size=1)

    def end_phase(self) -> None:
        """Count the phase, and let an adaptive task see how it went."""
        self.phase += 1
        observe = getattr(getattr(self.trainer, "datamodule", None), "observe", None)
        if observe is not None:
            observe(self.last_rollouts)

    def log_rollouts(self, rollouts: Sequence[Rollout], asked: int, seconds: float, rewards: Sequence[str]) -> None:
        """Log what a phase's rollouts look like, on all ranks together.

        Args:
            rollouts: scored rollouts.
            asked: how many there should have been; the difference had prompts too long for the context.
            seconds: spent generating.
            rewards: names of the rewards.

        Raises:
            UserError: no prompt has ever fitted the context.
        """
        means: dict[str, Sequence[float]] = {
            "reward": [r.reward for r in rollouts if r.reward is not None],
            "accuracy": [float(correct(r)) for r in rollouts],
            "length": [float(r.length) for r in rollouts],
            "truncated": [float(r.finish_reason == "length") for r in rollouts],
        }
        for name in rewards:
            means[f"reward/{name}"] = [v for r in rollouts if (v := r.rewards[name]) is not None]
        speed = sum(r.length for r in rollouts) / max(seconds, 1e-9)
        self.log_phase(means, {"tokens_per_second": speed, "too_long": float(asked - len(rollouts))})
        # a rank may have nothing but long prompts while others go on
        counts = [len(rollouts), asked, len(means["reward"])]
        made, wanted, judged = self.sum_of_ranks(torch.tensor(counts, device=self.device)).tolist()
        self._check_room(made, wanted)
        if made and not judged and not self._unjudged:
            self._unjudged = True
            rank_zero_warn(
                f"no reward applied to any of the {made} completions of a phase, so nothing is learnt from it. "
                "train/reward/<name>/... in metrics.csv says what became of them"
            )

    def log_phase(self, means: Mapping[str, Sequence[float]], sums: Mapping[str, float]) -> None:
        """Log means over the rows, and sums, of all ranks; every rank must name the same figures.

        Args:
            means: name -> this rank's rows, none at all where a figure applies to no row.
            sums: name -> this rank's part.
        """
        local = [(math.fsum(rows), float(len(rows))) for rows in means.values()] + [
            (part, 1.0) for part in sums.values()
        ]
        table = torch.tensor(local, dtype=torch.float32, device=self.device)  # bf16-true changes the default
        for name, (total, rows) in zip([*means, *sums], self.sum_of_ranks(table).tolist(), strict=True):
            if name in sums:
                self.log(f"train/{name}", total, batch_size=1)
            elif rows:
                self.log(f"train/{name}", total / rows, batch_size=1)

    def sum_of_ranks(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, each of which must ask for it."""
        reduced = self.trainer.strategy.reduce(value, reduce_op="sum")
        assert isinstance(reduced, Tensor)
        return reduced

    # ------------------------------------------------------------------ validation
    def validation_step(self, problems: list[Problem], batch_idx: int) -> None:
        """Answer held-out problems greedily, and `validation_samples` times by sampling."""
        check_problems(problems)
        greedy = self.rollout(problems, sampling=self.sampling.greedy())
        self._check_room(len(greedy), len(problems))
        sampled: list[list[Rollout]] = []
        if self.validation_samples:
            stream = (self.seed, VALIDATION_STREAM)
            flat = self.sample(problems, self.sampling, self.validation_samples, stream=stream)
            n = self.validation_samples
            sampled = [flat[i : i + n] for i in range(0, len(flat), n)]
        self.metrics.update(greedy, sampled)
        self.last_validation = (self.last_validation if batch_idx else []) + greedy

    def on_validation_epoch_end(self) -> None:
        metrics = {name: float(value) for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        if self.trainer.sanity_checking and self.base_metrics is None:
            self.base_metrics = metrics
            self._judge_base(metrics)
        if not self.trainer.sanity_checking:
            self.log_dict({f"val/{name}": value for name, value in metrics.items()})

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, problems: list[Problem], batch_idx: int) -> list[Rollout]:
        """Greedy completions."""
        check_problems(problems)
        return self.rollout(problems, sampling=self.sampling.greedy())

    def _judge_base(self, metrics: dict[str, float]) -> None:
        """Say how good the policy is before the first step, and warn when there is too little or nothing to learn."""
        shares = {
            name.removesuffix("_accuracy").replace("accuracy", "greedy"): metrics[name]
            for name in ("accuracy", "sampled_accuracy")
            if name in metrics
        }
        if not shares:
            return
        said = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        rank_zero_info(f"base accuracy before the first step: {said} on {metrics['problems']:.0f} held-out problems")
        # rewards see samples; the greedy answers stand in for them where none were drawn
        accuracy = shares.get("sampled", shares["greedy"])
        if accuracy < 0.1 and not self.learns_without_sampling:
            rank_zero_warn(
                f"base accuracy is {accuracy:.1%}: under 10 % there is little for sampling to find. "
                "Warm up with SFT first, or choose easier problems"
            )
        if accuracy > 0.95:
            rank_zero_warn(
                f"base accuracy is {accuracy:.1%}: over 95 % little is left to learn. Choose harder problems"
            )

    learns_without_sampling = False
    """True for modules that learn from worked examples; they need no base accuracy."""

    def _check_room(self, made: int, asked: int) -> None:
        """Say once that prompts were left out for want of context, and stop when none has ever fitted."""
        room = f"{self.sampling.max_new_tokens} new tokens in the model's context of {self.policy.context}"
        if asked and not made and not self._fitted:
            raise UserError(
                f"no prompt leaves room for {room}: lower sampling.max_new_tokens, or choose shorter problems "
                "or another model"
            )
        if made < asked and not self._warned:
            rank_zero_warn(
                f"{asked - made} of {asked} completions were left out: their prompts leave no room for {room}"
            )
            self._warned = True
        self._fitted = self._fitted or made > 0

    # ------------------------------------------------------------------ Lightning
    def configure_callbacks(self) -> list[Callback]:
        return [_PhaseEnd(), EndTogether()]

    def configure_model(self) -> None:
        """Load the policy; lazily, so that sharding strategies can prepare for it, and once."""
        if "policy" not in self._modules:
            strategy = self.trainer.strategy if self._trainer is not None else None  # None: a checkpoint, to look at
            if isinstance(strategy, FSDPStrategy) and self.policy_options.quantization is not None:
                raise UserError("policy.quantization: FSDP's first generation cannot shard it: choose strategy fsdp2")
            if self.device_mesh is not None and self.policy_options.quantization == "int8":
                raise UserError("policy.quantization: int8 cannot be sharded: choose nf4, or --trainer.strategy ddp")
            self.policy = Policy(self.policy_options, None if strategy is None else strategy.root_device)
            if self.updater.packing and not self.policy.packs:
                rank_zero_warn(f"packing is off: '{self.policy_options.model}' would mix sequences packed into one row")
            if self.updater.loss.needs_reference:
                self.policy.keep_reference()
            if self.policy.base is not None:
                self.strict_loading = False  # the base's weights are not in checkpoints; see load_state_dict
            if self.device_mesh is not None:  # the strategy shards
                self.policy.shard(self.device_mesh["data_parallel"], self.trainer.precision)
            if isinstance(strategy, FSDPStrategy):
                self.policy = cast("Policy", self.policy.wrap(strategy))  # it passes on what it does not know

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's many accepted forms
        optimizer = self.make_optimizer([p for p in self.policy.parameters() if p.requires_grad])
        # the gradient scaler of 16-mixed and fused kernels would both undo its scale
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            _fuse(optimizer)
        if self.make_lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_lr_scheduler(optimizer)}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Problems are text; micro-batches move when they are made."""
        return batch


class _PhaseEnd(Callback):
    """Ends a phase before any checkpoint of it is written: a module's own hook comes after those of all callbacks."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401 - unused
        cast("Reasoner", pl_module).end_phase()


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let torch's Adam use its fused kernel, where nothing else was asked for.

    No other optimizer: torch 2.13's fused SGD leaves most bfloat16 weights on a CPU as they are.
    """
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.Adam) else ():
        if group["fused"] is None and group["foreach"] is None and not group["differentiable"]:
            group["fused"] = True


def check_problems(batch: object) -> None:
    """A batch must be a list of problems; say how to get one when it is not."""
    if not isinstance(batch, list) or not all(isinstance(p, Problem) for p in batch):
        raise UserError(
            f"a batch must be a list of lit_reason.Problem, got {type(batch).__name__}: "
            "give your DataLoader collate_fn=list"
        )


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start
