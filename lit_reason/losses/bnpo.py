"""`bnpo`: the clipped surrogate, token mean of each micro-batch."""

from __future__ import annotations

from lit_reason.loss import ClippedLoss


class BNPO(ClippedLoss):
    """Token mean per micro-batch, averaged over micro-batches; by definition it depends on how the window is cut."""

    aggregation = "micro_batch"
