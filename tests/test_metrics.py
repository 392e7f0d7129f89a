import math

import numpy as np
import pytest
import torch
from two_ranks import on_two_ranks

from lit_reason.metrics import ReasoningMetrics, bootstrap_interval, majority_answer, pass_at_k, wilson_interval
from lit_reason.types import Problem, Rollout


def rollout(answer, *, gold="4", id="", length=10, finish="stop", think=True, scorer=None):  # noqa: A002 - the field
    problem = Problem(prompt=[{"role": "user", "content": "2 + 2"}], answer=gold, id=id)
    if scorer is not None:
        problem.scorer = scorer
    text = f"<answer>{answer}</answer>" if answer is not None else "no idea"
    if think:
        text = f"<think>two and two</think> {text}"
    ids = torch.zeros(length, dtype=torch.int64)
    return Rollout(problem=problem, prompt_ids=ids[:2], completion_ids=ids, text=text, finish_reason=finish)


def test_wilson_interval_equals_published_values():
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=5e-5)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)


def test_bootstrap_interval_of_equal_problems_has_no_width():
    assert bootstrap_interval([0.25] * 20, seed=0) == (0.25, 0.25)


def test_bootstrap_interval_of_zeros_and_ones_is_near_the_normal_approximation():
    # 100 problems, half right: standard error 0.05, so 0.5 +- 0.098
    assert bootstrap_interval([0.0, 1.0] * 50, seed=0) == pytest.approx((0.402, 0.598), abs=0.015)


def test_bootstrap_interval_is_fixed_by_its_seed_and_blind_to_order():
    means = np.random.default_rng(1).random(50)
    assert bootstrap_interval(means, seed=3) == bootstrap_interval(means[::-1], seed=3)
    assert bootstrap_interval(means, seed=3) != bootstrap_interval(means, seed=4)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 2, 1 - 3 / 6),  # 1 - C(3,2)/C(4,2)
        (4, 2, 2, 1 - 1 / 6),
        (4, 2, 1, 0.5),
        (4, 0, 4, 0.0),
        (4, 3, 2, 1.0),  # any two of four hold a right one
        (5, 2, 3, 1 - 1 / 10),
    ],
)
def test_pass_at_k_is_one_minus_the_chance_of_drawing_only_wrong_ones(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_does_not_overflow_where_factorials_would():
    exact = 1 - math.comb(9_990, 500) / math.comb(10_000, 500)
    assert pass_at_k(10_000, 10, 500) == pytest.approx(exact, abs=1e-9)


def test_majority_breaks_ties_by_first_seen_and_gives_missing_answers_no_vote():
    assert majority_answer(["2", "1", "1", "2"]) == "2"
    assert majority_answer([None, None, "3", None]) == "3"
    assert majority_answer([None, None]) is None
    assert majority_answer(["4 ", "5", " 4"]) == "4"


def test_greedy_metrics_by_hand():
    metrics = ReasoningMetrics()
    half = {"scorer": lambda _problem, answer: 1.0 if answer == "4" else 0.5}
    metrics.update([rollout("4", length=10), rollout("5", length=20, **half)])
    metrics.update([rollout(None, length=40, finish="length", think=False), rollout("4", length=30, think=False)])
    result = metrics.compute()
    low, high = wilson_interval(2, 4)
    assert result == pytest.approx(
        {
            "accuracy": 0.5,
            "accuracy_low": low,
            "accuracy_high": high,
            "score": 2.5 / 4,
            "format": 0.5,
            "truncated": 0.25,
            "length": 25.0,
            "problems": 4.0,
        }
    )


def test_sampled_metrics_by_hand():
    metrics = ReasoningMetrics()
    first = [rollout(a) for a in ("4", "4", "5", "7")]  # 2 of 4, majority right
    second = [rollout(a) for a in ("4", "5", "5", None)]  # 1 of 4, majority wrong
    metrics.update([], [first, second])
    result = metrics.compute()
    assert result["sampled_accuracy"] == pytest.approx(0.375)
    assert result["sampled_accuracy_low"] == 0.25
    assert result["sampled_accuracy_high"] == 0.5
    assert result["pass@1"] == pytest.approx(0.375)
    assert result["pass@2"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert result["pass@4"] == 1.0
    assert result["maj@4"] == 0.5
    assert result["problems"] == 2
    assert "accuracy" not in result
    assert "pass@8" not in result


def test_pass_at_k_stops_at_the_fewest_samples_and_majority_needs_equal_numbers():
    metrics = ReasoningMetrics()
    metrics.update([], [[rollout("4")] * 4, [rollout("5")] * 3])
    assert {key for key in metrics.compute() if "@" in key} == {"pass@1", "pass@2"}


def test_no_data_gives_no_metrics():
    assert ReasoningMetrics().compute() == {}


def test_order_and_batching_of_updates_do_not_matter():
    rollouts = [rollout(str(i % 5), id=str(i), length=i + 1) for i in range(20)]
    groups = [[rollout(str((i + j) % 5), id=str(i)) for j in range(4)] for i in range(20)]
    one, other = ReasoningMetrics(), ReasoningMetrics()
    one.update(rollouts, groups)
    for i in reversed(range(20)):
        other.update([rollouts[i]], [groups[i]])
    assert one.compute() == other.compute()


def test_a_problem_that_a_sampler_repeats_counts_once_and_problems_without_id_all_count():
    metrics = ReasoningMetrics()
    metrics.update([rollout("4", id="a"), rollout("5", id="b"), rollout("4", id="a")])
    assert metrics.compute()["accuracy"] == 0.5
    metrics.update([rollout("4"), rollout("4")])
    assert metrics.compute()["accuracy"] == 0.75


def test_reset_forgets():
    metrics = ReasoningMetrics()
    metrics.update([rollout("4")])
    metrics.reset()
    assert metrics.compute() == {}


def gather(rank, _):
    metrics = ReasoningMetrics()
    if rank == 0:  # rank 1 has no sampled completions at all, and repeats problem 0
        metrics.update([rollout("4", id="0"), rollout("5", id="1")], [[rollout("4", id="0")] * 2])
    else:
        metrics.update([rollout("4", id="2"), rollout("4", id="0")])
    return metrics.compute()


def test_two_ranks_with_unequal_shares_report_what_one_process_would(tmp_path):
    zero, one = on_two_ranks(gather, tmp_path)
    alone = ReasoningMetrics()
    alone.update(
        [rollout("4", id="0"), rollout("5", id="1"), rollout("4", id="2")],
        [[rollout("4", id="0")] * 2],
    )
    assert zero == one == alone.compute()
