"""The in-process engine: the tokens of plain `generate`, whatever else is in the batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_ranks import on_two_ranks

import lit_reason.attention as attention_module
from lit_reason.batching import collate
from lit_reason.engines import in_process
from lit_reason.engines import straight as straight_module
from lit_reason.engines.generate import Generate
from lit_reason.policy import LoRA, Policy, PolicyOptions
from lit_reason.rollout import Sampling, roll_out
from lit_reason.types import Problem, Rollout, UserError

TEXTS = ["1 + 1", "a somewhat longer question about 22 + 33", "x", "2 + 2 = ?", "and one more"]


@pytest.fixture(scope="module")
def policy(tiny_llama: str) -> Policy:
    return Policy(PolicyOptions(model=tiny_llama))


def problems(*texts: str) -> list[Problem]:
    return [Problem(prompt=[{"role": "user", "content": text}], id=text) for text in texts]


def tokens(rollouts: list[Rollout]) -> list[list[int]]:
    return [r.completion_ids.tolist() for r in rollouts]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma2"])
def test_greedy_completions_are_those_of_plain_generate(tiny_folders: dict[str, Path], architecture: str) -> None:
    policy = Policy(PolicyOptions(model=str(tiny_folders[architecture])))
    ours = roll_out(policy, problems(*TEXTS), Sampling(temperature=0.0, max_new_tokens=24))
    plain = policy.generate([r.prompt_ids for r in ours], do_sample=False, max_new_tokens=24)
    assert tokens(ours) == [ids.tolist() for ids in plain]


OPTIONS = [
    {},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 30, "min_p": 0.01},
    {"repetition_penalty": 1.3, "temperature": 1.5},
    {"stop": ("a", "7")},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("road", ["cpu", "accelerator", "fixed shapes"])
def test_both_engines_draw_the_same_completions(
    policy: Policy, options: dict[str, float], road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Generate` is transformers' forward, cache and attention; the accelerators' attention runs here too."""
    if road != "cpu":
        monkeypatch.setattr(attention_module, "ON_CPU", "never")
    if road == "fixed shapes":
        monkeypatch.setattr(in_process, "DEVICES", {"cpu"})
        monkeypatch.setattr(in_process, "STEPS_BETWEEN_LOOKS", {"cpu": 8})
    sampling = Sampling(max_new_tokens=40, **options)
    ours = roll_out(policy, problems(*TEXTS), replace(sampling, concurrent=7), 3, stream=(5,))
    plain = roll_out(policy, problems(*TEXTS), sampling, 3, stream=(5,), engine=Generate())
    assert tokens(ours) == tokens(plain)
    assert [r.finish_reason for r in ours] == [r.finish_reason for r in plain]
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.sampler_logprobs, b.sampler_logprobs, atol=1e-4, rtol=0)


def test_recorded_logprobs_are_the_trainers(policy: Policy) -> None:
    sampling = Sampling(max_new_tokens=30, temperature=0.8, top_p=0.9)
    rollouts = roll_out(policy, problems(*TEXTS), sampling, 4)
    with torch.no_grad():
        trained, _ = policy.logprobs(collate(rollouts, sharing=True), 0.8)
    for rollout, row in zip(rollouts, trained, strict=True):
        torch.testing.assert_close(rollout.sampler_logprobs, row[: rollout.length], atol=1e-4, rtol=0)


@pytest.mark.parametrize("crowd", ["alone", "refilled", "two at a time", "other order", "bounded cache"])
def test_a_completion_does_not_depend_on_its_company(policy: Policy, crowd: str) -> None:
    """64 together, against: by itself, after refills of four rows, in another order, under a token budget."""
    asked = problems(*(f"{a} + {b}" for a in range(4) for b in range(4)))
    sampling = Sampling(max_new_tokens=40)
    together = {
        (r.problem.id, i % 4): r.completion_ids.tolist() for i, r in enumerate(roll_out(policy, asked, sampling, 4))
    }
    if crowd == "alone":
        other = [r for problem in asked for r in roll_out(policy, [problem], sampling, 4)]
    elif crowd == "other order":
        other = roll_out(policy, asked[::-1], sampling, 4)
    else:
        bounds = {
            "refilled": {"concurrent": 4},
            "two at a time": {"concurrent": 2},
            "bounded cache": {"cache_tokens": 300},
        }
        other = roll_out(policy, asked, Sampling(max_new_tokens=40, **bounds[crowd]), 4)
    assert {(r.problem.id, i % 4): r.completion_ids.tolist() for i, r in enumerate(other)} == together


