"""Stage 6, second half: rollouts become optimizer steps; blind to the algorithm.

A phase's rollouts are cut into windows (one optimizer step each), a window into micro-batches (one forward and backward
each) by a token budget. Every normaliser is a total over the window and over all ranks, so a window's gradient does not
depend on its micro-batches or ranks (`bnpo`'s does, by definition). Lightning's own accumulation averages micro-batches
unweighted and does not have this property, which is why the modules optimise manually.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from lit_reason.attention import ON_CPU
from lit_reason.batching import collate, learns, micro_batches, minibatches, total_length
from lit_reason.correction import Correction, importance_weights
from lit_reason.loss import Loss, skips_zero_advantages
from lit_reason.policy import Policy
from lit_reason.sharding import whole_tensor
from lit_reason.types import LossInputs, MicroBatch, Problem, Rollout, UserError, Window

_NOBODY = Problem(prompt=[])


class Updater:
    """Turns a phase's rollouts into optimizer steps on a Lightning module.

    Args:
        module: whose optimizer, scheduler, trainer and `policy` are used.
        loss: what is minimised.
        temperature: of the sampling; the trained log-probabilities use it too.
        max_completion_tokens: the sampling limit, for losses that divide by it.
        minibatches: optimizer steps cut from one pass over the rollouts.
        passes: passes over the rollouts.
        tokens_per_microbatch: most input tokens, padding included, in one forward and backward pass.
        packing: put several sequences into a row of input, for architectures whose attention is not known; for all
            others there is no padding, and the completions of a prompt share it.
        gradient_clip: clip the gradient's norm to this; None never clips.
        exact: the sampler is the trained policy; where it is not, each token is weighted by how far they are apart.
        correction: how, see `correction.py`.
        correction_cap: its cap.
    """

    def __init__(
        self,
        module: LightningModule,
        loss: Loss,
        *,
        temperature: float,
        max_completion_tokens: int,
        minibatches: int,
        passes: int,
        tokens_per_microbatch: int,
        packing: bool,
        gradient_clip: float | None,
        exact: bool = True,
        correction: Correction = "tis",
        correction_cap: float = 2.0,
    ) -> None:
        self.module = module
        self.loss = loss
        self.temperature = temperature if temperature > 0 else 1.0  # greedy sampling trains the plain distribution
        self.max_completion_tokens = max_completion_tokens
        self.minibatches = minibatches
        self.passes = passes
        self.tokens_per_microbatch = tokens_per_microbatch
        self.packing = packing
        self.gradient_clip = gradient_clip
        self.exact, self.correction, self.correction_cap = exact, correction, correction_cap
        self.corrects = not exact and loss.needs_advantages  # imitation does not ask who wrote what it imitates
        self.skips = loss.needs_advantages and skips_zero_advantages(loss)

    @property
    def policy(self) -> Policy:
        return cast("Policy", self.module.policy)  # or what a strategy has wrapped around it

    def __call__(self, rollouts: Sequence[Rollout], seed: int) -> dict[str, float]:
        """Take `passes` x `minibatches` optimizer steps.

        Args:
            rollouts: this rank's; those on which no token learns are left out of numerators and denominators.
            seed: of the shuffle into minibatches.

        Returns:
            Means over the steps: loss, grad_norm, learning_rate; and, over tokens of completions that are not skipped,
            entropy and what the loss reports.
        """
        learning = [r for r in rollouts if bool(learns(r).any())]
        generator = torch.Generator().manual_seed(seed)
        passes = [minibatches(learning, self.minibatches, generator) for _ in range(self.passes)]
        if self.passes * self.minibatches > 1 and self.loss.needs_advantages:
            if self._everywhere(self._sampler_is_policy(learning)):
                for rollout in learning:
                    rollout.old_logprobs = rollout.sampler_logprobs
            else:
                # the policy has not moved before the first window, whose own forward pass supplies them
                with self.policy.whole():
                    self._fill([r for window in passes[0][1:] for r in window if not self._idle(r)], "old_logprobs")
        if self.loss.needs_reference:
            with self.policy.reference():
                self._fill(learning, "reference_logprobs")
        history: dict[str, list[float]] = defaultdict(list)
        for windows in passes:
            for window in windows:
                for name, value in self.step(window).items():
                    history[name].append(value)
        return {name: sum(values) / len(values) for name, values in history.items()}

    def _sampler_is_policy(self, rollouts: Sequence[Rollout]) -> bool:
        """Whether what the sampler reported is what a forward pass would say, to the rounding of float32."""
        lora = self.policy.options.lora
        float32 = {p.dtype for p in self.policy.parameters()} == {torch.float32}
        float32 = float32 and self.module.trainer.precision == "32-true"
        known = all(r.sampler_logprobs is not None and len(r.sampler_logprobs) == r.length for r in rollouts)
        shared = all(total_length(r) <= self.policy.window for r in rollouts)
        return self.exact and float32 and known and shared and (lora is None or lora.dropout == 0)

    def _idle(self, rollout: Rollout) -> bool:
        """Whether a rollout adds nothing to the gradient, only to the normaliser."""
        return self.skips and not bool(torch.as_tensor(rollout.advantage).any())

    def _cut(self, rollouts: Sequence[Rollout]) -> list[tuple[list[Rollout], MicroBatch]]:
        """Micro-batches of a window, and the rollouts in each."""
        longest = max((total_length(r) for r in rollouts), default=0)
        sharing, packing = longest <= self.policy.window, self.packing and self.policy.packs
        copies = self.module.device.type != ON_CPU
        groups = micro_batches(
            rollouts, self.tokens_per_microbatch, packing=packing, sharing=sharing, prompt_copies=copies
        )
        return [(group, collate(group, packing=packing, sharing=sharing)) for group in groups]

    @torch.no_grad()
    def _fill(self, rollouts: Sequence[Rollout], field: str) -> None:
        """Store the log-probabilities the policy now gives, on each rollout."""
        for group, batch in self._cut(rollouts):
            _store(self.policy.logprobs(self._to_device(batch), self.temperature)[0], group, field)

    def step(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """One optimizer step on one window; none when the window is empty on every rank, for there is no gradient."""
        parts = self._cut([r for r in rollouts if not self._idle(r)])
        window, rounds, seen = self._measure(rollouts, parts)
        if window.sequences == 0:
            return {}
        # ranks must run backward equally often, so a rank with fewer micro-batches adds some in which nothing learns
        parts += [([], self._nothing()) for _ in range(rounds - len(parts))]
        optimizer = self.module.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        self._largest_ratio = torch.zeros((), dtype=torch.float32, device=self.module.device)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float32, device=self.module.device))
        for index, (group, batch) in enumerate(parts):
            with nullcontext() if index == len(parts) - 1 else self._no_sync():
                logprobs = self._backward(self._to_device(batch), window, sums)
            if self.passes > 1 and batch.old_logprobs is None:
                _store(logprobs, group, "old_logprobs")
        metrics = {name: float(self._reduce(value, "sum")) for name, value in sums.items()}
        loss = metrics.pop("loss", 0.0)
        metrics = {name: value / seen for name, value in metrics.items() if seen}
        metrics["loss"] = loss
        if self.corrects and seen:
            metrics["sampler_ratio_max"] = float(self._reduce(self._largest_ratio, "max"))
        metrics["grad_norm"] = self._clip(optimizer)
        metrics["learning_rate"] = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler = self.module.lr_schedulers()
        if scheduler is not None:
            scheduler.step()  # type: ignore[union-attr]  # one optimizer has one scheduler
        return metrics

    def _backward(self, batch: MicroBatch, window: Window, sums: dict[str, Tensor]) -> Tensor:
        """Forward, loss and backward of a micro-batch; its log-probabilities (B, T)."""
        logprobs: Tensor
        logprobs, entropies = self.policy(batch, self.temperature)
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        weights = None
        if self.corrects:
            # a sampler that did not say counts as one that agrees, so that every rank reports the same figures
            sampler = old if batch.sampler_logprobs is None else batch.sampler_logprobs
            weights, mismatch = importance_weights(old, sampler, batch.mask, self.correction, self.correction_cap)
            sums["sampler_ratio"] += mismatch.ratio
            sums["sampler_cut"] += mismatch.cut
            self._largest_ratio = torch.maximum(self._largest_ratio, mismatch.largest)
        inputs = LossInputs(
            logprobs=logprobs,
            old_logprobs=old,
            weights=weights,
            advantages=batch.advantages,
            mask=batch.mask,
            entropies=entropies,
            window=window,
            reference_logprobs=batch.reference_logprobs,
        )
        output = self.loss(inputs)
        # the strategy averages gradients over ranks; the shares are of the whole window, so undo that
        self.module.manual_backward(output.loss * self.module.trainer.world_size)
        sums["loss"] += output.loss.detach()
        sums["entropy"] += torch.where(batch.mask, entropies, 0.0).sum()
        for name, value in output.metrics.items():
            sums[name] += value
        return logprobs.detach()

    def _measure(
        self, rollouts: Sequence[Rollout], parts: Sequence[tuple[list[Rollout], MicroBatch]]
    ) -> tuple[Window, int, float]:
        """Over all ranks: the window's totals, the micro-batches each rank runs, the learning tokens in them.

        Rollouts that are skipped count in the totals, which the formulas divide by.
        """
        tokens = sum(int(learns(r).sum()) for r in rollouts)
        seen = sum(int(batch.mask.sum()) for _, batch in parts)
        local = torch.tensor([len(rollouts), tokens, len(parts), seen], device=self.module.device)
        total = self._reduce(local, "sum").tolist()
        # at least one: with nothing but skipped rollouts the gradient is zero, and the optimizer still steps
        rounds = max(1, int(self._reduce(torch.tensor(len(parts), device=self.module.device), "max")))
        window = Window(
            sequences=total[0],
            tokens=total[1],
            micro_batches=total[2],
            max_completion_tokens=self.max_completion_tokens,
        )
        return window, rounds, total[3]

    def _nothing(self) -> MicroBatch:
        """A micro-batch that learns nothing and still connects every parameter to the graph."""
        token = torch.tensor([self.policy.pad_id])
        rollout = Rollout(
            problem=_NOBODY, prompt_ids=token, completion_ids=token, text="", mask=torch.zeros(1, dtype=torch.bool)
        )
        batch = collate([rollout], sharing=self.policy.window > 1)
        batch.old_logprobs = batch.reference_logprobs = torch.zeros(1, 1, dtype=torch.float32)
        return batch

    def _clip(self, optimizer: object) -> float:
        """Clip, and report the norm before it; a gradient that is not finite would ruin the weights, so stop."""
        if isinstance(self.policy, FullyShardedDataParallel):  # its norm is not the norm of what this rank has
            norm = float(self.policy.clip_grad_norm_(self.gradient_clip or math.inf))
            self._check_finite(norm)
            return norm
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        scaler = getattr(self.module.trainer.precision_plugin, "scaler", None)
        # `16-mixed` undoes its scale inside optimizer.step(), and skips a step that overflowed
        scale = 1.0 if scaler is None else scaler.get_scale()
        norm = float(whole_tensor(torch.nn.utils.get_total_norm(gradients))) / scale if gradients else 0.0
        if scaler is None:
            self._check_finite(norm)
        if self.gradient_clip is not None:
            self.module.clip_gradients(
                optimizer,  # type: ignore[arg-type]  # LightningOptimizer forwards to the optimizer it wraps
                gradient_clip_val=self.gradient_clip * scale,
                gradient_clip_algorithm="norm",
            )
        return norm

    def _check_finite(self, norm: float) -> None:
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient of step {self.module.global_step} is {norm}; the weights were left as they are. "
                "Lower the learning rate, set loss option 'delta', or use float32"
            )

    def _no_sync(self) -> AbstractContextManager[None]:
        """Under DDP, keep gradients local until the window's last micro-batch."""
        no_sync: Callable[[], AbstractContextManager[None]] | None
        no_sync = getattr(self.module.trainer.model, "no_sync", None)
        return nullcontext() if no_sync is None else no_sync()

    def _reduce(self, value: Tensor, operation: str) -> Tensor:
        reduced = self.module.trainer.strategy.reduce(value, reduce_op=operation)
        assert isinstance(reduced, Tensor)
        return reduced

    def _everywhere(self, here: bool) -> bool:
        """Whether something is so on all ranks, each of which must ask."""
        there = self._reduce(torch.tensor(float(not here), device=self.module.device, dtype=torch.float32), "sum")
        return not bool(there)

    def _to_device(self, batch: MicroBatch) -> MicroBatch:
        for name in MicroBatch.__dataclass_fields__:
            value = getattr(batch, name)
            if isinstance(value, Tensor):
                setattr(batch, name, value.to(self.module.device, non_blocking=True))
        return batch


def _store(logprobs: Tensor, rollouts: Sequence[Rollout], field: str) -> None:
    """Keep each rollout's row of (B, T) log-probabilities on it."""
    for rollout, row in zip(rollouts, logprobs.cpu(), strict=False):
        setattr(rollout, field, row[: rollout.length].clone())
