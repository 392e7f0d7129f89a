"""Scoring: weights, exclusions, and rewards that misbehave."""

import asyncio
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_reason import GRPO, PolicyOptions, Sampling
from lit_reason.reward import Judgement, Reward, WeightedReward, weighted_rewards
from lit_reason.scoring import Scorer
from lit_reason.scoring_group import Tally
from lit_reason.types import Problem, Rollout, UserError


class Fixed(Reward):
    def __init__(self, judge: Callable[[Rollout], object]) -> None:
        self.judge = judge

    def score(self, rollout: Rollout) -> float | None:
        return self.judge(rollout)


class Rank(Reward):
    """A group reward: position by length within the group."""

    def score_group(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        order = sorted(rollouts, key=lambda r: r.length)
        return [float(order.index(r)) for r in rollouts]


class Short(Reward):
    def score_group(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [1.0]


def rollouts(groups: Sequence[int]) -> list[Rollout]:
    return [
        Rollout(
            problem=Problem(prompt=[], id=f"p{group}"),
            prompt_ids=torch.zeros(1, dtype=torch.int64),
            completion_ids=torch.zeros(index + 1, dtype=torch.int64),
            text=str(index),
            group=group,
        )
        for index, group in enumerate(groups)
    ]


def named(name: str, reward: Reward, weight: float = 1.0) -> WeightedReward:
    return WeightedReward(name=name, weight=weight, reward=reward)


def score(rows: list[Rollout], rewards: list[WeightedReward], **options: str) -> dict[str, Tally]:
    scorer = Scorer(rewards, **options)
    try:
        scorer.collect(rows)
    finally:
        scorer.close()
    return scorer.take()


def test_reward_is_the_weighted_sum_by_name() -> None:
    rows = rollouts([0, 0])
    score(rows, [named("a", Fixed(lambda r: 1.0), 0.85), named("b", Fixed(lambda r: float(r.text)), 0.15)])
    assert rows[1].rewards == {"a": 1.0, "b": 1.0}
    assert [r.reward for r in rows] == pytest.approx([0.85, 1.0])


def test_none_is_left_out_of_the_sum_and_all_none_leaves_the_row_out() -> None:
    rows = rollouts([0, 0])
    some = Fixed(lambda r: None if r.text == "0" else 2.0)
    score(rows, [named("some", some), named("never", Fixed(lambda r: None))])
    assert [r.reward for r in rows] == [None, 2.0]


def test_group_rewards_see_one_group_whatever_the_order() -> None:
    rows = rollouts([0, 1, 0, 1, 1])
    score(rows, [named("rank", Rank())])
    assert [r.reward for r in rows] == [0.0, 0.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_rewards_are_an_error_or_masked_and_counted(value: float) -> None:
    bad = named("shaky", Fixed(lambda r: value if r.text == "1" else 1.0))
    with pytest.raises(UserError, match=r"reward 'shaky' returned .* for problem 'p0'"):
        score(rollouts([0, 0]), [bad])
    rows = rollouts([0, 0])
    assert score(rows, [bad], nonfinite="mask")["shaky"].statuses == {"ok": 1, "nonfinite": 1}
    assert [r.reward for r in rows] == [1.0, None]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (Short(), "returned 1 values for 2 completions"),
        (Fixed(lambda r: "good"), "returned 'good' of type str"),
        (Fixed(lambda r: 1 / 0), "raised ZeroDivisionError"),
        (Reward(), "implements neither 'score' nor 'score_group'"),
    ],
)
def test_rewards_that_misbehave_are_named_in_one_line(reward: Reward, words: str) -> None:
    with pytest.raises(UserError) as caught:
        score(rollouts([0, 0]), [named("odd", reward)])
    assert "reward 'odd'" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_raising_reward_says_where() -> None:
    with pytest.raises(UserError, match=r"test_reward\.py, line \d+"):
        score(rollouts([0]), [named("odd", Fixed(lambda r: 1 / 0))])


def test_rewards_of_a_configuration_need_a_name_each() -> None:
    with pytest.raises(UserError, match="more than once"):
        weighted_rewards(["accuracy", "accuracy"])
    with pytest.raises(UserError, match="empty"):
        weighted_rewards([])
    built = weighted_rewards(["accuracy", {"format": {"strict": True, "weight": 0.15}}, tally])
    assert [(w.name, w.weight) for w in built] == [("accuracy", 1.0), ("format", 0.15), ("tally", 1.0)]


def tally(rollout: Rollout) -> float:
    return float(rollout.length)


class Slow(Reward):
    async def score(self, rollout: Rollout) -> Judgement | None:
        await asyncio.sleep(0)
        return None if rollout.text == "0" else Judgement(value=0.5, status="half")


class SlowRank(Rank):
    async def score_group(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        await asyncio.sleep(0)
        return super().score_group(rollouts)


def test_rewards_may_be_async_and_say_how_they_judged() -> None:
    rows = rollouts([0, 0, 0])
    tallies = score(rows, [named("slow", Slow()), named("rank", SlowRank())])
    assert [r.rewards for r in rows] == [{"slow": v, "rank": i} for i, v in enumerate((None, 0.5, 0.5))]
    assert tallies["slow"].statuses == {"ok": 1, "half": 2}
    assert tallies["rank"].statuses == {"ok": 3}


def test_a_phase_of_which_no_reward_says_anything_is_told_once(tiny_llama: str) -> None:
    def nothing(rollout: Rollout) -> None:
        return None

    module = GRPO([nothing], policy=PolicyOptions(model=tiny_llama), sampling=Sampling(max_new_tokens=4), group_size=2)
    problems = [Problem(prompt=[{"role": "user", "content": f"{n}"}]) for n in range(2)]
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="no reward applied to any of the 2 completions") as told:
        trainer.fit(module, DataLoader(problems, collate_fn=list))
    assert sum("no reward applied" in str(warning.message) for warning in told) == 1
