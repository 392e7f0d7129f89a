"""Async rewards: all wait at once, and nobody waits for those that misbehave for ever."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from scoring_rewards import AsyncOdd, Meeting, Rank, Timed, async_length
from scoring_tools import group, values

from lit_reason import Reward, Rollout
from lit_reason.reward import WeightedReward, weighted_rewards
from lit_reason.scoring import Scorer
from lit_reason.types import UserError


class Ends(Exception):  # noqa: N818 - what it is called is part of the test
    def __str__(self) -> str:
        raise RuntimeError("no text either")


class Raises(Reward):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    async def score(self, rollout: Rollout) -> float:
        await asyncio.sleep(0)
        if rollout.text == "bad":
            raise self.error
        return 1.0


class Stubborn(Reward):
    """Goes on waiting when it is cancelled."""

    async def score(self, rollout: Rollout) -> float:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue


class Blocks(Reward):
    """Blocks the loop until the test is over."""

    over = threading.Event()

    async def score(self, rollout: Rollout) -> float:
        self.over.wait(60)
        return 1.0


@pytest.fixture
def release() -> Iterator[None]:
    yield
    Blocks.over.set()


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, KeyError, Ends, SystemExit])
def test_whatever_an_async_reward_raises_is_told_or_left_out(error: type[BaseException]) -> None:
    weighted = [WeightedReward(name="odd", weight=1.0, reward=Raises(error))]
    strict = Scorer(weighted)
    with pytest.raises(UserError, match=f"reward 'odd' raised {error.__name__}"):
        strict.collect(group("good", "bad"))
    strict.close()
    lenient = Scorer(weighted, failures="exclude")
    rows = group("good", "bad")
    with pytest.warns(UserWarning, match="left out"):
        lenient.collect(rows)
    lenient.close()
    assert [r.reward for r in rows] == [1.0, None]


@pytest.mark.parametrize("reward", [Stubborn(), Blocks()])
def test_closing_does_not_wait_for_what_does_not_end(reward: Reward, release: None) -> None:
    scorer = Scorer([WeightedReward(name="stuck", weight=1.0, reward=reward)])
    scorer.submit(group("a"))
    closing = threading.Thread(target=scorer.close)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()


def test_async_rewards_of_all_rows_run_at_once(scorer) -> None:
    rows = [row for number in range(8) for row in group("a", "bb", number=number)]
    assert values(scorer(Rank(), Meeting(16)), rows) == [2.0, 3.0] * 8


def test_groups_that_were_submitted_wait_together(scorer) -> None:
    pool = scorer(Meeting(4), Meeting(4))
    rows = [*group("a", "b"), *group("a", "b", number=1)]
    pool.submit(rows[:2])
    pool.submit(rows[2:])
    assert values(pool, rows) == [6.0] * 4


@pytest.mark.parametrize("act", ["raise", "exit", "nan", "text", "generator", "cancelled"])
def test_async_failures_are_like_others(scorer, act) -> None:
    with pytest.raises(UserError, match=r"reward 'r0' (raised|returned)"):
        scorer(AsyncOdd()).collect(group("a", act))
    pool = scorer(AsyncOdd(), failures="exclude")
    with pytest.warns(UserWarning, match="left out"):
        assert values(pool, group("a", act)) == [1.0, None]
    assert pool.take()["r0"].statuses["fine"] == 1


def test_a_plain_async_function_is_a_reward_and_stays_in_this_process() -> None:
    def loop_of(rollout: Rollout) -> object:
        return later(rollout)

    async def later(rollout: Rollout) -> float:
        return 1.0

    pool = Scorer(weighted_rewards([async_length, later]), workers=1)  # what is local cannot be sent
    try:
        assert values(pool, group("abc")) == [4.0]
    finally:
        pool.close()
    pool = Scorer(weighted_rewards([loop_of]))  # not declared async, and yet awaited
    try:
        assert values(pool, group("abc")) == [1.0]
    finally:
        pool.close()


def test_any_thread_may_score_also_one_that_runs_a_loop(scorer) -> None:
    pool = scorer(Meeting(2), Timed())
    found: list[object] = []

    async def inside() -> None:
        found.append(values(pool, group("a", "sleep")))

    thread = threading.Thread(target=lambda: asyncio.run(inside()))
    thread.start()
    thread.join()
    assert found == [[3.0, 2.0]]
    assert asyncio.run(_score(pool)) == [3.0, 3.0]


async def _score(pool: Scorer) -> list[float | None]:
    return values(pool, group("a", "b"))


def test_closing_ends_what_still_waits(scorer) -> None:
    pool = scorer(Meeting(3))
    pool.submit(group("a", "b"))
    pool.close()
    assert not [t for t in threading.enumerate() if t.name == "async rewards"]
