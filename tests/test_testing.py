"""The conformance kit passes what is sound and names what is not."""

import asyncio
import random
from collections.abc import Sequence

import pytest
import torch

from lit_reason.loss import Loss, PolicyLoss
from lit_reason.losses.bnpo import BNPO
from lit_reason.losses.cross_entropy import CrossEntropy
from lit_reason.losses.dapo import DAPO
from lit_reason.reward import Judgement, Reward
from lit_reason.rewards.accuracy import Accuracy
from lit_reason.rewards.format import Format
from lit_reason.task import Task
from lit_reason.testing import HOSTILE, check_loss, check_reward, check_task, loss_inputs, sample_rollouts
from lit_reason.types import LossInputs, LossOutput, Problem, Rollout

# --- tasks


class Sound(Task):
    """Sums, twenty to learn from and five held out; the classes below each spoil one thing."""

    def problems(self, split: str) -> Sequence[Problem]:
        numbers = range(20) if split == "train" else range(20, 25)
        return [self.make(n) for n in numbers]

    def make(self, n: int) -> Problem:
        prompt = [{"role": "user", "content": f"{n} + 1?"}]
        return Problem(prompt=prompt, answer=str(n + 1), id=str(n), scorer=self.score)


class Adaptive(Sound):
    def __init__(self) -> None:
        self.level = 1

    def state_dict(self) -> dict[str, int]:
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.level = state["level"]


class Leaking(Sound):
    def problems(self, split: str) -> Sequence[Problem]:
        return [self.make(n) for n in (range(20) if split == "train" else range(19, 25))]


class Restless(Sound):
    def make(self, n: int) -> Problem:
        return super().make(n + 100 * random.randrange(10**9))


