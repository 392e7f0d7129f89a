"""The policy against plain transformers: the same numbers for every layout, on four architectures."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, FalconH1Config, MptConfig

import lit_reason.architecture as architecture_module
import lit_reason.policy as policy_module
from lit_reason.batching import collate
from lit_reason.policy import LoRA, Policy, PolicyOptions
from lit_reason.types import MicroBatch, Problem, Rollout, UserError

ARCHITECTURES = ("llama", "qwen3", "gpt2", "gemma2")
QUESTION = [{"role": "user", "content": "What is 1 + 1?"}]


def random_rollouts(vocabulary: int, lengths: list[tuple[int, int]], seed: int = 0) -> list[Rollout]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> torch.Tensor:
        return torch.randint(0, vocabulary, (n,), generator=generator)

    problem = Problem(prompt=QUESTION)
    return [Rollout(problem=problem, prompt_ids=ids(p), completion_ids=ids(c), text="") for p, c in lengths]


def plain_logprobs(folder: str, rollout: Rollout, temperature: float) -> torch.Tensor:
    """What transformers alone says, one sequence at a time, no padding."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.cat([rollout.prompt_ids, rollout.completion_ids])[None]
    with torch.no_grad():
        logits = model(ids).logits[0] / temperature
    start = len(rollout.prompt_ids)
    return logits[start - 1 : -1].log_softmax(-1).gather(-1, rollout.completion_ids[:, None]).squeeze(-1)


def only_one_row(_module: torch.nn.Module, _args: object, inputs: dict[str, torch.Tensor]) -> None:
    assert inputs["input_ids"].shape[0] == inputs["position_ids"].shape[0] == 1


def left_padded(rollouts: list[Rollout], pad: int) -> MicroBatch:
    """A batch as `generate` lays it out: padding first, each pad a sequence of its own."""
    batch = collate(rollouts)
    width = batch.input_ids.shape[1]
    for row, r in enumerate(rollouts):
        shift = width - len(r.prompt_ids) - r.length
        batch.input_ids[row] = torch.cat([torch.full((shift,), pad), r.prompt_ids, r.completion_ids])
        batch.position_ids[row] = torch.cat([torch.zeros(shift, dtype=torch.int64), torch.arange(width - shift)])
        batch.scored[row, : r.length] += shift
    return batch


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layout", ["right", "left", "packed", "flash"])
def test_logprobs_equal_plain_transformers(tiny_folders: dict[str, Path], architecture: str, layout: str) -> None:
    folder = str(tiny_folders[architecture])
    policy = Policy(PolicyOptions(model=folder)).eval()
    rollouts = random_rollouts(len(policy.tokenizer), [(7, 11), (3, 2), (12, 5), (1, 1), (4, 3)])
    batch = left_padded(rollouts, policy.pad_id) if layout == "left" else collate(rollouts, packing=layout != "right")
    if layout in ("packed", "flash"):
        assert 1 < batch.input_ids.shape[0] < len(rollouts)
    if layout == "flash":  # no such kernel here: the one row that it needs, through the kernel there is
        policy.options = replace(policy.options, attention="flash_attention_2")
        policy.causal_lm.base_model.register_forward_pre_hook(only_one_row, with_kwargs=True)
    with torch.no_grad():
        logprobs, _ = policy.logprobs(batch, temperature=0.7)
    for row, rollout in zip(logprobs, rollouts, strict=True):
        expected = plain_logprobs(folder, rollout, 0.7)
        torch.testing.assert_close(row[: rollout.length], expected, atol=1e-5, rtol=0)
        assert (row[rollout.length :] == 0).all()


