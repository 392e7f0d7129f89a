"""Rewards of a completion's length, against numbers worked by hand from the papers' formulas."""

import pytest
import torch

from lit_reason.rewards.cosine import Cosine
from lit_reason.rewards.kimi_length import KimiLength
from lit_reason.rewards.lcpo_exact import LCPOExact
from lit_reason.rewards.lcpo_max import LCPOMax
from lit_reason.rewards.length import Length
from lit_reason.rewards.overlong import Overlong
from lit_reason.testing import check_reward, sample_rollouts
from lit_reason.types import Problem, Rollout, UserError

RIGHT, WRONG, NONE = "<answer> 4 </answer>", "<answer> 5 </answer>", "no answer"


def rollout(text: str, tokens: int, *, scorer=None, **metadata) -> Rollout:
    given = {} if scorer is None else {"scorer": scorer}
    return Rollout(
        problem=Problem(
            prompt=[{"role": "user", "content": "2 + 2?"}], answer="4", id="sum", metadata=metadata, **given
        ),
        prompt_ids=torch.tensor([1]),
        completion_ids=torch.zeros(tokens, dtype=torch.int64),
        text=text,
    )


# --- cosine


@pytest.mark.parametrize(
    ("tokens", "right", "wrong"),
    [
        (0, 1.0, -1.0),
        (25, 0.926777, -0.926777),  # cos(pi / 4) = 0.707107
        (50, 0.75, -0.75),
        (75, 0.573223, -0.573223),
        (100, 0.5, -0.5),
        (250, 0.5, -0.5),
    ],
)
def test_cosine_falls_for_right_and_rises_for_wrong_answers_along_half_a_cosine(tokens, right, wrong):
    reward = Cosine(max_tokens=100)
    assert reward.score(rollout(RIGHT, tokens)) == pytest.approx(right, abs=1e-6)
    assert reward.score(rollout(WRONG, tokens)) == pytest.approx(wrong, abs=1e-6)
    assert reward.score(rollout(NONE, tokens)) == pytest.approx(wrong, abs=1e-6)


def test_cosine_takes_the_papers_other_values():
    # (r_0^c, r_L^c, r_0^w, r_L^w) = (2, 1, -10, 0), at a third of the limit, where cos(pi / 3) = 1/2
    reward = Cosine(max_tokens=30, correct_short=2.0, correct_long=1.0, wrong_short=-10.0, wrong_long=0.0)
    assert reward.score(rollout(RIGHT, 10)) == pytest.approx(1.75)
    assert reward.score(rollout(WRONG, 10)) == pytest.approx(-7.5)


def test_partial_credit_is_not_correct():
    half = rollout(RIGHT, 50, scorer=lambda problem, answer: 0.99)
    assert Cosine(max_tokens=100).score(half) == pytest.approx(-0.75)


# --- kimi_length


@pytest.mark.parametrize(
    ("group", "rewards"),
    [
        ([(RIGHT, 10), (RIGHT, 20), (RIGHT, 30)], [0.5, 0.0, -0.5]),
        ([(WRONG, 10), (WRONG, 20), (NONE, 30)], [0.0, 0.0, -0.5]),
        ([(RIGHT, 10), (RIGHT, 20), (RIGHT, 40), (WRONG, 10), (NONE, 35)], [0.5, 1 / 6, -0.5, 0.0, -1 / 3]),
        ([(RIGHT, 7), (WRONG, 7)], [0.0, 0.0]),  # all equally long
        ([(RIGHT, 7)], [0.0]),  # alone
        ([(NONE, 0), (RIGHT, 1)], [0.0, -0.5]),  # an empty completion is the shortest, and wrong
    ],
)
def test_kimi_length_compares_a_completion_with_its_own_group(group, rewards):
    assert KimiLength().score_group([rollout(*row) for row in group]) == pytest.approx(rewards)


# --- overlong


@pytest.mark.parametrize(
    ("tokens", "penalty"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0), (5000, -1.0)],
)
@pytest.mark.parametrize("text", [RIGHT, NONE])
def test_overlong_falls_inside_the_buffer_and_stays_at_minus_one_beyond(tokens, penalty, text):
    assert Overlong(max_tokens=100, buffer=20).score(rollout(text, tokens)) == pytest.approx(penalty)


def test_the_buffer_may_be_the_whole_limit():
    assert Overlong(max_tokens=4, buffer=4).score(rollout(NONE, 1)) == -0.25


# --- lcpo


