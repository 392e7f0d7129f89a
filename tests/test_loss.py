"""Losses against numbers worked by hand, and gradients where the clip must cut them off."""

import math
from typing import Any

import pytest
import torch

from lit_reason.loss import ClippedLoss, kl_estimate, skips_zero_advantages
from lit_reason.losses.bnpo import BNPO
from lit_reason.losses.cross_entropy import CrossEntropy
from lit_reason.losses.dapo import DAPO
from lit_reason.losses.dr_grpo import DrGRPO
from lit_reason.losses.grpo import GRPOLoss
from lit_reason.losses.gspo import GSPO
from lit_reason.losses.reinforce import Reinforce
from lit_reason.plugins import LossRef
from lit_reason.types import LossInputs, UserError, Window

LOG2 = math.log(2)


def inputs(
    logprobs: list[list[float]],
    old: list[list[float]],
    advantages: list[float],
    mask: list[list[int]],
    reference: list[list[float]] | None = None,
    micro_batches: int = 1,
    limit: int = 10,
) -> LossInputs:
    m = torch.tensor(mask, dtype=torch.bool)
    return LossInputs(
        logprobs=torch.tensor(logprobs, requires_grad=True),
        old_logprobs=torch.tensor(old),
        advantages=torch.tensor(advantages)[:, None].expand(m.shape),
        mask=m,
        entropies=torch.zeros(m.shape),
        window=Window(
            sequences=len(mask), tokens=int(m.sum()), micro_batches=micro_batches, max_completion_tokens=limit
        ),
        reference_logprobs=None if reference is None else torch.tensor(reference),
    )


# Two completions, of 3 tokens and of 1. Ratios: 1, 2, 1/2 for the first (A = 1), 1/2 for the second (A = -2).
# Clipped at 0.2 / 0.2: terms -min(1, 1) = -1, -min(2, 1.2) = -1.2, -min(.5, .8) = -0.5;
# and -min(.5 * -2, .8 * -2) = -min(-1, -1.6) = 1.6
LOGP = [[-1.0, -1.0, -1.0], [-1.0, 0.0, 0.0]]
OLD = [[-1.0, -1.0 - LOG2, -1.0 + LOG2], [-1.0 + LOG2, 0.0, 0.0]]
ADV = [1.0, -2.0]
MASK = [[1, 1, 1], [1, 0, 0]]
TERMS = [-1.0, -1.2, -0.5, 1.6]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (GRPOLoss(), (sum(TERMS[:3]) / 3 + TERMS[3]) / 2),
        (DAPO(epsilon_high=0.2), sum(TERMS) / 4),
        (DAPO(), (-1.0 - 1.28 - 0.5 + 1.6) / 4),  # clip-higher by default
        (BNPO(), sum(TERMS) / 4),
        (DrGRPO(), sum(TERMS) / (2 * 10)),
        # sequence ratios: exp((0 + log 2 - log 2) / 3) = 1 and exp(-log 2) = 1/2, clipped to .8
        (GSPO(), (-1.0 + 1.6) / 2),
        # -A logp: 1, 1, 1 and -2
        (Reinforce(), (1.0 + 1.0 + 1.0 - 2.0) / 4),
        (CrossEntropy(), 1.0),
    ],
    ids=["grpo", "dapo-plain", "dapo", "bnpo", "dr_grpo", "gspo", "reinforce", "cross_entropy"],
)
def test_losses_match_numbers_worked_by_hand(loss: ClippedLoss, expected: float) -> None:
    assert float(loss(inputs(LOGP, OLD, ADV, MASK)).loss) == pytest.approx(expected, abs=1e-6)