def test_a_completion_is_the_same_on_two_ranks(policy: Policy, tmp_path: Path) -> None:
    """Two gloo ranks with half of the prompts each, against one process with all of them."""
    asked = problems(*(f"{a} + 7" for a in range(8)))

    def completions(asked: list[Problem]) -> dict[str, list[int]]:
        rollouts = roll_out(policy, asked, Sampling(max_new_tokens=30), 3, stream=(0, 4))
        return {f"{r.problem.id}/{i % 3}": r.completion_ids.tolist() for i, r in enumerate(rollouts)}

    zero, one = on_two_ranks(lambda rank, _: completions(asked[rank::2]), tmp_path)
    assert len(zero) == len(one) == 12
    assert zero | one == completions(asked)


def test_a_problem_asked_twice_is_answered_twice(policy: Policy) -> None:
    first, second = roll_out(policy, problems("1 + 1", "1 + 1"), Sampling(max_new_tokens=30))
    assert first.completion_ids.tolist() != second.completion_ids.tolist()


def test_looking_only_now_and_then_changes_nothing(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator rows are looked at every few tokens; those that ended meanwhile are cut where they ended."""
    sampling = Sampling(max_new_tokens=37, temperature=1.5)
    expected = tokens(roll_out(policy, problems(*TEXTS), sampling, 6, stream=(1,)))
    monkeypatch.setattr(in_process, "STEPS_BETWEEN_LOOKS", {"cpu": 8})
    for few in (256, 3):
        found = roll_out(policy, problems(*TEXTS), replace(sampling, concurrent=few), 6, stream=(1,))
        assert tokens(found) == expected


def test_groups_are_handed_over_as_they_finish(policy: Policy) -> None:
    seen: list[int] = []
    rollouts = roll_out(
        policy, problems(*TEXTS), Sampling(max_new_tokens=30), 4, on_group=lambda group: seen.append(group[0].group)
    )
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert seen != sorted(seen)  # by when they finished, not by number
    assert [r.group for r in rollouts] == [g for g in range(5) for _ in range(4)]


@pytest.mark.parametrize("lora", [LoRA(rank=4), LoRA(rank=4, dora=True), LoRA(rank=4, rslora=True)])
def test_adapters_are_merged_for_a_rollout_and_taken_out_to_the_bit(tiny_llama: str, lora: LoRA) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama, lora=lora))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    rollouts = roll_out(policy, problems(*TEXTS), Sampling(max_new_tokens=20), 2)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    with torch.no_grad():
        trained, _ = policy.logprobs(collate(rollouts, sharing=True))
    for rollout, row in zip(rollouts, trained, strict=True):
        torch.testing.assert_close(rollout.sampler_logprobs, row[: rollout.length], atol=1e-4, rtol=0)


def test_train_mode_and_gradient_checkpointing_are_handled_and_restored(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama, gradient_checkpointing=True))
    plain = Policy(PolicyOptions(model=tiny_llama))
    assert policy.training
    ours = roll_out(policy, problems(*TEXTS), Sampling(max_new_tokens=12), 2)
    assert policy.training
    assert tokens(ours) == tokens(roll_out(plain, problems(*TEXTS), Sampling(max_new_tokens=12), 2))


def test_unknown_attention_falls_back_with_a_notice(tiny_folders: dict[str, Path]) -> None:
    policy = Policy(PolicyOptions(model=str(tiny_folders["gemma2"])))
    with pytest.warns(UserWarning, match="come from transformers' generate"):
        rollouts = roll_out(policy, problems("1 + 1"), Sampling(max_new_tokens=8), 2)
    assert len(rollouts) == 2
    assert all(r.sampler_logprobs is not None for r in rollouts)


def test_diverged_weights_are_named(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama))
    with torch.no_grad():
        next(policy.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="logits are not finite"):
        roll_out(policy, problems("1 + 1"), Sampling(max_new_tokens=8), 2)


@pytest.mark.parametrize("devices", [set(), {"cpu"}])
def test_a_step_that_is_not_the_models_own_is_not_used(
    policy: Policy, devices: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens(roll_out(policy, problems(*TEXTS), Sampling(max_new_tokens=12), 2))
    monkeypatch.setattr(in_process, "DEVICES", devices)

    class Wrong(in_process.Straight):
        def __call__(self, *args: object) -> torch.Tensor:
            return torch.zeros_like(super().__call__(*args))

    monkeypatch.setattr(in_process, "straight", Wrong)
    assert tokens(roll_out(policy, problems(*TEXTS), Sampling(max_new_tokens=12), 2)) == expected


def test_the_cache_holds_no_more_rows_than_asked_for(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    whole = in_process.Store.reserve

    def watched(self: in_process.Store, rows: int, width: int) -> None:
        whole(self, rows, width)
        sizes.append(self.shape)

    monkeypatch.setattr(in_process.Store, "reserve", watched)
    roll_out(policy, problems(*TEXTS), Sampling(max_new_tokens=70, concurrent=3), 4)
    assert max(rows for rows, _ in sizes) == 3
    assert max(width for _, width in sizes) <= 70 + 1


def test_adapters_that_cannot_be_merged_exactly_stay_apart(tiny_llama: str) -> None:
    """In bfloat16 small updates would vanish; of a tied embedding only one end is adapted."""
    for options in (
        PolicyOptions(model=tiny_llama, dtype="bfloat16", lora=LoRA(rank=4)),
        PolicyOptions(model="nano", lora=LoRA(rank=4, target_modules=["embed_tokens", "q_proj"])),
    ):
        policy = Policy(options)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name or "embedding_A" in name:
                    parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
        with policy.plain_weights():
            assert not any(getattr(m, "merged", False) is True for m in policy.modules())
        assert policy.window > 10**6
        rollouts = roll_out(policy, problems(*TEXTS), Sampling(max_new_tokens=10), 2)
        with torch.no_grad():
            trained, _ = policy.logprobs(collate(rollouts, sharing=True))
        apart = 0.2 if options.dtype == "bfloat16" else 1e-4
        for rollout, row in zip(rollouts, trained, strict=True):
            torch.testing.assert_close(rollout.sampler_logprobs, row[: rollout.length], atol=apart, rtol=0)


def test_an_empty_prompt_is_named(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "render", lambda prompt, think: torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UserError, match="problem 'Q' of task 'inline' has an empty prompt"):
        roll_out(policy, problems("Q"), Sampling(max_new_tokens=4))


@pytest.mark.parametrize("small", [0, 2**18])
def test_weights_of_either_size_give_the_tokens_of_plain_generate(
    tiny_folders: dict[str, Path], small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(straight_module, "SMALL", small)
    checked: list[bool] = []
    whole = in_process._Batch._harvest

    def watched(self: in_process._Batch, looked: int) -> object:
        checked.append(self.checked)
        return whole(self, looked)

    monkeypatch.setattr(in_process._Batch, "_harvest", watched)
    for architecture in ("llama", "qwen3"):
        policy = Policy(PolicyOptions(model=str(tiny_folders[architecture])))
        ours = roll_out(policy, problems(*TEXTS), Sampling(temperature=0.0, max_new_tokens=16))
        plain = policy.generate([r.prompt_ids for r in ours], do_sample=False, max_new_tokens=16)
        assert tokens(ours) == [ids.tolist() for ids in plain]
    assert checked.count(True) > 20, "the straight step was taken for wrong"
