"""transformers' continuous batching as an engine: the same greedy text as the default one, and repeatable samples."""

from pathlib import Path

import pytest
import torch

from lit_reason.attention import NAME
from lit_reason.engines.continuous import ContinuousBatching
from lit_reason.engines.in_process import InProcess
from lit_reason.policy import LoRA, Policy, PolicyOptions
from lit_reason.rollout import Completion, Engine, Request, Sampling, roll_out
from lit_reason.types import Problem, UserError
from lit_reason.update import collate

TEXTS = ("1 + 1", "a much longer question about 22 + 33 and what else there is", "x")


@pytest.fixture(scope="module")
def policy(tiny_llama: str) -> Policy:
    return Policy(PolicyOptions(model=tiny_llama))


def problems(*texts: str) -> list[Problem]:
    return [Problem(prompt=[{"role": "user", "content": text}], id=text) for text in texts]


def completions(
    policy: Policy, engine: Engine, sampling: Sampling, counts: tuple[int, ...]
) -> dict[tuple[int, int], Completion]:
    prompts = [policy.render(problem.prompt) for problem in problems(*TEXTS)]
    requests = [
        Request(prompt_ids=prompt, streams=tuple(range(100 * i, 100 * i + count)))
        for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True))
    ]
    return {(r, s): completion for r, s, completion in engine.generate(policy.eval(), requests, sampling)}


def test_greedy_completions_are_those_of_the_default_engine(policy: Policy) -> None:
    sampling = Sampling(temperature=0.0, max_new_tokens=24)
    expected = completions(policy, InProcess(), sampling, (1, 1, 1))
    found = completions(policy, ContinuousBatching(page_tokens=4), sampling, (1, 1, 1))
    assert found.keys() == expected.keys()
    for key, completion in expected.items():
        assert found[key].ids.tolist() == completion.ids.tolist()
        assert found[key].finish_reason == completion.finish_reason
        torch.testing.assert_close(found[key].logprobs, completion.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_other_architectures_generate_too(tiny_folders: dict[str, Path], architecture: str) -> None:
    policy = Policy(PolicyOptions(model=str(tiny_folders[architecture])))
    sampling = Sampling(temperature=0.0, max_new_tokens=8)
    expected = completions(policy, InProcess(), sampling, (1, 1, 1))
    found = completions(policy, ContinuousBatching(), sampling, (1, 1, 1))
    assert {k: c.ids.tolist() for k, c in found.items()} == {k: c.ids.tolist() for k, c in expected.items()}


def test_an_attention_without_a_paged_form_is_an_error_of_one_line(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama))
    policy.causal_lm.set_attn_implementation("flex_attention")
    with pytest.raises(UserError, match="not supported for continuous batching") as caught:
        completions(policy, ContinuousBatching(), Sampling(), (1, 1, 1))
    assert "\n" not in str(caught.value)


def test_groups_may_differ_in_size_and_more_wait_than_fit(policy: Policy) -> None:
    sampling = Sampling(temperature=1.0, max_new_tokens=6, concurrent=2)
    found = completions(policy, ContinuousBatching(page_tokens=4), sampling, (1, 3, 3))
    assert sorted(found) == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert all(1 <= len(c.ids) <= 6 for c in found.values())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_log_probabilities_are_the_trainers(policy: Policy, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, max_new_tokens=12)
    rollouts = roll_out(policy, problems(*TEXTS), sampling, 4, engine=ContinuousBatching())
    assert len({tuple(r.completion_ids.tolist()) for r in rollouts}) > 6
    logprobs, _ = policy.logprobs(collate(rollouts), temperature)
    for rollout, row in zip(rollouts, logprobs.detach(), strict=True):
        torch.testing.assert_close(rollout.sampler_logprobs, row[: rollout.length], atol=1e-4, rtol=0)


def test_the_streams_of_a_batch_decide_what_is_sampled(policy: Policy) -> None:
    def draw(*stream: int) -> list[list[int]]:
        torch.rand(7)  # other users of the global generator must not matter
        sampling = Sampling(max_new_tokens=8)
        rollouts = roll_out(policy, problems(*TEXTS), sampling, 4, stream=stream, engine=ContinuousBatching())
        return [r.completion_ids.tolist() for r in rollouts]

    assert draw(0, 5) == draw(0, 5)
    assert draw(0, 5) != draw(0, 6)


def test_sampling_leaves_the_global_generator_and_the_model_as_they_were(policy: Policy) -> None:
    policy.train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    roll_out(policy, problems("x"), Sampling(max_new_tokens=4), 2, engine=ContinuousBatching())
    assert torch.equal(torch.rand(1), expected)
    assert policy.causal_lm.config._attn_implementation == NAME
    assert policy.training
    assert policy.causal_lm.training


def test_top_p_and_top_k_are_obeyed_and_record_no_log_probabilities(policy: Policy) -> None:
    sampling = Sampling(temperature=2.0, top_k=1, max_new_tokens=8)
    found = completions(policy, ContinuousBatching(), sampling, (2, 2, 2))
    greedy = completions(policy, InProcess(), sampling.greedy(), (1, 1, 1))
    for (request, _), completion in found.items():
        assert completion.ids.tolist() == greedy[request, 0].ids.tolist()
        assert completion.logprobs is None


def test_a_stop_string_ends_a_completion(policy: Policy) -> None:
    sampling = Sampling(temperature=0.0, max_new_tokens=24)
    whole = completions(policy, InProcess(), sampling, (1, 1, 1))
    stop = policy.tokenizer.decode(whole[1, 0].ids[3:5])
    stopping = Sampling(temperature=0.0, max_new_tokens=24, stop=(stop,))
    expected = completions(policy, InProcess(), stopping, (1, 1, 1))
    found = completions(policy, ContinuousBatching(), stopping, (1, 1, 1))
    assert {k: c.ids.tolist() for k, c in found.items()} == {k: c.ids.tolist() for k, c in expected.items()}
    assert found[1, 0].finish_reason == "stop"
    assert len(found[1, 0].ids) < 24


def test_adapters_take_part(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama, lora=LoRA(rank=2, alpha=64)))
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    sampling = Sampling(temperature=0.0, max_new_tokens=12)
    expected = completions(policy, InProcess(), sampling, (1, 1, 1))
    found = completions(policy, ContinuousBatching(), sampling, (1, 1, 1))
    assert {k: c.ids.tolist() for k, c in found.items()} == {k: c.ids.tolist() for k, c in expected.items()}


@pytest.mark.parametrize("option", [{"min_p": 0.1}, {"repetition_penalty": 1.2}])
def test_what_transformers_would_ignore_is_refused(policy: Policy, option: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"sampling.{next(iter(option))}: ContinuousBatching cannot"):
        completions(policy, ContinuousBatching(), Sampling(**option), (1, 1, 1))


@pytest.mark.parametrize("option", [{"page_tokens": 2}, {"batch_tokens": 0}])
def test_impossible_sizes_are_named(option: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"engine.{next(iter(option))} must be"):
        ContinuousBatching(**option)


def test_logits_that_are_no_numbers_are_an_error_of_one_line(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama))
    with torch.no_grad():
        policy.causal_lm.get_output_embeddings().weight.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError) as caught:
            completions(policy, ContinuousBatching(), Sampling(temperature=temperature, max_new_tokens=4), (1, 1, 1))
        assert "\n" not in str(caught.value)
    assert policy.causal_lm.config._attn_implementation == NAME
