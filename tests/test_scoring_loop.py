"""Async rewards that misbehave: nobody waits for them for ever."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch

from lit_reason import Problem, Reward, Rollout
from lit_reason.reward import WeightedReward
from lit_reason.scoring import Scorer
from lit_reason.types import UserError


def rollouts(*texts: str) -> list[Rollout]:
    one = torch.ones(1, dtype=torch.int64)
    return [Rollout(problem=Problem(prompt=[]), prompt_ids=one, completion_ids=one, text=text) for text in texts]


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
        strict.collect(rollouts("good", "bad"))
    strict.close()
    lenient = Scorer(weighted, failures="exclude")
    rows = rollouts("good", "bad")
    with pytest.warns(UserWarning, match="left out"):
        lenient.collect(rows)
    lenient.close()
    assert [r.reward for r in rows] == [1.0, None]


@pytest.mark.parametrize("reward", [Stubborn(), Blocks()])
def test_closing_does_not_wait_for_what_does_not_end(reward: Reward, release: None) -> None:
    scorer = Scorer([WeightedReward(name="stuck", weight=1.0, reward=reward)])
    scorer.submit(rollouts("a"))
    closing = threading.Thread(target=scorer.close)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