def test_delta_caps_only_the_unclipped_branch() -> None:
    # ratio 8, A = -1: unclipped -min(8 * -1, 1.2 * -1) = 8; with delta 3: -min(-3, -1.2) = 3
    args = ([[-1.0]], [[-1.0 - 3 * LOG2]], [-1.0], [[1]])
    assert float(GRPOLoss()(inputs(*args)).loss) == pytest.approx(8.0, rel=1e-6)
    assert float(GRPOLoss(delta=3.0)(inputs(*args)).loss) == pytest.approx(3.0, rel=1e-6)
    # A = +1: -min(3, 1.2) = -1.2, the clip still rules
    assert float(GRPOLoss(delta=3.0)(inputs([[-1.0]], [[-1.0 - 3 * LOG2]], [1.0], [[1]])).loss) == pytest.approx(-1.2)


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"),
    [
        (1.3, 1.0, False),  # gained enough: above the upper clip, nothing more to gain
        (1.3, -1.0, True),
        (0.7, -1.0, False),  # lost enough
        (0.7, 1.0, True),
        (1.1, 1.0, True),
        (0.9, -1.0, True),
    ],
)
def test_gradient_is_zero_exactly_where_the_clip_cuts_it_off(ratio: float, advantage: float, flows: bool) -> None:
    x = inputs([[0.0]], [[-math.log(ratio)]], [advantage], [[1]])
    GRPOLoss()(x).loss.backward()
    assert x.logprobs.grad is not None
    # d/dlogp of -r A is -r A
    assert float(x.logprobs.grad) == pytest.approx(-ratio * advantage if flows else 0.0, abs=1e-6)


def test_delta_cuts_the_gradient_off_above_itself() -> None:
    x = inputs([[0.0]], [[-math.log(4.0)]], [-1.0], [[1]])
    GRPOLoss(delta=3.0)(x).loss.backward()
    assert float(x.logprobs.grad) == 0.0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("k1", -LOG2), ("k2", LOG2**2 / 2), ("k3", 2 - LOG2 - 1)],
)
def test_kl_estimators(kind: str, expected: float) -> None:
    # logp_ref - logp = log 2
    assert float(kl_estimate(torch.tensor(-1.0), torch.tensor(-1.0 + LOG2), kind)) == pytest.approx(expected)


def test_kl_is_added_outside_the_clip() -> None:
    # ratio 2, A = 1 is clipped, so the policy term has no gradient; k3's is 1 - e^d with d = log 2: -1, times beta
    x = inputs([[0.0]], [[-LOG2]], [1.0], [[1]], reference=[[LOG2]])
    output = GRPOLoss(beta=0.1)(x)
    assert float(output.loss) == pytest.approx(-1.2 + 0.1 * (1 - LOG2))
    output.loss.backward()
    assert float(x.logprobs.grad) == pytest.approx(-0.1, abs=1e-6)
    assert float(output.metrics["kl"]) == pytest.approx(1 - LOG2)


def test_weights_multiply_the_policy_term_and_not_the_kl_term() -> None:
    x = inputs([[0.0, 0.0]], [[0.0, 0.0]], [1.0], [[1, 1]], reference=[[LOG2, LOG2]])
    x.weights = torch.tensor([[2.0, 0.0]])
    output = DAPO(beta=0.1)(x)
    # ratio 1, A = 1: policy terms -2 and 0, KL terms 1 - log 2 each, averaged over two tokens
    assert float(output.loss) == pytest.approx((-2.0 + 2 * 0.1 * (1 - LOG2)) / 2)
    output.loss.backward()
    # -r A weight plus beta (1 - e^d), d = log 2, over two tokens
    torch.testing.assert_close(x.logprobs.grad, torch.tensor([[(-2.0 - 0.1) / 2, -0.1 / 2]]))


def test_weights_behind_the_mask_leave_loss_and_gradient_alone() -> None:
    plain, weighted = inputs(LOGP, OLD, ADV, MASK), inputs(LOGP, OLD, ADV, MASK)
    weighted.weights = torch.where(weighted.mask, 1.0, math.nan)
    for x in (plain, weighted):
        GRPOLoss()(x).loss.backward()
    torch.testing.assert_close(weighted.logprobs.grad, plain.logprobs.grad)


