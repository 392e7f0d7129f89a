"""Advantages against numbers worked by hand."""

import math

import pytest
import torch

from lit_reason.advantage import advantages

# group 0: rewards 1, 0, 0, 1: mean 1/2, std (ddof 1) = sqrt(4 * 1/4 / 3) = sqrt(1/3)
# group 1: rewards 2, 0:       mean 1,   std = sqrt(2)
REWARDS = [1.0, 0.0, 0.0, 1.0, 2.0, 0.0]
GROUPS = [0, 0, 0, 0, 1, 1]


def close(actual: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


def test_group_standardises_with_ddof_one() -> None:
    a = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    b = 1.0 / (math.sqrt(2) + 1e-4)
    close(advantages(REWARDS, GROUPS, "group"), [a, -a, -a, a, b, -b])


def test_batch_takes_the_mean_of_the_group_and_the_spread_of_all() -> None:
    # all six: mean 2/3; squared deviations 1/9, 4/9, 4/9, 1/9, 16/9, 4/9 = 30/9; / 5 = 2/3
    s = math.sqrt(2 / 3) + 1e-4
    close(advantages(REWARDS, GROUPS, "batch"), [0.5 / s, -0.5 / s, -0.5 / s, 0.5 / s, 1 / s, -1 / s])


def test_batch_may_take_its_spread_from_more_rows_than_these() -> None:
    close(advantages(REWARDS[:4], GROUPS[:4], "batch", lambda known: 2.0 - 1e-4), [0.25, -0.25, -0.25, 0.25])


def test_none_only_subtracts_the_mean() -> None:
    close(advantages(REWARDS, GROUPS, "none"), [0.5, -0.5, -0.5, 0.5, 1.0, -1.0])


def test_rloo_compares_with_the_mean_of_the_others() -> None:
    # 1 against (0 + 0 + 1) / 3; 0 against (1 + 0 + 1) / 3; 2 against 0
    close(advantages(REWARDS, GROUPS, "rloo"), [2 / 3, -2 / 3, -2 / 3, 2 / 3, 2.0, -2.0])


@pytest.mark.parametrize("kind", ["group", "batch", "none", "rloo"])
def test_equal_rewards_give_exactly_zero(kind: str) -> None:
    # the mean of seven times 0.1 is not 0.1 in floating point; the advantage must be 0 all the same
    result = advantages([0.1] * 7 + [1.0, 0.0], [0] * 7 + [1, 1], kind)
    assert (result[:7] == 0).all()
    assert (result[7:] != 0).all()


@pytest.mark.parametrize("kind", ["group", "batch", "none", "rloo"])
def test_rows_without_reward_leave_the_baseline(kind: str) -> None:
    with_none = advantages([1.0, None, 0.0, 0.0], [0, 0, 0, 0], kind)
    without = advantages([1.0, 0.0, 0.0], [0, 0, 0], kind)
    assert with_none[1] == 0
    torch.testing.assert_close(with_none[[0, 2, 3]], without)


def test_a_row_alone_in_its_group_learns_nothing() -> None:
    close(advantages([1.0, None, 0.5], [0, 0, 1], "group"), [0.0, 0.0, 0.0])


def test_order_of_completions_does_not_matter() -> None:
    order = [4, 0, 5, 2, 1, 3]
    shuffled = advantages([REWARDS[i] for i in order], [GROUPS[i] for i in order], "group")
    torch.testing.assert_close(shuffled, advantages(REWARDS, GROUPS, "group")[order])
