"""Shared prompts: the completions of a group after one copy of their prompt, exactly as if each stood alone."""

from pathlib import Path

import pytest
import torch

import lit_reason.attention as attention_module
from lit_reason.attention import Family, SharedPrompts
from lit_reason.batching import collate, micro_batches
from lit_reason.policy import Policy, PolicyOptions
from lit_reason.types import Problem, Rollout


def group(prompt: int, completions: list[int], seed: int) -> list[Rollout]:
    generator = torch.Generator().manual_seed(seed)
    prompt_ids = torch.randint(0, 200, (prompt,), generator=generator)
    return [
        Rollout(
            problem=Problem(prompt=[]),
            prompt_ids=prompt_ids,
            completion_ids=torch.randint(0, 200, (length,), generator=generator),
            text="",
            advantage=1.0 + i,
        )
        for i, length in enumerate(completions)
    ]


ROLLOUTS = [*group(9, [4, 11, 4, 1], 0), *group(3, [7], 1), *group(9, [2, 30], 2)]


def test_a_row_holds_each_prompt_once() -> None:
    batch = collate([*group(2, [3, 1], 0), *group(1, [2], 1)], sharing=True)
    assert batch.layout is not None
    assert batch.layout.families == [
        Family(start=0, prompt=2, completions=(3, 1)),
        Family(start=6, prompt=1, completions=(2,)),
    ]
    assert batch.input_ids.shape == (1, 9)
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 2]]
    # the end of the prompt predicts the first token of every completion
    assert batch.scored.tolist() == [[1, 2, 3], [1, 0, 0], [6, 7, 0]]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("road", ["two parts", "side by side"])
def test_shared_prompts_change_neither_logprobs_nor_gradients(
    tiny_folders: dict[str, Path], architecture: str, road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against each sequence alone through transformers' own attention; both roads, the accelerators' too."""
    policy = Policy(PolicyOptions(model=str(tiny_folders[architecture])))
    assert policy.window > 10**6
    if road == "side by side":
        monkeypatch.setattr(attention_module, "ON_CPU", "never")

    def learn(batches: list[list[Rollout]], *, sharing: bool) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        policy.zero_grad()
        logprobs = {}
        for rollouts in batches:
            batch = collate(rollouts, sharing=sharing)
            values, _ = policy.logprobs(batch, 0.7)
            (values * batch.advantages).sum().backward()
            logprobs |= {id(r): row[: r.length].detach() for r, row in zip(rollouts, values, strict=True)}
        return logprobs, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    alone, expected = learn([[r] for r in ROLLOUTS], sharing=False)
    shared, gradient = learn([ROLLOUTS], sharing=True)
    for rollout in ROLLOUTS:
        torch.testing.assert_close(shared[id(rollout)], alone[id(rollout)], atol=1e-5, rtol=0)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5


def test_grouped_query_heads_are_shared_too() -> None:
    torch.manual_seed(0)
    layout = SharedPrompts([Family(start=0, prompt=5, completions=(6, 3, 3))])
    q, k, v = torch.randn(1, 4, 17, 8), torch.randn(1, 2, 17, 8), torch.randn(1, 2, 17, 8)
    out = layout.attend(0, q, k, v, 0.3)
    start = 5
    for length in (6, 3, 3):
        places = [*range(5), *range(start, start + length)]
        scores = torch.einsum("hld,hmd->hlm", q[0][:, places], k[0].repeat_interleave(2, 0)[:, places]) * 0.3
        hidden = torch.ones(len(places), len(places), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        expected = torch.einsum("hlm,hmd->lhd", weights, v[0].repeat_interleave(2, 0)[:, places])
        torch.testing.assert_close(out[0, places], expected, atol=1e-5, rtol=1e-5)
        start += length


def test_sharing_never_needs_more_tokens_and_keeps_the_budget() -> None:
    cut = micro_batches(ROLLOUTS, 24, sharing=True)
    assert sorted(map(id, (r for part in cut for r in part))) == sorted(map(id, ROLLOUTS))
    sizes = [collate(part, sharing=True).input_ids.numel() for part in cut]
    assert all(size <= 24 for size, part in zip(sizes, cut, strict=True) if len(part) > 1)
    whole = collate(ROLLOUTS, sharing=True).input_ids.numel()
    assert whole == 9 + 20 + 3 + 7 + 9 + 32


def test_an_architecture_with_capped_scores_takes_the_plain_road(tiny_folders: dict[str, Path]) -> None:
    """Gemma 2 squeezes attention scores, which no layout does."""
    policy = Policy(PolicyOptions(model=str(tiny_folders["gemma2"])))
    assert policy.window == 0
    assert policy.causal_lm.config._attn_implementation != attention_module.NAME


def test_an_attention_that_was_asked_for_is_left_alone(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama, attention="eager"))
    assert policy.window == 0
    assert policy.causal_lm.config._attn_implementation == "eager"


def test_a_sliding_window_bounds_what_may_be_shared(tmp_path: Path, tiny_llama: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=32,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert Policy(PolicyOptions(model=str(tmp_path))).window == 32


def test_a_rollout_that_is_there_twice_is_scored_twice() -> None:
    twice = group(2, [3], 0) * 2
    batch = collate(twice, sharing=True)
    assert batch.scored.tolist() == [[1, 2, 3], [1, 5, 6]]


def test_values_of_another_width_and_changing_rotations_take_the_plain_road(tmp_path: Path, tiny_llama: str) -> None:
    """DeepSeek's value heads are narrower than its key heads; LongRoPE turns keys another way in long sequences."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV2Config, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 4, "eos_token_id": tokenizer.eos_token_id}
    narrow = DeepseekV2Config(
        **size,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        kv_lora_rank=16,
        q_lora_rank=None,
        first_k_dense_replace=2,
        n_routed_experts=2,
        num_experts_per_tok=1,
    )
    turning = LlamaConfig(
        **size, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, max_position_embeddings=64
    )
    for name, config, window in (("narrow", narrow, 0), ("turning", turning, 64)):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        assert Policy(PolicyOptions(model=str(tmp_path / name))).window == window
