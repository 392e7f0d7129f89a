"""`cross_entropy`: imitate the completion."""

from __future__ import annotations

import torch

from lit_reason.loss import Loss, aggregate
from lit_reason.types import LossInputs, LossOutput


class CrossEntropy(Loss):
    """-log pi averaged over the completion tokens of the window; supervised fine-tuning and rejection sampling."""

    needs_advantages = False

    def __call__(self, inputs: LossInputs) -> LossOutput:
        nll = -inputs.logprobs
        return LossOutput(
            loss=aggregate(nll, inputs, "token"),
            metrics={"nll": torch.where(inputs.mask, nll.detach(), 0.0).sum()},
        )
