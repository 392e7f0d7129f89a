"""`self_imitation`: learn from what went better than expected, forget the rest."""

from __future__ import annotations

from torch import Tensor

from lit_reason.loss import PolicyLoss
from lit_reason.types import LossInputs


class SelfImitation(PolicyLoss):
    """-max(A, 0) log pi, averaged over the tokens of the window: imitates completions that beat their group.

    Unlike in the paper the advantage comes from the group, not from a learnt value. Source: Self-Imitation Learning
    (arXiv 1806.05405).
    """

    # `PolicyLoss` divides by the totals of the optimizer window, leaves masked tokens out and adds the KL term
    aggregation = "token"

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        gain = inputs.advantages.clamp(min=0)
        return -gain * inputs.logprobs, {"imitated": (gain > 0).float()}
