"""A loss from a plain function of the loss inputs."""

from __future__ import annotations

from collections.abc import Callable

from lit_reason.loss import Loss
from lit_reason.types import LossInputs, LossOutput


class FunctionLoss(Loss):
    """What a function of the loss inputs becomes when it is given as a loss. It sees no reference log-probabilities.

    Args:
        function: (inputs) -> the micro-batch's share of the window's loss; see `LossInputs` and `LossOutput`.
    """

    def __init__(self, function: Callable[[LossInputs], LossOutput]) -> None:
        self.function = function

    def __call__(self, inputs: LossInputs) -> LossOutput:
        return self.function(inputs)
