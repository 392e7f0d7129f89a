"""Weights for tokens that another engine sampled, against ratios worked by hand."""

import math

import pytest
import torch

from lit_reason.correction import check_correction, importance_weights
from lit_reason.types import UserError

# ratios pi_old / pi_sampler: 1, 4, 1/4 and 3/2
OLD = torch.tensor([[-1.0, -1.0, -3.0, -1.0]])
SAMPLER = OLD - torch.tensor([[1.0, 4.0, 0.25, 1.5]]).log()
MASK = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("kind", "expected", "cut"),
    [
        ("tis", [1.0, 2.0, 0.25, 1.5], 1),  # only what is above the cap is truncated
        ("mis", [1.0, 0.0, 0.0, 1.5], 2),  # below 1 / cap counts as out of bounds too
    ],
)
def test_ratios_beyond_the_cap_are_truncated_or_left_out(kind: str, expected: list[float], cut: int) -> None:
    weights, mismatch = importance_weights(OLD, SAMPLER, MASK, kind, 2.0)
    torch.testing.assert_close(weights, torch.tensor([expected]))
    assert int(mismatch.cut) == cut


def test_the_mismatch_is_measured_before_anything_is_cut() -> None:
    for kind in ("tis", "mis", "none"):
        _, mismatch = importance_weights(OLD, SAMPLER, MASK, kind, 2.0)
        assert int(mismatch.tokens) == 4
        assert float(mismatch.ratio) == pytest.approx(1.0 + 4.0 + 0.25 + 1.5)
        assert float(mismatch.largest) == pytest.approx(4.0)


def test_none_measures_and_weighs_nothing() -> None:
    assert importance_weights(OLD, SAMPLER, MASK, "none", 2.0)[0] is None


def test_what_stands_behind_the_mask_does_not_count() -> None:
    sampler = SAMPLER.clone()
    sampler[0, 1:] = torch.tensor([math.nan, -math.inf, math.inf])
    mask = torch.tensor([[True, False, False, False]])
    weights, mismatch = importance_weights(OLD, sampler, mask, "mis", 2.0)
    assert weights is not None
    assert bool(weights.isfinite().all())
    assert (int(mismatch.tokens), float(mismatch.ratio), float(mismatch.largest), int(mismatch.cut)) == (1, 1.0, 1.0, 0)
    _, nothing = importance_weights(OLD, sampler, torch.zeros_like(mask), "tis", 2.0)
    assert (int(nothing.tokens), float(nothing.ratio), float(nothing.largest)) == (0, 0.0, 0.0)


def test_a_token_the_sampler_calls_impossible_leaves_everything_finite() -> None:
    impossible = torch.full_like(OLD, -9999.0)
    weights, mismatch = importance_weights(OLD, impossible, MASK, "tis", 2.0)
    torch.testing.assert_close(weights, torch.full_like(OLD, 2.0))
    assert bool(mismatch.ratio.isfinite())


def test_weights_carry_no_gradient() -> None:
    weights, _ = importance_weights(OLD.clone().requires_grad_(), SAMPLER, MASK, "tis", 2.0)
    assert weights is not None
    assert not weights.requires_grad


def test_a_cap_that_cuts_agreement_off_is_refused() -> None:
    check_correction("none", 0.5)
    with pytest.raises(UserError, match="correction_cap must be above 1"):
        check_correction("tis", 1.0)
