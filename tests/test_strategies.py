"""Every module under every strategy that CPUs can run; what two ranks find is what one finds."""

import os
import shutil
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from strategy_cases import STEPS, build, fit, fit_all
from two_ranks import on_two_ranks

from lit_reason import GRPO, LoRA, Policy, PolicyOptions
from lit_reason.types import UserError

pytestmark = pytest.mark.xdist_group("strategies")  # in one process: its pair of ranks is dear
MODULES = ("SFT", "GRPO", "RejectionSampling")
ADAPTERS: dict[str, Any] = {"lora": {"rank": 2}}
FOUR_BITS: dict[str, Any] = {**ADAPTERS, "quantization": "nf4"}
TWO_RANKS: dict[str, dict[str, Any]] = {
    "ddp": {"trainer": {"strategy": "ddp"}},
    "fsdp2": {"trainer": {"strategy": "fsdp2"}},
    "qlora-fsdp2": {"trainer": {"strategy": "fsdp2"}, **FOUR_BITS},
}
ODD_ONES: dict[str, dict[str, Any]] = {
    "reference": {"kind": "GRPO", "trainer": {"strategy": "fsdp2"}, "beta": 0.1},
    "adapter off": {"kind": "GRPO", "trainer": {"strategy": "fsdp2"}, "beta": 0.1, **FOUR_BITS},
    "bf16-mixed": {"kind": "GRPO", "trainer": {"strategy": "fsdp2", "precision": "bf16-mixed"}},
    "recomputed": {"kind": "SFT", "trainer": {"strategy": "fsdp2"}, "gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def two_ranks(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All cases with two ranks, in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {f"{kind} {name}": {"kind": kind, **case} for kind in MODULES for name, case in TWO_RANKS.items()}
    cases |= ODD_ONES | {"shards": {"kind": "GRPO", "shards": True}}
    return on_two_ranks(lambda *_: fit_all(tiny_llama, folder, cases), folder)[0]


@pytest.fixture(scope="module")
def one_rank(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("one")
    return {kind: fit(kind, tiny_llama, folder, {}) for kind in MODULES}


def check(figures: dict[str, Any], *, all_of_them: bool) -> None:
    assert len(figures["steps"]) == STEPS
    assert bool(torch.tensor(figures["steps"]).isfinite().all())
    assert figures["trains"] == (21 if all_of_them else 28)
    assert (figures["stuck"], figures["strayed"]) == ([], [])


@pytest.mark.parametrize("kind", MODULES)
def test_a_single_process_trains_all_weights(kind: str, one_rank: dict[str, Any]) -> None:
    check(one_rank[kind], all_of_them=True)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_train_what_should_be_trained(kind: str, name: str, two_ranks: dict[str, Any]) -> None:
    check(two_ranks[f"{kind} {name}"], all_of_them="lora" not in TWO_RANKS[name])


@pytest.mark.parametrize("name", ODD_ONES)
def test_sharded_reference_precision_and_recomputation_train(name: str, two_ranks: dict[str, Any]) -> None:
    check(two_ranks[name], all_of_them="lora" not in ODD_ONES[name])


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_ranks_find_the_losses_of_one(
    kind: str, name: str, one_rank: dict[str, Any], two_ranks: dict[str, Any]
) -> None:
    alone, together = (torch.tensor(found["steps"]) for found in (one_rank[kind], two_ranks[f"{kind} {name}"]))
    assert torch.allclose(together[:, 0], alone[:, 0], rtol=0, atol=1e-5)
    assert torch.allclose(together[:, 1], alone[:, 1], rtol=1e-4)


# int8 takes the path of nf4: once is enough
@pytest.mark.parametrize(("kind", "quantization"), [*product(MODULES, [None, "nf4"]), ("GRPO", "int8")])
def test_adapters_alone_train(kind: str, quantization: Any, tiny_llama: str, tmp_path: Path) -> None:
    check(fit(kind, tiny_llama, tmp_path, {}, lora=LoRA(rank=2), quantization=quantization), all_of_them=False)


def test_shards_of_two_ranks_are_gone_on_from_to_the_bit_and_a_full_disk_harms_none(
    two_ranks: dict[str, Any],
) -> None:
    found = two_ranks["shards"]
    assert found["resumed"]["steps"] == found["whole"]["steps"][2:]
    assert "full.ckpt' could not be written: a write failed, as on a full disk" in found["error"]
    assert found["names"] == ["best.ckpt", "last.ckpt", *(f"step-{step}.ckpt" for step in (1, 2, 3))]


def test_one_process_goes_on_from_what_two_ranks_of_fsdp2_wrote(
    two_ranks: dict[str, Any], tiny_llama: str, tmp_path: Path
) -> None:
    found = two_ranks["shards"]
    alone = fit("GRPO", tiny_llama, tmp_path, {}, ckpt_path=Path(found["file"]))
    assert torch.allclose(torch.tensor(alone["steps"]), torch.tensor(found["whole"]["steps"][2:]), atol=1e-5)


def test_quantised_weights_need_adapters(tiny_llama: str) -> None:
    with pytest.raises(UserError, match=r"policy\.quantization.*policy\.lora"):
        build("GRPO", tiny_llama, quantization="nf4")


def test_a_missing_bitsandbytes_is_named_with_its_extra(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lit-reason\[quantization\]"):
        build("GRPO", tiny_llama, quantization="nf4", lora=LoRA())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("quantization", ["nf4", "int8", None])
def test_a_merged_copy_says_what_the_policy_said(quantization: Any, dora: bool, tiny_llama: str) -> None:
    options = PolicyOptions(model=tiny_llama, lora=LoRA(rank=2, dora=dora), quantization=quantization)
    if quantization == "int8" and dora:
        with pytest.raises(UserError, match=r"policy\.lora\.dora"):
            Policy(options)
        return
    policy = Policy(options)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        ours = policy.causal_lm(input_ids=ids, use_cache=False).logits
        merged = policy.merged()(input_ids=ids).logits
        with policy.plain_weights():
            plain = policy.causal_lm(input_ids=ids, use_cache=False).logits
    assert torch.allclose(merged, ours, atol=1e-3)
    assert torch.allclose(plain, ours, atol=1e-3)


def test_checkpoints_hold_adapters_alone_and_know_their_base(
    tiny_llama: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    from lightning.pytorch import Trainer

    def module(model: str) -> GRPO:
        made = build("GRPO", model, lora=LoRA(rank=2), quantization="nf4")
        made.configure_model()
        return made

    first = module(tiny_llama)
    path = tmp_path / "adapters.ckpt"
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    first.trainer = trainer
    trainer.strategy.connect(first)
    trainer.save_checkpoint(path, weights_only=True)
    state = torch.load(path, weights_only=True)
    assert state["state_dict"]
    assert all("lora_" in name for name in state["state_dict"])
    second = module(tiny_llama)
    second.on_load_checkpoint(state)
    second.load_state_dict(state["state_dict"])
    everything = {name: value for name, value in torch.nn.Module.state_dict(second).items() if "quant" not in name}
    second.load_state_dict({n: v for n, v in everything.items() if "lora_" in n or "norm" in n})  # as once was written
    other = tmp_path / "other"
    from safetensors.torch import load_file, save_file

    from lit_reason.testing import tiny_policy

    changed = tmp_path / "changed"  # in a weight of 4 bits alone
    shutil.copytree(tiny_llama, changed)
    weights = load_file(changed / "model.safetensors")
    weights["model.layers.0.mlp.gate_proj.weight"] += 0.1
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="belong to the base model"):
        module(str(changed)).on_load_checkpoint(state)
    del state["lit_reason"]["base"]["files"]  # as once was written
    module(str(changed)).on_load_checkpoint(state)

    with pytest.raises(UserError, match="belong to the base model"):
        module(tiny_policy(other, seed=1)).on_load_checkpoint(state)
    with pytest.raises(UserError, match=r"policy\.lora"):
        second.load_state_dict({name.replace("q_proj", "x_proj"): v for name, v in state["state_dict"].items()})


FAILS = """
import os
def fails(rollout):
    if os.environ.get("LOCAL_RANK", "0") == os.environ["FAILING"]:
        raise ValueError("this rank has had enough")
    return 1.0
"""
RUN = """
model:
  class_path: GRPO
  init_args: {{policy: {{model: {model}}}, rewards: [broken.fails], group_size: 2, sampling: {{max_new_tokens: 4}}}}
data: {{task: {{nano_traces: {{size: 8}}}}, prompts_per_step: 2, validation_problems: 0}}
trainer: {{strategy: {strategy}, devices: 2, accelerator: cpu, max_steps: 2}}
"""


@pytest.mark.parametrize(("rank", "strategy"), [(0, "fsdp2"), (1, "ddp")])
def test_one_rank_that_fails_ends_the_job_with_its_error(
    rank: int, strategy: str, tiny_llama: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(FAILS)
    (tmp_path / "run.yaml").write_text(RUN.format(model=tiny_llama, strategy=strategy))
    command = [sys.executable, "-m", "lit_reason", "fit", "--config", "run.yaml", "--run_dir", "run"]
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "FAILING": str(rank)},
    )
    assert done.returncode != 0
    assert time.monotonic() - start < 120  # and not the half an hour of a collective's timeout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert sum("had enough" in line for line in errors) == 1, done.stderr[-3000:]
    assert all("had enough" in line or "another rank has failed" in line for line in errors)
    assert "Traceback" not in done.stderr