@pytest.mark.parametrize("architecture", ["falcon_h1", "mpt"])
def test_architectures_that_cannot_be_trusted_are_found_out(tiny_llama: str, tmp_path: Path, architecture: str) -> None:
    """Falcon-H1 multiplies its logits; MPT has no position ids, so packed sequences would mix."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    size = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    if architecture == "mpt":
        config = MptConfig(**size, d_model=32, n_heads=4, n_layers=2, max_seq_len=256)
    else:
        config = FalconH1Config(
            **size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_n_groups=1,
            lm_head_multiplier=3.0,
        )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if architecture == "mpt":
        assert not Policy(PolicyOptions(model=str(tmp_path))).packs
    else:
        with pytest.raises(UserError, match=r"FalconH1ForCausalLM.* scales its logits"):
            Policy(PolicyOptions(model=str(tmp_path)))


def test_chunks_of_the_head_change_neither_values_nor_gradients(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama)).eval()
    batch = collate(random_rollouts(len(policy.tokenizer), [(5, 9), (4, 6)]))
    results = []
    for chunk in (2**25, 3 * len(policy.tokenizer)):
        monkeypatch.setattr(policy_module, "LOGIT_CHUNK", chunk)
        policy.zero_grad()
        logprobs, entropies = policy.logprobs(batch)
        logprobs.sum().backward()
        results.append((logprobs.detach(), entropies, [p.grad.clone() for p in policy.parameters()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def test_entropy_is_that_of_the_distribution(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama)).eval()
    batch = collate(random_rollouts(len(policy.tokenizer), [(5, 4)]))
    with torch.no_grad():
        _, entropies = policy.logprobs(batch)
        logits = policy.model(batch.input_ids).logits[0, 4:8]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropies[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_completions_do_not_depend_on_their_neighbours(tiny_folders: dict[str, Path], architecture: str) -> None:
    policy = Policy(PolicyOptions(model=str(tiny_folders[architecture])))
    prompts = [r.prompt_ids for r in random_rollouts(len(policy.tokenizer), [(9, 1), (2, 1), (5, 1)])]
    together = policy.generate(prompts, do_sample=False, max_new_tokens=6)
    alone = [policy.generate([p], do_sample=False, max_new_tokens=6)[0] for p in prompts]
    for a, b in zip(together, alone, strict=True):
        assert a.tolist() == b.tolist()


def test_a_completion_ends_at_the_first_of_several_end_ids_even_when_pad_is_one(
    tiny_llama: str, tmp_path: Path
) -> None:
    folder = tmp_path / "many_ends"
    shutil.copytree(tiny_llama, folder)
    everything = list(range(AutoModelForCausalLM.from_pretrained(folder).config.vocab_size))
    config = json.loads((folder / "generation_config.json").read_text())
    config["eos_token_id"] = everything  # whatever is sampled ends the turn
    (folder / "generation_config.json").write_text(json.dumps(config))
    policy = Policy(PolicyOptions(model=str(folder)))
    policy.pad_id = policy.eos_ids[0]
    prompts = [r.prompt_ids for r in random_rollouts(20, [(4, 1), (7, 1)])]
    assert [len(c) for c in policy.generate(prompts, do_sample=False, max_new_tokens=5)] == [1, 1]


def test_prompts_carry_one_bos_at_most(tiny_llama: str, tmp_path: Path) -> None:
    folder = tmp_path / "bos"
    shutil.copytree(tiny_llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.eos_token
    tokenizer.bos_token = bos
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    policy = Policy(PolicyOptions(model=str(folder)))
    ids = policy.render(QUESTION).tolist()
    assert ids.count(policy.tokenizer.bos_token_id) == 1


def test_a_tokenizer_without_pad_still_generates(tiny_llama: str, tmp_path: Path) -> None:
    folder = tmp_path / "no_pad"
    shutil.copytree(tiny_llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    policy = Policy(PolicyOptions(model=str(folder)))
    assert policy.tokenizer.pad_token_id is None
    prompts = [r.prompt_ids for r in random_rollouts(20, [(4, 1), (7, 1)])]
    assert len(policy.generate(prompts, do_sample=False, max_new_tokens=5)) == 2


def test_checkpoint_sampling_defaults_do_not_leak_into_rollouts(tiny_llama: str, tmp_path: Path) -> None:
    folder = tmp_path / "defaults"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"do_sample": True, "top_k": 1, "repetition_penalty": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(config))
    plain, leaky = (Policy(PolicyOptions(model=str(f))) for f in (tiny_llama, folder))
    prompt = [torch.arange(5)]
    drawn = []
    for policy in (plain, leaky):
        torch.manual_seed(0)
        drawn.append(policy.generate(prompt, do_sample=True, temperature=1.0, max_new_tokens=8, top_k=0)[0].tolist())
    assert drawn[0] == drawn[1]
    leaky.save_pretrained(tmp_path / "saved")  # but they are the checkpoint's own, and are saved with it
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["top_k"] == 1


def test_no_think_examples_have_an_empty_think_block_exactly_once(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama, chat_template="think"))
    for completion in ("<think> </think> <answer> 2 </answer>", "<answer> 2 </answer>"):
        problem = Problem(prompt=QUESTION, completion=completion, think=False)
        text = policy.decode(policy.render(problem.prompt, think=False)) + policy.decode(
            policy.encode_completion(problem)
        )
        assert text.count("<think>") == 1
        assert text.count("<answer>") == 1


def test_completions_end_with_the_end_of_turn(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama))
    ids = policy.encode_completion(Problem(prompt=QUESTION, completion="<answer> 2 </answer>"))
    assert int(ids[-1]) in policy.eos_ids
    assert policy.decode(ids).strip() == "<answer> 2 </answer>"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_mode_gives_the_same_numbers_as_evaluation(tiny_folders: dict[str, Path], architecture: str) -> None:
    policy = Policy(PolicyOptions(model=str(tiny_folders[architecture])))
    assert policy.training
    batch = collate(random_rollouts(len(policy.tokenizer), [(5, 9)]))
    with torch.no_grad():
        training, _ = policy.logprobs(batch)
        evaluation, _ = policy.eval().logprobs(batch)
    assert torch.equal(training, evaluation)


def test_dropout_given_to_a_function_is_switched_off_too() -> None:
    layer = torch.nn.Module()
    layer.dropout, layer.layerdrop, layer.attention_dropout, layer.scale = 0.1, 0.2, 0.3, 0.4
    layer.inner = torch.nn.Dropout(0.5)
    architecture_module.switch_dropout_off(layer)
    assert (layer.dropout, layer.layerdrop, layer.attention_dropout, layer.scale) == (0.0, 0.0, 0.0, 0.4)
    assert layer.inner.p == 0.0


def test_the_frozen_reference_follows_the_policys_dtype(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama)).eval()
    policy.keep_reference()
    policy.to(torch.bfloat16)  # as Lightning does with `bf16-true`
    batch = collate(random_rollouts(len(policy.tokenizer), [(5, 4)]))
    with torch.no_grad():
        now, _ = policy.logprobs(batch)
        with policy.reference():
            reference, _ = policy.logprobs(batch)
    assert torch.equal(now, reference)


@pytest.mark.parametrize("lora", [LoRA(rank=4, alpha=8), LoRA(rank=4, alpha=8, dora=True), LoRA(rank=4, rslora=True)])
def test_adapters_are_all_that_trains_and_their_absence_is_the_reference(tiny_llama: str, lora: LoRA) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama, lora=lora)).eval()
    trainable = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in n for n in trainable)
    batch = collate(random_rollouts(len(policy.tokenizer), [(5, 4)]))
    with torch.no_grad():
        base, _ = policy.logprobs(batch)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        moved, _ = policy.logprobs(batch)
        with policy.reference():
            reference, _ = policy.logprobs(batch)
    assert not torch.allclose(base, moved, atol=1e-3)
    torch.testing.assert_close(reference, base, atol=1e-6, rtol=0)


def test_the_frozen_reference_stays_when_the_policy_moves_and_is_not_saved(tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama)).eval()
    names = set(policy.state_dict())
    policy.keep_reference()
    assert set(policy.state_dict()) == names
    batch = collate(random_rollouts(len(policy.tokenizer), [(5, 4)]))
    with torch.no_grad():
        base, _ = policy.logprobs(batch)
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        with policy.reference():
            reference, _ = policy.logprobs(batch)
        moved, _ = policy.logprobs(batch)
    torch.testing.assert_close(reference, base)
    assert not torch.allclose(moved, base, atol=1e-3)


def test_gradient_checkpointing_changes_no_gradient_and_generates(tiny_llama: str) -> None:
    gradients = []
    for on in (False, True):
        policy = Policy(PolicyOptions(model=tiny_llama, gradient_checkpointing=on)).train()
        batch = collate(random_rollouts(len(policy.tokenizer), [(5, 9)]))
        policy.logprobs(batch)[0].sum().backward()
        gradients.append([p.grad.clone() for p in policy.parameters()])
        assert len(policy.generate([torch.arange(4)], do_sample=False, max_new_tokens=3)[0]) <= 3
        assert policy.training
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_a_saved_policy_loads_again_with_the_same_numbers(tiny_llama: str, tmp_path: Path, lora: LoRA | None) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama, lora=lora)).eval()
    batch = collate(random_rollouts(len(policy.tokenizer), [(5, 4)]))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        before, _ = policy.logprobs(batch)
        policy.save_pretrained(tmp_path / "saved")
        after, _ = Policy(PolicyOptions(model=str(tmp_path / "saved"))).eval().logprobs(batch)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_random_weights_keep_the_architecture_and_follow_the_seed(tiny_llama: str, dtype: str) -> None:
    def fresh(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        policy = Policy(PolicyOptions(model=tiny_llama, random_weights=True, dtype=dtype))
        return torch.cat([p.flatten() for p in policy.parameters()])

    assert torch.equal(fresh(0), fresh(0))
    assert not torch.equal(fresh(0), fresh(1))


def test_bad_models_and_templates_are_one_clear_line(tiny_llama: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    silent = tmp_path / "silent"
    shutil.copytree(tiny_llama, silent)
    tokenizer = AutoTokenizer.from_pretrained(silent)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(silent)
    (silent / "chat_template.jinja").unlink(missing_ok=True)
    jinja = tmp_path / "bad.jinja"
    jinja.write_text("fine\n{% if %}")
    for options, words in [
        (PolicyOptions(model="./nowhere"), ["policy.model", "no folder './nowhere'"]),
        (PolicyOptions(model=str(empty)), ["policy.model", "is no model"]),
        (PolicyOptions(model=str(broken)), ["policy.model", str(broken)]),
        (PolicyOptions(model=str(silent)), ["policy.chat_template", "'think'"]),
        (PolicyOptions(model=tiny_llama, chat_template="none.jinja"), ["policy.chat_template", "none.jinja"]),
        (PolicyOptions(model=tiny_llama, chat_template=str(jinja)), ["bad.jinja", "line 2"]),
        (PolicyOptions(model=tiny_llama, lora=LoRA(target_modules=["nothing"])), ["policy.lora", "nothing"]),
    ]:
        with pytest.raises(UserError) as caught:
            Policy(options)
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in words), message
    assert Policy(PolicyOptions(model=str(silent), chat_template="think")).render(QUESTION).numel() > 0
