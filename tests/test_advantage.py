"""Advantages against numbers worked by hand."""

import math

import pytest
import torch

from lit_reason.advantage import advantages, normalized_sum

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


def test_reinforce_whitens_what_is_left_without_the_mean_of_the_group() -> None:
    # 1/2, -1/2, -1/2, 1/2, 1, -1: mean 0, squares sum to 3; variance 3/5
    s = math.sqrt(3 / 5 + 1e-8)
    close(advantages(REWARDS, GROUPS, "reinforce++"), [0.5 / s, -0.5 / s, -0.5 / s, 0.5 / s, 1 / s, -1 / s])


@pytest.mark.parametrize("kind", ["group", "batch", "none", "rloo", "reinforce++"])
def test_equal_rewards_give_exactly_zero(kind: str) -> None:
    # the mean of seven times 0.1 is not 0.1 in floating point; the advantage must be 0 all the same
    result = advantages([0.1] * 7 + [1.0, 0.0], [0] * 7 + [1, 1], kind)
    assert (result[:7] == 0).all()
    assert (result[7:] != 0).all()


@pytest.mark.parametrize("kind", ["group", "batch", "none", "rloo", "reinforce++"])
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


@pytest.mark.parametrize(("kind", "asks"), [("batch", 1), ("reinforce++", 1), ("group", 0)])
@pytest.mark.parametrize("rows", [0, 6])
def test_other_ranks_are_asked_once_also_for_no_rows(kind: str, asks: int, rows: int) -> None:
    asked: list[int] = []
    advantages(REWARDS[:rows], GROUPS[:rows], kind, lambda values: float(asked.append(len(values)) or 1))
    assert asked == [rows] * asks


# group 0: 0, 2: mean 1, std sqrt(2), so -1 and 1 over sqrt(2); a second reward of 30, 10 says the contrary; a third is
# equal for both. group 1: 5, 5 and 1, 3
ONE, TWO, THREE = [0.0, 2.0, 5.0, 5.0], [30.0, 10.0, 1.0, 3.0], [7.0, 7.0, 7.0, 7.0]


def test_a_normalized_sum_counts_each_reward_by_its_order() -> None:
    # with weights 1 and 3, all over sqrt(2): 1 * (-1, 1, 0, 0) + 3 * (1, -1, -1, 1) = 2, -2, -3, 3; over sqrt(2) their
    # squares sum to 13, so that the variance is 13/3
    scale = [a / (r + 1e-4) for a, r in ((1, math.sqrt(2)), (10, math.sqrt(200)), (1, math.sqrt(2)))]
    first = 3 * scale[1] - scale[0]
    second = 3 * scale[2]
    s = math.sqrt(2 * (first**2 + second**2) / 3) + 1e-4
    expected = [first / s, -first / s, -second / s, second / s]
    assert expected == pytest.approx(
        [2 / math.sqrt(26 / 3), -2 / math.sqrt(26 / 3), -3 / math.sqrt(26 / 3), 3 / math.sqrt(26 / 3)], abs=1e-3
    )
    close(normalized_sum([ONE, TWO, THREE], [1.0, 3.0, 5.0], [0, 0, 1, 1]), expected)


def test_a_normalized_sum_of_equals_is_exactly_zero() -> None:
    result = normalized_sum([ONE, [0.1] * 4], [1.0, 1.0], [0, 0, 1, 1])
    assert (result[2:] == 0).all()
    assert (result[:2] != 0).all()
    assert (normalized_sum([[0.3] * 7], [1.0], [0] * 7) == 0).all()


def test_a_normalized_sum_leaves_out_rewards_that_do_not_apply() -> None:
    # the first reward is standardised over the rows it applies to, and the last row has none at all; a metric is none
    first = [1.0, None, 3.0, None, 2.0, None]
    second = [None, 0.0, 1.0, 0.5, None, None]
    groups = [0, 0, 0, 0, 1, 1]
    result = normalized_sum([first, second, [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]], [1.0, 2.0, 0.0], groups)
    # 1 and 3: -1/sqrt(2), 1/sqrt(2); 0, 1, 1/2: std 1/2, so -1, 1, 0; the row alone in its group 0
    a, b = 1 / (math.sqrt(2) + 1e-4), 0.5 / (0.5 + 1e-4)
    total = [-a, -2 * b, a + 2 * b, 0.0, 0.0]
    s = math.sqrt(sum(t * t for t in total) / 4) + 1e-4
    close(result, [*(t / s for t in total), 0.0])