@pytest.mark.parametrize(
    ("tokens", "right", "wrong"), [(200, 1.0, 0.0), (250, 0.985, -0.015), (0, 0.94, -0.06), (4200, -0.2, -1.2)]
)
def test_lcpo_exact_takes_a_part_for_each_token_off_the_target(tokens, right, wrong):
    for text, expected in ((RIGHT, right), (WRONG, wrong), (NONE, wrong)):
        assert LCPOExact().score(rollout(text, tokens, length_target=200)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("target", "tokens", "reward"),
    [
        (500, 500, 0.5),
        (500, 300, 0.56),
        (500, 600, 0.47),
        (500, 2166, 0.0002),  # 1,666 over: 0.5 - 0.4998
        (500, 2167, 0.0),
        (500, 9000, 0.0),
        (4000, 2334, 0.9998),
        (4000, 10, 1.0),
        (100, 0, 0.53),
    ],
)
def test_lcpo_max_pays_right_answers_for_what_they_leave_of_the_limit(target, tokens, reward):
    assert LCPOMax().score(rollout(RIGHT, tokens, length_target=target)) == pytest.approx(reward)
    assert LCPOMax().score(rollout(WRONG, tokens, length_target=target)) == 0.0
    assert LCPOMax().score(rollout(NONE, tokens, length_target=target)) == 0.0


def test_the_options_of_lcpo_are_those_of_the_formulas():
    assert LCPOExact(alpha=0.01).score(rollout(RIGHT, 110, length_target=100)) == pytest.approx(0.9)
    assert LCPOMax(alpha=0.01, delta=0.3).score(rollout(RIGHT, 110, length_target=100)) == pytest.approx(0.2)


def test_lcpo_names_the_task_that_writes_targets_when_there_is_none():
    with pytest.raises(UserError, match=r"'lcpo_exact': problem 'sum' has no length target; wrap .*mode: exact"):
        LCPOExact().score(rollout(RIGHT, 3))


def test_lcpo_refuses_targets_that_mean_something_else():
    with pytest.raises(UserError, match=r"'lcpo_max': .* with mode: exact; set mode: max there"):
        LCPOMax().score(rollout(RIGHT, 3, length_target=100, length_mode="exact"))


# --- all of them


def test_the_end_of_sequence_token_counts():
    stopped, cut = (
        sample_rollouts(["abc"], finish_reason=reason, problem=rollout(NONE, 0, length_target=3).problem)[0]
        for reason in ("stop", "length")
    )
    for reward, at_three, at_four in (
        (Overlong(max_tokens=4, buffer=2), -0.5, -1.0),
        (Length(target=2, span=2), -0.5, -1.0),
        (LCPOExact(alpha=0.1), 0.0, -0.1),
        (Cosine(max_tokens=3, wrong_short=0.0, wrong_long=-3.0), -3.0, -3.0),
        (Cosine(max_tokens=8, wrong_short=0.0, wrong_long=-2.0), -0.617317, -1.0),  # cos(3 pi / 8) = 0.382683
    ):
        assert [reward.score(cut), reward.score(stopped)] == pytest.approx([at_three, at_four])
    assert KimiLength().score_group([cut, stopped]) == [0.0, -0.5]


def test_length_is_in_tokens_whatever_the_text():
    assert Overlong(max_tokens=10, buffer=5).score(rollout("a" * 1000, 5)) == 0.0


@pytest.mark.parametrize(
    "reward",
    [Cosine(max_tokens=40), KimiLength(), Overlong(max_tokens=40, buffer=8), LCPOExact(), LCPOMax()],
    ids=lambda reward: type(reward).__name__,
)
def test_length_rewards_conform(reward):
    asked = Problem(prompt=[{"role": "user", "content": "2 + 2?"}], answer="4", metadata={"length_target": 30})
    check_reward(reward, rollouts=sample_rollouts(problem=asked))


class ChokesOnNothing(LCPOExact):
    def score(self, rollout: Rollout) -> float:
        if not rollout.text:
            raise UserError("reward 'chokes': empty")
        return super().score(rollout)


def test_a_reward_without_the_problems_it_asks_for_is_not_called_broken_but_no_text_is_an_excuse():
    with pytest.raises(UserError, match="'lcpo_exact': problem 'sum-0' has no length target"):
        check_reward(ChokesOnNothing())
    asked = Problem(prompt=[{"role": "user", "content": "2 + 2?"}], answer="4", metadata={"length_target": 30})
    with pytest.raises(AssertionError, match="the completion '': reward 'chokes': empty"):
        check_reward(ChokesOnNothing(), rollouts=sample_rollouts(problem=asked))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Cosine, {"max_tokens": 0}, "'cosine': max_tokens must be 1 or more, got 0"),
        (Overlong, {"max_tokens": 8, "buffer": 9}, "'overlong': buffer must be 1 to max_tokens = 8 tokens, got 9"),
        (Overlong, {"max_tokens": 8, "buffer": 0}, "'overlong': buffer must be 1 to max_tokens = 8 tokens, got 0"),
        (LCPOExact, {"alpha": 0.0}, "'lcpo_exact': alpha must be above 0, got 0.0"),
        (LCPOExact, {"alpha": float("nan")}, "'lcpo_exact': alpha must be above 0, got nan"),
        (LCPOMax, {"alpha": -1.0}, "'lcpo_max': alpha must be above 0, got -1.0"),
        (LCPOMax, {"delta": 1.5}, "'lcpo_max': delta must lie between 0 and 1, got 1.5"),
    ],
)
def test_options_out_of_range_are_one_line(kind, options, said):
    with pytest.raises(UserError) as error:
        kind(**options)
    assert str(error.value) == f"reward {said}"
