"""`dr_grpo`: the clipped surrogate over a constant, so that length does not dilute a token."""

from __future__ import annotations

from lit_reason.loss import ClippedLoss


class DrGRPO(ClippedLoss):
    """Dr. GRPO (arXiv 2503.20783): divides by sequences x max_completion_tokens, which removes GRPO's length bias.

    Pair it with `advantage: none`, which removes the difficulty bias.
    """

    aggregation = "fixed"
