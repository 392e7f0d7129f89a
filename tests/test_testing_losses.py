"""The conformance kit passes sound losses and names what is wrong with others."""

import pytest
import torch

from lit_reason.loss import Loss, PolicyLoss
from lit_reason.losses.bnpo import BNPO
from lit_reason.losses.cross_entropy import CrossEntropy
from lit_reason.losses.dapo import DAPO
from lit_reason.testing import check_loss, loss_inputs
from lit_reason.types import LossInputs, LossOutput


def term(inputs: LossInputs) -> torch.Tensor:
    """-A log pi where it counts."""
    return torch.where(inputs.mask, -inputs.advantages * inputs.logprobs, 0.0)


class MicroBatchMean(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=term(inputs).sum() / inputs.mask.sum())


class PaddedMean(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=term(inputs).mean() * inputs.mask.shape[0] / inputs.window.sequences)


class IgnoresMask(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=-(inputs.advantages * inputs.logprobs).sum() / inputs.window.tokens)


class MultipliesMask(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=-(inputs.advantages * inputs.logprobs * inputs.mask).sum() / inputs.window.tokens)


class Detached(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=term(inputs).sum().detach())


class PerToken(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=term(inputs))


class NoOutput(Loss):
    def __call__(self, inputs: LossInputs) -> torch.Tensor:  # type: ignore[override]  # the mistake under test
        return term(inputs).sum()


class MeanMetric(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        entropy = inputs.entropies[inputs.mask].mean().nan_to_num()
        return LossOutput(loss=term(inputs).sum() / inputs.window.tokens, metrics={"entropy": entropy})


class LiveMetric(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        total = term(inputs).sum()
        return LossOutput(loss=total / inputs.window.tokens, metrics={"total": total})


class InPlace(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        inputs.advantages.clamp_(min=0)
        return LossOutput(loss=term(inputs).sum() / inputs.window.tokens)


class UndeclaredReference(PolicyLoss):
    def surrogate(self, inputs: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return inputs.logprobs - inputs.reference_logprobs, {}


class NeverZero(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=term(inputs).sum() / inputs.window.tokens + 1.0)


@pytest.mark.parametrize("loss", [DAPO(), DAPO(beta=0.1), CrossEntropy(), BNPO()])
def test_sound_losses_pass(loss: Loss) -> None:
    check_loss(loss)


@pytest.mark.parametrize(
    ("loss", "complaint"),
    [
        (MicroBatchMean, "two micro-batches of one window sum to"),
        (PaddedMean, "three more columns of padding: the loss is"),
        (IgnoresMask, "NaN behind the mask: the loss is nan"),
        (MultipliesMask, "NaN behind the mask: the loss is nan"),
        (Detached, "the loss carries no gradient"),
        (PerToken, "the loss is no scalar tensor"),
        (NoOutput, "answers Tensor, expected lit_reason.types.LossOutput"),
        (MeanMetric, "the metric 'entropy' is no sum over tokens"),
        (LiveMetric, "the metric 'total' is no finite, detached scalar tensor"),
        (InPlace, "changes its input 'advantages' in place"),
        (UndeclaredReference, "the loss raised TypeError"),
        (NeverZero, "nothing counts: the loss is 1.0, expected 0"),
    ],
)
def test_a_losss_fault_is_named(loss: type[Loss], complaint: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_loss(loss())
    assert complaint in str(error.value)


def test_loss_inputs_have_a_window_of_their_own_and_rows_that_stay_the_same() -> None:
    one, two = loss_inputs((3,)), loss_inputs((3, 0, 2), padding=1, reference=True)
    assert (two.window.sequences, two.window.tokens) == (2.0, 5.0)
    assert two.mask.tolist() == [[True] * 3 + [False], [False] * 4, [True, True, False, False]]
    assert torch.equal(one.logprobs[0], two.logprobs[0, :3])
    assert one.reference_logprobs is None
    assert (two.advantages[0, :3] > 0).all()
    assert two.logprobs.requires_grad
    assert two.logprobs.is_leaf
