"""The conformance kit passes sound rewards and names what is wrong with others."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from lit_reason.reward import Judgement, Reward
from lit_reason.rewards.accuracy import Accuracy
from lit_reason.rewards.format import Format
from lit_reason.testing import HOSTILE, check_reward, sample_rollouts
from lit_reason.types import Problem, Rollout


class NotANumber(Reward):
    def score(self, rollout: Rollout) -> float:
        return float("nan")


class TooFew(Reward):
    def score_group(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [1.0]


class Raises(Reward):
    def score(self, rollout: Rollout) -> float:
        return float(rollout.text.split("<answer>")[1][0] == "4")


class Fickle(Reward):
    def score(self, rollout: Rollout) -> float:
        return random.random()


class Remembers(Reward):
    def __init__(self) -> None:
        self.last = ""

    def score(self, rollout: Rollout) -> float:
        self.last, before = rollout.text, self.last
        return float(len(before))


class Meddles(Reward):
    def score(self, rollout: Rollout) -> float:
        rollout.problem.metadata["seen"] = True
        return 1.0


class Unfinished(Reward):
    pass


class Backtracks(Reward):
    def score(self, rollout: Rollout) -> float:
        count, text = 0, rollout.text
        while len(text) > 1_000:  # quadratic in the text's length, as a careless regular expression is
            count += text.count("<", 0)
            text = text[5:]
        return float(count > 0)


class WithLambda(Reward):
    def __init__(self) -> None:
        self.rule = lambda text: len(text) / 2

    def score(self, rollout: Rollout) -> float:
        return float(self.rule(rollout.text))


class Patient(Reward):
    """Waits for something else, and says how it judged."""

    async def score(self, rollout: Rollout) -> Judgement:
        await asyncio.sleep(0)
        return Judgement(value=0.5, status="half")


class Hurried(Reward):
    """Never ends on one of the texts."""

    deadline = 0.5

    def score(self, rollout: Rollout) -> float:
        while rollout.text == "nan":
            pass
        return 1.0


class HurriedInVain(Hurried):
    deadline = 0.0


class ShortestOfGroup(Reward):
    """A sound reward that compares the completions of a problem."""

    def score_group(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        shortest = min(r.length for r in rollouts)
        return [float(r.length == shortest) if r.finish_reason == "stop" else None for r in rollouts]


@pytest.mark.parametrize(
    "reward", [Accuracy(), Format(), Format(strict=False), ShortestOfGroup(), Patient(), Hurried()]
)
def test_sound_rewards_pass(reward: Reward) -> None:
    check_reward(reward)


@pytest.mark.parametrize(
    ("reward", "complaint"),
    [
        (NotANumber, "returned nan for problem 'sum-0'; expected a finite number or None"),
        (TooFew, "returned 1 values for 4 completions; expected one each"),
        (Raises, "raised IndexError: list index out of range"),
        (Fickle, "got another reward the second time"),
        (Remembers, "got another reward in another order"),
        (Meddles, "was changed; a reward only looks"),
        (Unfinished, "implements neither 'score' nor 'score_group'"),
        (
            HurriedInVain,
            "reward 'HurriedInVain': deadline must be seconds above 0 and at most 1e6, or None for no end, got 0.0",
        ),
        (WithLambda, "pickling the reward raised"),
    ],
)
def test_a_rewards_fault_is_named(reward: type[Reward], complaint: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_reward(reward())
    assert complaint in str(error.value)


def test_a_reward_that_takes_seconds_on_one_text_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_reason.testing.SECONDS_A_TEXT", 0.1)
    with pytest.raises(AssertionError, match=r"\(100000 characters\) took .* s to judge, expected less than 0\.1 s"):
        check_reward(Backtracks())


def test_a_reward_is_also_tried_on_rollouts_of_ones_own() -> None:
    class OnlySums(Reward):
        def score(self, rollout: Rollout) -> float:
            return float(eval(rollout.problem.metadata.get("sum", "0")))

    problem = Problem(prompt=[{"role": "user", "content": "?"}], metadata={"sum": "1 +"})
    with pytest.raises(AssertionError, match="SyntaxError"):
        check_reward(OnlySums(), rollouts=sample_rollouts(["a"], problem=problem))


def test_sample_rollouts_are_one_group_in_bytes() -> None:
    stopped, cut = sample_rollouts(["hé"], group=3)[0], sample_rollouts(["hé"], finish_reason="length")[0]
    assert stopped.completion_ids.tolist() == [104, 195, 169, 256]
    assert cut.completion_ids.tolist() == [104, 195, 169]
    assert (stopped.group, cut.finish_reason) == (3, "length")
    assert [r.problem.score("4") for r in sample_rollouts()] == [1.0] * 4
    assert all(r.text == text for r, text in zip(sample_rollouts(HOSTILE), HOSTILE, strict=True))
