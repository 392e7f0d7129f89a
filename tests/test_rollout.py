"""Rolling out: groups, prompts that do not fit, random streams, and where a completion ends."""

import pytest
import torch

from lit_reason.policy import Policy, PolicyOptions
from lit_reason.rollout import Sampling, roll_out
from lit_reason.types import Problem, UserError


@pytest.fixture(scope="module")
def policy(tiny_llama: str) -> Policy:
    return Policy(PolicyOptions(model=tiny_llama))


def problems(*texts: str) -> list[Problem]:
    return [Problem(prompt=[{"role": "user", "content": text}], id=text) for text in texts]


def test_each_problem_gets_its_group_in_order(policy: Policy) -> None:
    rollouts = roll_out(
        policy, problems("1 + 1", "a much longer question about 22 + 33"), Sampling(max_new_tokens=4), 3
    )
    assert [r.group for r in rollouts] == [0, 0, 0, 1, 1, 1]
    assert [r.problem.id for r in rollouts[::3]] == ["1 + 1", "a much longer question about 22 + 33"]
    assert all(r.length <= 4 for r in rollouts)


def test_finish_reason_says_whether_the_model_ended_by_itself(policy: Policy) -> None:
    rollouts = roll_out(policy, problems("1 + 1"), Sampling(max_new_tokens=40, temperature=2.0), 64)
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        ended = int(rollout.completion_ids[-1]) in policy.eos_ids
        assert rollout.finish_reason == ("stop" if ended else "length")
        if not ended:
            assert rollout.length == 40
        assert not any(int(i) in policy.eos_ids for i in rollout.completion_ids[:-1])


def test_the_random_stream_alone_decides_what_is_sampled(policy: Policy) -> None:
    def draw(*stream: int) -> list[list[int]]:
        torch.rand(7)  # other users of the global generator must not matter
        sampled = roll_out(policy, problems("1 + 1"), Sampling(max_new_tokens=8), 4, stream=stream)
        return [r.completion_ids.tolist() for r in sampled]

    assert draw(0, 5) == draw(0, 5)
    assert draw(0, 5) != draw(0, 6)
    assert draw(0, 5) != draw(5, 0)


def test_sampling_leaves_the_global_generator_alone(policy: Policy) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    roll_out(policy, problems("1 + 1"), Sampling(max_new_tokens=4), 2)
    assert torch.equal(torch.rand(1), expected)


def test_prompts_that_leave_no_room_in_the_context_are_left_out(policy: Policy) -> None:
    assert policy.context is not None
    long = "7 " * policy.context
    rollouts = roll_out(policy, problems("1 + 1", long, "2 + 2"), Sampling(max_new_tokens=4), 2)
    assert [r.group for r in rollouts] == [0, 0, 2, 2]
    assert roll_out(policy, problems(long), Sampling(max_new_tokens=4), 2) == []


def test_generating_in_parts_does_not_reorder(policy: Policy) -> None:
    asked = problems("1 + 1", "some longer question", "2 + 2", "x")
    whole = roll_out(policy, asked, Sampling(max_new_tokens=5, temperature=0.0))
    parts = roll_out(policy, asked, Sampling(max_new_tokens=5, temperature=0.0, concurrent=2))
    assert [r.completion_ids.tolist() for r in whole] == [r.completion_ids.tolist() for r in parts]


@pytest.mark.parametrize(
    "option",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 1.0}, {"max_new_tokens": 0}, {"concurrent": 0}],
)
def test_impossible_sampling_options_are_named(option: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"sampling.{next(iter(option))} must be"):
        Sampling(**option)
