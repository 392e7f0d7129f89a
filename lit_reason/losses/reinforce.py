"""`reinforce`: the plain policy gradient."""

from __future__ import annotations

from torch import Tensor

from lit_reason.loss import PolicyLoss
from lit_reason.types import LossInputs


class Reinforce(PolicyLoss):
    """-A log pi, averaged over the tokens of the window (Williams 1992).

    It has no ratio and no clip, so keep `passes` and `minibatches` at 1.
    """

    aggregation = "token"

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        return -inputs.advantages * inputs.logprobs, {}
