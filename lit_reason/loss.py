"""Stage 5: losses. A policy loss is a per-token term and the way it is averaged over the optimizer window.

Source of every formula: the paper named beside it. The window's normalisers come from outside (`Window`), so that a
loss never knows, or depends on, how the window was cut into micro-batches or ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lit_reason.types import LossInputs, LossOutput, UserError, Window

Aggregation = Literal["token", "sequence", "fixed", "micro_batch"]


def aggregate(per_token: Tensor, inputs: LossInputs, how: Aggregation) -> Tensor:
    """This micro-batch's share of the window's mean.

    Args:
        per_token: (B, T) float32.
        inputs: supplies the mask and the window's totals.
        how: "token" sums over tokens / tokens of the window (DAPO); "sequence" averages each completion over its own
            tokens, then over sequences (GRPO); "fixed" divides by sequences x max_completion_tokens (Dr. GRPO);
            "micro_batch" takes the token mean of each micro-batch, then the mean of those (BNPO).

    Returns:
        A scalar.
    """
    mask = inputs.mask.float()
    window = inputs.window
    # where, not *: an infinite or NaN value on a masked position must not leak through inf * 0
    per_token = torch.where(inputs.mask, per_token, 0.0)
    if how == "token":
        return per_token.sum() / max(window.tokens, 1.0)
    if how == "sequence":
        return (per_token.sum(1) / mask.sum(1).clamp(min=1.0)).sum() / max(window.sequences, 1.0)
    if how == "fixed":
        return per_token.sum() / max(window.sequences * window.max_completion_tokens, 1.0)
    return per_token.sum() / mask.sum().clamp(min=1.0) / max(window.micro_batches, 1.0)


class Loss(ABC):
    """Base class of loss plugins (entry-point group `lit_reason.losses`)."""

    needs_reference: bool = False
    """Whether `LossInputs.reference_logprobs` must be filled; the reference costs memory and a forward pass."""

    needs_advantages: bool = True
    """Whether it weighs tokens by advantage and probability ratio; imitation needs neither, nor the old policy's
    log-probabilities."""

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> LossOutput:
        """The micro-batch's share of the window's loss; see `LossInputs` and `LossOutput` for shapes."""


class PolicyLoss(Loss):
    """A policy-gradient loss: subclasses give the per-token `surrogate` and choose the `aggregation`.

    Args:
        beta: weight of the KL term to the reference; 0 loads no reference at all.
        kl: estimator of that term, with d = logp_ref - logp: k1 = -d, k2 = d^2 / 2, k3 = e^d - d - 1
            (http://joschu.net/blog/kl-approx.html).
    """

    aggregation: Aggregation = "token"

    def __init__(self, *, beta: float = 0.0, kl: Literal["k1", "k2", "k3"] = "k3") -> None:
        if beta < 0:
            raise UserError(f"loss option 'beta' must be 0 or more, got {beta}")
        self.beta = beta
        self.kl = kl
        self.needs_reference = beta != 0

    @abstractmethod
    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The per-token term (B, T) to minimise, and metrics (B, T) whose token means are logged."""

    def __call__(self, inputs: LossInputs) -> LossOutput:
        inputs = _zero_behind_mask(inputs)
        per_token, metrics = self.surrogate(inputs)
        if inputs.weights is not None:  # the policy term alone: the KL term is no expectation over the sampler
            per_token = per_token * inputs.weights
        if self.needs_reference:
            if inputs.reference_logprobs is None:
                raise ValueError("beta is not 0, but no reference log-probabilities were computed")
            divergence = kl_estimate(inputs.logprobs, inputs.reference_logprobs, self.kl)
            per_token = per_token + self.beta * divergence
            metrics["kl"] = divergence
        sums = {name: torch.where(inputs.mask, value.detach(), 0.0).sum() for name, value in metrics.items()}
        return LossOutput(loss=aggregate(per_token, inputs, self.aggregation), metrics=sums)


def _zero_behind_mask(inputs: LossInputs) -> LossInputs:
    """The same inputs with 0 wherever the mask is False: 0 * inf there would otherwise poison the gradient."""
    reference, weights = inputs.reference_logprobs, inputs.weights
    return replace(
        inputs,
        logprobs=torch.where(inputs.mask, inputs.logprobs, 0.0),
        old_logprobs=torch.where(inputs.mask, inputs.old_logprobs, 0.0),
        advantages=torch.where(inputs.mask, inputs.advantages, 0.0),
        reference_logprobs=None if reference is None else torch.where(inputs.mask, reference, 0.0),
        weights=None if weights is None else torch.where(inputs.mask, weights, 0.0),
    )


class ClippedLoss(PolicyLoss):
    """PPO's clipped surrogate (arXiv 1707.06347), per token, two-sided when `delta` is given (2505.07291).

    l = -min(min(r, delta) A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A), r = exp(logp - logp_old).

    Args:
        epsilon_low: lower clip.
        epsilon_high: upper clip; DAPO's clip-higher uses 0.28 (2503.14476).
        delta: cap on the unclipped branch, above 1 + epsilon_high; bounds the loss when A < 0. None is off.
        beta: weight of the KL term to the reference; 0 loads no reference at all.
        kl: estimator of that term.
    """

    def __init__(
        self,
        *,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        delta: float | None = None,
        beta: float = 0.0,
        kl: Literal["k1", "k2", "k3"] = "k3",
    ) -> None:
        super().__init__(beta=beta, kl=kl)
        if epsilon_low < 0 or epsilon_high < 0:
            raise UserError(
                f"loss options 'epsilon_low' and 'epsilon_high' must be 0 or more, got {epsilon_low} and {epsilon_high}"
            )
        if delta is not None and delta <= 1 + epsilon_high:
            raise UserError(f"loss option 'delta' must exceed 1 + epsilon_high = {1 + epsilon_high:g}, got {delta}")
        self.epsilon_low, self.epsilon_high, self.delta = epsilon_low, epsilon_high, delta

    def log_ratio(self, inputs: LossInputs) -> Tensor:
        """(B, T) log importance ratio; GSPO overrides it with the sequence's mean."""
        return inputs.logprobs - inputs.old_logprobs

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        ratio = self.log_ratio(inputs).exp()
        clipped = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        capped = ratio if self.delta is None else ratio.clamp(max=self.delta)
        advantages = inputs.advantages
        per_token = -torch.minimum(capped * advantages, clipped * advantages)
        # clipped *and* it mattered: the side of the clip on which the gradient is cut off
        cut = ((ratio < 1 - self.epsilon_low) & (advantages < 0)) | ((ratio > 1 + self.epsilon_high) & (advantages > 0))
        return per_token, {"clipped": cut.float(), "ratio": ratio}


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimate (B, T) of KL(policy || reference) on tokens sampled from the policy."""
    d = reference_logprobs - logprobs
    if kind == "k1":
        return -d
    if kind == "k2":
        return 0.5 * d.square()
    return d.exp() - d - 1.0


def skips_zero_advantages(loss: Loss) -> bool:
    """Whether completions whose advantages are all zero change nothing, so that they need no forward pass.

    Found by trying, at ratios within and far beyond any clip: of two completions one has no advantage, and the gradient
    must be the same without it. A loss that cannot be tried is taken to need them all.
    """
    logprobs = torch.tensor([[-0.3, -1.7], [-0.9, -0.4]])
    window = Window(sequences=2, tokens=4, micro_batches=1, max_completion_tokens=2)

    def gradient(rows: int, offset: float) -> Tensor:
        trained = logprobs[:rows].clone().requires_grad_()
        output = loss(
            LossInputs(
                logprobs=trained,
                old_logprobs=logprobs[:rows] + offset,
                advantages=torch.tensor([[1.0, 1.0], [0.0, 0.0]])[:rows],
                mask=torch.ones(rows, 2, dtype=torch.bool),
                entropies=torch.full((rows, 2), abs(offset)),
                window=window,
                reference_logprobs=logprobs[:rows] + 0.2,
            )
        )
        return torch.autograd.grad(output.loss, trained)[0]

    def same(offset: float) -> bool:
        both, alone = gradient(2, offset), gradient(1, offset)
        return torch.equal(both[:1], alone) and not bool(both[1].any())

    try:
        return all(same(offset) for offset in (0.0, -0.05, 0.05, -1.0, 1.0, -5.0, 5.0))
    except Exception:  # noqa: BLE001 - a stranger's code; its own error comes when it is used
        return False
