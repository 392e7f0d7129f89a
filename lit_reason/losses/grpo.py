"""`grpo`: the clipped surrogate, averaged over each completion and then over completions."""

from __future__ import annotations

from lit_reason.loss import ClippedLoss


class GRPOLoss(ClippedLoss):
    """Group Relative Policy Optimization (arXiv 2402.03300): every completion weighs the same, however long it is."""

    aggregation = "sequence"
