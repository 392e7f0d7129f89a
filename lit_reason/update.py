"""Stage 6: rollouts become optimizer steps; blind to the algorithm.

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
from functools import partial
from itertools import pairwise

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_reason.attention import Family, SharedPrompts
from lit_reason.loss import Loss, skips_zero_advantages
from lit_reason.policy import Policy
from lit_reason.types import LossInputs, MicroBatch, Problem, Rollout, UserError, Window

_NOBODY = Problem(prompt=[])


def learns(rollout: Rollout) -> Tensor:
    """(T_i,) bool, True on the tokens of a rollout that learn."""
    return torch.ones(rollout.length, dtype=torch.bool) if rollout.mask is None else rollout.mask


def minibatches(rollouts: Sequence[Rollout], count: int, generator: torch.Generator) -> list[list[Rollout]]:
    """Cut rollouts into `count` windows of like size, shuffled when there is more than one; no size needs to divide."""
    if count == 1:
        return [list(rollouts)]
    order = torch.randperm(len(rollouts), generator=generator).tolist()
    edges = [round(i * len(order) / count) for i in range(count + 1)]
    return [[rollouts[i] for i in order[a:b]] for a, b in pairwise(edges)]


def micro_batches(
    rollouts: Sequence[Rollout], token_budget: int, *, packing: bool = False, sharing: bool = False
) -> list[list[Rollout]]:
    """Cut a window into groups whose input tensor holds at most `token_budget` tokens, longest rollouts first.

    Sorting by length keeps padding small and memory independent of the window's longest completion; with `sharing`,
    completions of one prompt stay side by side instead, and the prompt counts once. A rollout longer than the budget
    gets a micro-batch of its own.
    """
    if sharing:
        return _sharing_prompts(rollouts, token_budget)
    groups: list[list[Rollout]] = []
    rows: list[int] = []  # tokens in each row of the group being filled
    for rollout in sorted(rollouts, key=_total_length, reverse=True):
        size = _total_length(rollout)
        width = _total_length(groups[-1][0]) if groups else 0
        fits_row = packing and any(used + size <= width for used in rows)
        if groups and (fits_row or (len(rows) + 1) * width <= token_budget):
            groups[-1].append(rollout)
        else:
            groups.append([rollout])
            rows = []
        _place(rows, size, _total_length(groups[-1][0]) if packing else 0)
    return groups


def _sharing_prompts(rollouts: Sequence[Rollout], token_budget: int) -> list[list[Rollout]]:
    by_prompt = sorted(_by_prompt(rollouts).values(), key=lambda group: _total_length(group[0]), reverse=True)
    groups: list[list[Rollout]] = []
    used = 0
    for same in by_prompt:
        prompt = len(same[0].prompt_ids)
        fresh = True  # the prompt is not in the micro-batch yet
        for rollout in same:
            size = rollout.length + (prompt if fresh else 0)
            if not groups or used + size > token_budget:
                groups.append([])
                used, size = 0, rollout.length + prompt
            groups[-1].append(rollout)
            used += size
            fresh = False
    return groups


def _by_prompt(rollouts: Sequence[Rollout]) -> dict[bytes, list[Rollout]]:
    """Rollouts with the same prompt tokens side by side, longest first."""
    groups: dict[bytes, list[Rollout]] = {}
    for rollout in sorted(rollouts, key=_total_length, reverse=True):
        groups.setdefault(rollout.prompt_ids.numpy().tobytes(), []).append(rollout)
    return groups


def _total_length(rollout: Rollout) -> int:
    return len(rollout.prompt_ids) + rollout.length


def _place(rows: list[int], size: int, width: int) -> int:
    """First fit: the row that `size` more tokens go into; a new one when none has room."""
    for index, used in enumerate(rows):
        if used + size <= width:
            rows[index] += size
            return index
    rows.append(size)
    return len(rows) - 1


def collate(rollouts: Sequence[Rollout], *, packing: bool = False, sharing: bool = False) -> MicroBatch:
    """Rollouts as one micro-batch: padded on the right, packed first-fit into rows as wide as the longest, or in a
    single row that holds each prompt once, followed by its completions.

    No attention mask is needed: real tokens never look right, at padding; transformers keeps packed sequences apart by
    the restarts of `position_ids`, which is also how padding after the last sequence of a packed row is kept apart; and
    where prompts are shared, `MicroBatch.layout` says what attends to what.
    """
    longest = max(1, *(r.length for r in rollouts))
    shape = (len(rollouts), longest)
    scored, targets = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    present, mask = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    advantages = torch.zeros(shape, dtype=torch.float32)
    for b, rollout in enumerate(rollouts):
        targets[b, : rollout.length] = rollout.completion_ids
        present[b, : rollout.length] = True
        mask[b, : rollout.length] = learns(rollout)
        advantages[b, : rollout.length] = torch.as_tensor(rollout.advantage, dtype=torch.float32)
    place = _one_row if sharing else partial(_rows, packing=packing)
    input_ids, position_ids, layout = place(rollouts, scored)
    return MicroBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        scored=scored,
        targets=targets,
        present=present,
        mask=mask,
        advantages=advantages,
        old_logprobs=_pad([r.old_logprobs for r in rollouts], longest),
        reference_logprobs=_pad([r.reference_logprobs for r in rollouts], longest),
        layout=layout,
    )


def _rows(rollouts: Sequence[Rollout], scored: Tensor, *, packing: bool) -> tuple[Tensor, Tensor, None]:
    """Input and position ids (R, L) of whole sequences; fills in where each completion token is predicted."""
    width = max(_total_length(r) for r in rollouts)
    rows: list[int] = []
    starts = []
    for rollout in rollouts:
        size = _total_length(rollout)
        row = _place(rows, size, width if packing else 0)
        starts.append((row, rows[row] - size))
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    position_ids = torch.arange(width).repeat(len(rows), 1)
    for b, (rollout, (row, start)) in enumerate(zip(rollouts, starts, strict=True)):
        prompt, length = len(rollout.prompt_ids), rollout.length
        end = start + prompt + length
        input_ids[row, start:end] = torch.cat([rollout.prompt_ids, rollout.completion_ids])
        position_ids[row, start:] = torch.arange(width - start)
        if packing:
            position_ids[row, end:] = torch.arange(width - end)
        # the token before a completion token predicts it
        scored[b, :length] = row * width + start + prompt - 1 + torch.arange(length)
    return input_ids, position_ids, None


def _one_row(rollouts: Sequence[Rollout], scored: Tensor) -> tuple[Tensor, Tensor, SharedPrompts]:
    """Input and position ids (1, N) with each prompt once, and what attends to what."""
    number = {id(rollout): b for b, rollout in enumerate(rollouts)}
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    families: list[Family] = []
    end = 0
    for same in _by_prompt(rollouts).values():
        prompt = len(same[0].prompt_ids)
        families.append(Family(start=end, prompt=prompt, completions=tuple(r.length for r in same)))
        ids.append(same[0].prompt_ids)
        positions.append(torch.arange(prompt))
        last_of_prompt = end + prompt - 1
        end += prompt
        for rollout in same:
            ids.append(rollout.completion_ids)
            positions.append(torch.arange(prompt, prompt + rollout.length))
            # its first token is predicted by the end of the prompt, every other one by the token before
            predicted_by = torch.arange(end - 1, end + rollout.length - 1)
            predicted_by[:1] = last_of_prompt
            scored[number[id(rollout)], : rollout.length] = predicted_by
            end += rollout.length
    return torch.cat(ids)[None], torch.cat(positions)[None], SharedPrompts(families)


def _pad(values: Sequence[Tensor | None], longest: int) -> Tensor | None:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    padded = torch.zeros(len(known), longest, dtype=torch.float32)  # said outright: bf16-true changes the default
    for b, value in enumerate(known):
        padded[b, : len(value)] = value
    return padded


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
        packing: put several sequences into a row of input, where the architecture's attention is not known; where it is,
            there is no padding at all and the completions of a prompt share it.
        gradient_clip: clip the gradient's norm to this; None never clips.
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
        self.skips = loss.needs_advantages and skips_zero_advantages(loss)

    @property
    def policy(self) -> Policy:
        policy = self.module.policy
        assert isinstance(policy, Policy)
        return policy

    def __call__(self, rollouts: Sequence[Rollout], seed: int) -> dict[str, float]:
        """Take `passes` x `minibatches` optimizer steps.

        Args:
            rollouts: this rank's; those on which no token learns are left out of numerators and denominators.
            seed: of the shuffle into minibatches.

        Returns:
            Means over the steps: loss, entropy, grad_norm, learning_rate, and what the loss reports.
        """
        learning = [r for r in rollouts if bool(learns(r).any())]
        generator = torch.Generator().manual_seed(seed)
        passes = [minibatches(learning, self.minibatches, generator) for _ in range(self.passes)]
        if self.passes * self.minibatches > 1 and self.loss.needs_advantages:
            # the policy has not moved before the first window, whose own forward pass supplies them
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

    def _idle(self, rollout: Rollout) -> bool:
        """Whether a rollout adds nothing to the gradient, only to the normaliser."""
        return self.skips and not bool(torch.as_tensor(rollout.advantage).any())

    def _cut(self, rollouts: Sequence[Rollout]) -> list[tuple[list[Rollout], MicroBatch]]:
        """Micro-batches of a window, and the rollouts in each."""
        longest = max((_total_length(r) for r in rollouts), default=0)
        sharing, packing = longest <= self.policy.window, self.packing and self.policy.packs
        groups = micro_batches(rollouts, self.tokens_per_microbatch, packing=packing, sharing=sharing)
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
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float32, device=self.module.device))
        for index, (group, batch) in enumerate(parts):
            with nullcontext() if index == len(parts) - 1 else self._no_sync():
                logprobs = self._backward(self._to_device(batch), window, sums)
            if self.passes > 1 and batch.old_logprobs is None:
                _store(logprobs, group, "old_logprobs")
        metrics = {name: float(self._reduce(value, "sum")) for name, value in sums.items()}
        loss = metrics.pop("loss", 0.0)
        metrics = {name: value / max(seen, 1.0) for name, value in metrics.items()}
        metrics["loss"] = loss
        metrics["grad_norm"] = self._clip(optimizer)
        metrics["learning_rate"] = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler = self.module.lr_schedulers()
        if scheduler is not None:
            scheduler.step()  # type: ignore[union-attr]  # one optimizer has one scheduler
        return metrics

    def _backward(self, batch: MicroBatch, window: Window, sums: dict[str, Tensor]) -> Tensor:
        """Forward, loss and backward of a micro-batch; its log-probabilities (B, T)."""
        logprobs, entropies = self.policy.logprobs(batch, self.temperature)
        inputs = LossInputs(
            logprobs=logprobs,
            old_logprobs=logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs,
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
        """Over all ranks: the window's totals, how many micro-batches each rank runs, how many learning tokens they hold.

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
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        scaler = getattr(self.module.trainer.precision_plugin, "scaler", None)
        # `16-mixed` undoes its scale inside optimizer.step(), and skips a step that overflowed
        scale = 1.0 if scaler is None else scaler.get_scale()
        norm = float(torch.nn.utils.get_total_norm(gradients)) / scale if gradients else 0.0
        if scaler is None and not math.isfinite(norm):
            raise UserError(
                f"the gradient of step {self.module.global_step} is {norm}; the weights were left as they are. "
                "Lower the learning rate, set loss option 'delta', or use float32"
            )
        if self.gradient_clip is not None:
            self.module.clip_gradients(
                optimizer,  # type: ignore[arg-type]  # LightningOptimizer forwards to the optimizer it wraps
                gradient_clip_val=self.gradient_clip * scale,
                gradient_clip_algorithm="norm",
            )
        return norm

    def _no_sync(self) -> AbstractContextManager[None]:
        """Under DDP, keep gradients local until the window's last micro-batch."""
        no_sync: Callable[[], AbstractContextManager[None]] | None
        no_sync = getattr(self.module.trainer.model, "no_sync", None)
        return nullcontext() if no_sync is None else no_sync()

    def _reduce(self, value: Tensor, operation: str) -> Tensor:
        reduced = self.module.trainer.strategy.reduce(value, reduce_op=operation)
        assert isinstance(reduced, Tensor)
        return reduced

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
