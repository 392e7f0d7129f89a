"""`dapo`: the clipped surrogate with clip-higher, averaged over the tokens of the window."""

from __future__ import annotations

from typing import Literal

from lit_reason.loss import ClippedLoss


class DAPO(ClippedLoss):
    """DAPO's token-level loss (arXiv 2503.14476): every token of the window weighs the same.

    Args:
        epsilon_low: lower clip.
        epsilon_high: upper clip, higher than the lower one so that rare tokens can grow.
        delta: cap on the unclipped branch, above 1 + epsilon_high; bounds the loss when A < 0. None is off.
        beta: weight of the KL term to the reference; 0 loads no reference at all.
        kl: estimator of that term.
    """

    aggregation = "token"

    def __init__(
        self,
        *,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.28,
        delta: float | None = None,
        beta: float = 0.0,
        kl: Literal["k1", "k2", "k3"] = "k3",
    ) -> None:
        super().__init__(epsilon_low=epsilon_low, epsilon_high=epsilon_high, delta=delta, beta=beta, kl=kl)
