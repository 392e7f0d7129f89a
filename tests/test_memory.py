"""The memory estimate: parts worked out by hand, how they move with the options, and that nothing is written."""

import pytest
import torch
from lightning.pytorch import Trainer

import lit_reason
from lit_reason.__main__ import main
from lit_reason.memory import estimate
from lit_reason.policy_options import PolicyOptions
from lit_reason.rollout import Sampling
from lit_reason.simulation import Simulation

WIDTH, LAYERS, KV_HEADS, HEAD = 32, 2, 2, 8  # of the tiny Llama


def phases(model, *, precision="32-true", optimizer=torch.optim.AdamW, devices=1, strategy="auto", **options):
    """Parts by phase of a GRPO run of 4 prompts x 4 completions of 32 tokens."""
    policy = {name: options.pop(name) for name in ("lora", "quantization", "gradient_checkpointing") if name in options}
    module = lit_reason.GRPO(
        ["length"],
        policy=lit_reason.PolicyOptions(model=model, **policy),
        sampling=options.pop("sampling", lit_reason.Sampling(max_new_tokens=32)),
        group_size=4,
        optimizer=lambda p: optimizer(p, lr=1e-3),
        **options,
    )
    data = lit_reason.ReasoningData({"nano_traces": {"size": 60}}, prompts_per_step=4, validation_problems=2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", precision=precision, devices=devices, strategy=strategy, enable_model_summary=False, **quiet
    )
    return {phase.name: phase.parts for phase in estimate(module, data, trainer)}


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return phases(tiny_llama)


@pytest.fixture(scope="module")
def count(tiny_llama):
    return sum(p.numel() for p in lit_reason.Policy(lit_reason.PolicyOptions(model=tiny_llama)).parameters())


def test_weights_gradients_and_optimizer_are_what_their_numbers_take(plain, count):
    for parts in plain.values():
        assert parts["weights"] == pytest.approx(4 * count, rel=0.01)  # and the angles of positions
        assert parts["gradients"] == 4 * count
        assert parts["optimizer"] == 8 * count  # two moments
        assert parts["reference"] == 0


def test_the_cache_holds_every_token_of_completions_and_prompts_once(plain, tiny_llama):
    data = lit_reason.ReasoningData({"nano_traces": {"size": 60}})
    policy = lit_reason.Policy(lit_reason.PolicyOptions(model=tiny_llama))
    longest = max(len(policy.render(p.prompt, p.think)) for p in data.task.problems("train")[:4])
    token = 2 * LAYERS * KV_HEADS * HEAD * 4  # keys and values in float32
    assert plain["rollout"]["KV cache"] == token * (16 * (32 + 1) + 4 * longest)
    bounded = phases(tiny_llama, sampling=lit_reason.Sampling(max_new_tokens=32, concurrent=4))
    assert bounded["rollout"]["KV cache"] < plain["rollout"]["KV cache"] / 2


def test_parts_move_with_the_options_that_move_them(plain, count, tiny_llama):
    checkpointed = phases(
        tiny_llama, gradient_checkpointing=True, loss={"grpo": {"beta": 0.1}}, optimizer=torch.optim.SGD
    )
    assert checkpointed["update"]["activations"] < plain["update"]["activations"] / 2
    assert checkpointed["update"]["reference"] == checkpointed["update"]["weights"]
    assert checkpointed["update"]["optimizer"] == 0
    smaller = phases(tiny_llama, tokens_per_microbatch=200)
    assert smaller["update"]["activations"] < plain["update"]["activations"] / 2
    half = phases(tiny_llama, precision="bf16-true")
    for name in ("gradients", "optimizer"):
        assert half["update"][name] * 2 == plain["update"][name]
    assert half["rollout"]["KV cache"] * 2 == plain["rollout"]["KV cache"]
    adapted = phases(tiny_llama, lora=lit_reason.LoRA(rank=2), loss={"grpo": {"beta": 0.1}})
    assert adapted["update"]["gradients"] * 2 == adapted["update"]["optimizer"] < plain["update"]["optimizer"] / 5
    assert adapted["update"]["reference"] == 0  # the adapter switched off
    assert adapted["rollout"]["plain weights"] > 0
    coarse = phases(tiny_llama, lora=lit_reason.LoRA(rank=2), quantization="nf4")
    assert coarse["update"]["weights"] < 0.7 * adapted["update"]["weights"]


def test_ranks_share_what_a_strategy_shards(plain, tiny_llama):
    ddp = phases(tiny_llama, devices=2, strategy="ddp")
    assert ddp["update"]["DDP buckets"] == plain["update"]["gradients"]
    assert ddp["update"]["activations"] < plain["update"]["activations"]  # half the prompts
    sharded = phases(tiny_llama, devices=2, strategy="fsdp2")
    for name in ("weights", "optimizer", "gradients"):
        assert sharded["update"][name] == pytest.approx(plain["update"][name] / 2, rel=0.01)
    assert sharded["rollout"]["gathered weights"] == plain["rollout"]["weights"]  # rollouts have them whole


def test_the_estimate_of_an_update_is_what_autograd_holds(plain, tiny_llama):
    """Against tensors that are there: what a real forward pass saves for the backward pass, by torch's own account."""
    from lit_reason.batching import collate
    from lit_reason.types import Rollout

    policy = lit_reason.Policy(lit_reason.PolicyOptions(model=tiny_llama))
    problems = lit_reason.ReasoningData({"nano_traces": {"size": 60}}).task.problems("train")[:4]
    rollouts = [
        Rollout(
            problem=p, prompt_ids=policy.render(p.prompt, p.think), completion_ids=torch.zeros(32, dtype=int), text=""
        )
        for p in problems
        for _ in range(4)
    ]
    batch = collate(rollouts, sharing=True)
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    saved = {}

    def keep(x):
        if x.untyped_storage().data_ptr() not in weights:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        policy.causal_lm.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            layout=batch.layout,
            attention_mask=torch.zeros(1, 1, 1, 1),
        )
    held = sum(storage.nbytes() for storage in saved.values())
    assert plain["update"]["activations"] == pytest.approx(held, rel=0.05)


def test_a_dry_run_prints_a_table_and_writes_nothing(tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = f"""
model: {{class_path: SFT, init_args: {{policy: {{model: {tiny_llama}}}}}}}
data: {{task: {{nano_traces: {{size: 20}}}}, prompts_per_step: 4, validation_problems: 2}}
trainer: {{accelerator: cpu, max_steps: 2}}
"""
    (tmp_path / "config.yaml").write_text(config)
    assert main(["fit", "--config", "config.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("validation", "update", "optimizer", "activations", "total", "peak in "))
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    long = ["--model.init_args.sampling.max_new_tokens", "1000000000"]
    assert main(["fit", "--config", "config.yaml", "--dry-run", *long]) == 1
    assert "leaves no room for a prompt in the" in capsys.readouterr().err


def test_of_more_completions_than_fit_at_once_the_longest_count(tiny_llama):
    simulation, sampling = Simulation(PolicyOptions(model=tiny_llama)), Sampling(max_new_tokens=8, concurrent=1)
    short, long = (torch.zeros(length, dtype=torch.int64) for length in (5, 50))
    alone, _ = simulation.rollout([long], 1, sampling)
    assert simulation.rollout([short, long, short], 10**6, sampling)[0] == alone