def test_beta_zero_needs_no_reference() -> None:
    assert not GRPOLoss().needs_reference
    assert GRPOLoss(beta=0.01).needs_reference


def test_gspo_moves_every_token_of_a_sequence_alike() -> None:
    x = inputs([[0.0, 0.0]], [[0.0, 0.0]], [1.0], [[1, 1]])
    GSPO()(x).loss.backward()
    # loss = -exp(mean delta) A; each token's share of the mean is 1/2
    torch.testing.assert_close(x.logprobs.grad, torch.tensor([[-0.5, -0.5]]))


@pytest.mark.parametrize("loss", [GRPOLoss(), DAPO(), DrGRPO(), GSPO(), Reinforce(), CrossEntropy()])
def test_shares_of_micro_batches_sum_to_the_window(loss: ClippedLoss) -> None:
    whole = inputs(LOGP, OLD, ADV, MASK)
    shares = []
    for row in range(2):
        part = inputs(LOGP[row : row + 1], OLD[row : row + 1], ADV[row : row + 1], MASK[row : row + 1])
        part.window = whole.window
        shares.append(float(loss(part).loss))
    assert sum(shares) == pytest.approx(float(loss(whole).loss), rel=1e-6)


def test_bnpo_averages_token_means_of_micro_batches() -> None:
    shares = []
    for row in range(2):
        part = inputs(LOGP[row : row + 1], OLD[row : row + 1], ADV[row : row + 1], MASK[row : row + 1], micro_batches=2)
        shares.append(float(BNPO()(part).loss))
    assert sum(shares) == pytest.approx((sum(TERMS[:3]) / 3 + TERMS[3]) / 2, rel=1e-6)


@pytest.mark.parametrize("loss", [GRPOLoss(beta=0.1), DAPO(), GSPO(), Reinforce(), CrossEntropy()])
def test_nothing_behind_the_mask_leaks(loss: ClippedLoss) -> None:
    nan = float("nan")
    x = inputs([[-1.0, nan]], [[-1.0, math.inf]], [1.0], [[1, 0]], reference=[[-1.0, nan]])
    clean = inputs([[-1.0]], [[-1.0]], [1.0], [[1]], reference=[[-1.0]])
    output = loss(x)
    output.loss.backward()
    assert float(output.loss) == pytest.approx(float(loss(clean).loss))
    assert float(x.logprobs.grad[0, 1]) == 0.0
    assert math.isfinite(float(x.logprobs.grad[0, 0]))


@pytest.mark.parametrize(
    ("options", "names"),
    [({"beta": -1.0}, "beta"), ({"epsilon_low": -0.1}, "epsilon_low"), ({"delta": 1.1}, "delta")],
)
def test_impossible_options_are_named(options: dict[str, float], names: str) -> None:
    with pytest.raises(UserError, match=names):
        GRPOLoss(**options)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "reinforce"])
def test_completions_without_advantage_may_be_skipped(name: str) -> None:
    assert skips_zero_advantages(LossRef.of(name).build())


@pytest.mark.parametrize("name", ["bnpo", {"grpo": {"beta": 0.04}}, "cross_entropy"])
def test_completions_without_advantage_count_where_the_formula_uses_them(name: Any) -> None:
    """BNPO divides by the tokens of a micro-batch; a KL term, and imitation, need no advantage."""
    assert not skips_zero_advantages(LossRef.of(name).build())


def test_a_penalty_on_far_ratios_keeps_completions_without_advantage() -> None:
    class TrustRegion(ClippedLoss):
        def surrogate(self, inputs: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            per_token, metrics = super().surrogate(inputs)
            return per_token + (inputs.logprobs - inputs.old_logprobs).abs().sub(0.5).relu(), metrics

    assert not skips_zero_advantages(TrustRegion())


def test_a_loss_that_cannot_be_tried_needs_all_completions() -> None:
    class Fussy(ClippedLoss):
        def surrogate(self, inputs: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            raise RuntimeError(f"only for {inputs.window} of another kind")

    assert not skips_zero_advantages(Fussy())