class SameId(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.id = "same"
        return problem


class Nameless(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.id = ""
        return problem


class EndsWithAssistant(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.prompt = [*problem.prompt, {"role": "assistant", "content": "hm"}]
        return problem


class OddRole(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.prompt = [{"role": "developer", "content": "x"}, *problem.prompt]
        return problem


class TextPrompt(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.prompt = f"{n}"  # type: ignore[assignment]  # the mistake under test
        return problem


class WrongGold(Sound):
    def score(self, problem: Problem, answer: str | None) -> float:
        return float(answer is not None and answer == "never")


class TrustsInt(Sound):
    def score(self, problem: Problem, answer: str | None) -> float:
        return float(answer is not None and int(answer) == int(problem.answer or 0))


class AcceptsNothing(Sound):
    def score(self, problem: Problem, answer: str | None) -> float:
        return 1.0


class OutOfRange(Sound):
    def score(self, problem: Problem, answer: str | None) -> float:
        return super().score(problem, answer) * 1.0 if answer == problem.answer else -1.0


class Endless(Sound):
    class Sequence(list):  # a sequence that wraps around
        def __getitem__(self, index):
            return super().__getitem__(index % len(self))

    def problems(self, split: str) -> Sequence[Problem]:
        return Endless.Sequence(super().problems(split))


class LocalScorer(Sound):
    def make(self, n: int) -> Problem:
        problem = super().make(n)
        problem.scorer = lambda p, answer: float(answer == p.answer)
        return problem


class Empty(Sound):
    def problems(self, split: str) -> Sequence[Problem]:
        return []


class StateOfTensors(Sound):
    def state_dict(self):
        return {"level": torch.ones(1)}


@pytest.mark.parametrize("task", [Sound(), Adaptive()])
def test_sound_tasks_pass(task: Task) -> None:
    check_task(task)


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (Leaking, "train and validation share 1 prompts, such as"),
        (Restless, "problems('train')[0] is another problem in a second call"),
        (SameId, "ids of 'train' are not unique: 'same' appears twice"),
        (Nameless, "a problem of 'train' has no id"),
        (EndsWithAssistant, "the prompt ends with a message of 'assistant', expected 'user'"),
        (OddRole, "roles are system, user and assistant, got 'developer'"),
        (TextPrompt, "prompt must be a list of messages, got '0'"),
        (WrongGold, "the gold answer '1' scores 0.0, not 1.0"),
        (TrustsInt, "scoring the answer '' raised ValueError"),
        (AcceptsNothing, "a completion without an answer scores 1.0"),
        (OutOfRange, "the answer None scores -1.0, expected a number in [0, 1]"),
        (Endless, "problems('train')[len] gave a problem, expected IndexError"),
        (LocalScorer, "pickling a problem raised"),
        (Empty, "problems('train') is empty"),
        (StateOfTensors, "state_dict is not made of plain values"),
    ],
)
def test_a_tasks_fault_is_named(task: type[Task], complaint: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_task(task())
    assert str(error.value).startswith(f"{task.__name__} does not conform:\n- ")
    assert complaint in str(error.value)


# --- rewards


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

    deadline = 0.2

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


# --- losses


def term(inputs: LossInputs) -> torch.Tensor:
    """-A log pi where it counts."""
    return torch.where(inputs.mask, -inputs.advantages * inputs.logprobs, 0.0)


class MicroBatchMean(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=term(inputs).sum() / inputs.mask.sum())


class PaddedMean(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=term(inputs).mean() * inputs.mask.shape[0] / inputs.window.sequences)


class IgnoresMask(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=-(inputs.advantages * inputs.logprobs).sum() / inputs.window.tokens)


class MultipliesMask(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=-(inputs.advantages * inputs.logprobs * inputs.mask).sum() / inputs.window.tokens)


class Detached(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=term(inputs).sum().detach())


class PerToken(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=term(inputs))


class NoOutput(Loss):
    def __call__(self, inputs: LossInputs) -> torch.Tensor:  # type: ignore[override]  # the mistake under test
        return term(inputs).sum()


class MeanMetric(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        entropy = inputs.entropies[inputs.mask].mean().nan_to_num()
        return LossOutput(loss=term(inputs).sum() / inputs.window.tokens, metrics={"entropy": entropy})


class LiveMetric(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        total = term(inputs).sum()
        return LossOutput(loss=total / inputs.window.tokens, metrics={"total": total})


class InPlace(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        inputs.advantages.clamp_(min=0)
        return LossOutput(loss=term(inputs).sum() / inputs.window.tokens)


class UndeclaredReference(PolicyLoss):
    def surrogate(self, inputs: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return inputs.logprobs - inputs.reference_logprobs, {}


class NeverZero(Loss):
    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=term(inputs).sum() / inputs.window.tokens + 1.0)


@pytest.mark.parametrize("loss", [DAPO(), DAPO(beta=0.1), CrossEntropy(), BNPO()])
def test_sound_losses_pass(loss: Loss) -> None:
    check_loss(loss)


@pytest.mark.parametrize(
    ("loss", "complaint"),
    [
        (MicroBatchMean, "two micro-batches of one window sum to"),
        (PaddedMean, "three more columns of padding: the loss is"),
        (IgnoresMask, "NaN behind the mask: the loss is nan"),
        (MultipliesMask, "NaN behind the mask: the loss is nan"),
        (Detached, "the loss carries no gradient"),
        (PerToken, "the loss is no scalar tensor"),
        (NoOutput, "answers Tensor, expected lit_reason.types.LossOutput"),
        (MeanMetric, "the metric 'entropy' is no sum over tokens"),
        (LiveMetric, "the metric 'total' is no finite, detached scalar tensor"),
        (InPlace, "changes its input 'advantages' in place"),
        (UndeclaredReference, "the loss raised TypeError"),
        (NeverZero, "nothing counts: the loss is 1.0, expected 0"),
    ],
)
def test_a_losss_fault_is_named(loss: type[Loss], complaint: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_loss(loss())
    assert complaint in str(error.value)


def test_loss_inputs_have_a_window_of_their_own_and_rows_that_stay_the_same() -> None:
    one, two = loss_inputs((3,)), loss_inputs((3, 0, 2), padding=1, reference=True)
    assert (two.window.sequences, two.window.tokens) == (2.0, 5.0)
    assert two.mask.tolist() == [[True] * 3 + [False], [False] * 4, [True, True, False, False]]
    assert torch.equal(one.logprobs[0], two.logprobs[0, :3])
    assert one.reference_logprobs is None
    assert (two.advantages[0, :3] > 0).all()
    assert two.logprobs.requires_grad
    assert two.logprobs.is_leaf
