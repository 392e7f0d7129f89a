from lit_reason_template.loss import SelfImitation
from lit_reason_template.reward import Phrases
from lit_reason_template.task import ArithmeticSequence

from lit_reason.testing import check_loss, check_reward, check_task, loss_inputs, sample_rollouts


def test_all_three_conform():
    check_task(ArithmeticSequence())
    check_reward(Phrases())
    check_loss(SelfImitation())
    check_loss(SelfImitation(beta=0.1))


def test_the_sequence_goes_on():
    task = ArithmeticSequence(largest=1, validation=0)
    (problem,) = task.problems("train")
    assert "1, 2, 3, 4?" in problem.prompt[-1]["content"]
    assert problem.score(" 5 ") == 1.0
    assert problem.score("6") == problem.score("five") == problem.score(None) == 0.0


def test_phrases_are_counted_up_to_enough():
    reward = Phrases(phrases=["wait"], enough=2)
    texts = ["no", "Wait.", "wait, wait", "wait wait wait"]
    assert [reward.score(rollout) for rollout in sample_rollouts(texts)] == [0.0, 0.5, 1.0, 1.0]


def test_only_what_beat_its_group_is_imitated():
    inputs = loss_inputs((2, 2))  # the first completion has a positive advantage, the second a negative one
    SelfImitation()(inputs).loss.backward()
    assert (inputs.logprobs.grad[0] == -inputs.advantages[0] / 4).all()  # 4 tokens in the window
    assert (inputs.logprobs.grad[1] == 0).all()
