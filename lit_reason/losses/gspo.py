"""`gspo`: the clipped surrogate on the sequence's importance ratio."""

from __future__ import annotations

from torch import Tensor

from lit_reason.loss import ClippedLoss
from lit_reason.types import LossInputs


class GSPO(ClippedLoss):
    """Group Sequence Policy Optimization (arXiv 2507.18071): the ratio is exp(mean of logp - logp_old).

    The mean is over the completion. Such ratios stay much closer to 1 than per-token ones; the paper clips at 3e-4
    and 4e-4.
    """

    aggregation = "sequence"

    def log_ratio(self, inputs: LossInputs) -> Tensor:
        delta = inputs.logprobs - inputs.old_logprobs
        # both are 0 behind the mask already, so the sum is the completion's
        mean = delta.sum(1, keepdim=True) / inputs.mask.sum(1, keepdim=True).clamp(min=1)
        return mean.expand_as(delta)
