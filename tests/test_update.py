"""The optimizer window: its gradient does not depend on how it is cut into micro-batches or ranks."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import window
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from two_ranks import on_two_ranks

from lit_reason import GRPO, LoRA, PolicyOptions, Problem, Rollout, Sampling
from lit_reason.batching import collate, micro_batches, minibatches
from lit_reason.types import MicroBatch


def rollout(prompt: int, completion: int, start: int = 0) -> Rollout:
    return Rollout(
        problem=Problem(prompt=[]),
        prompt_ids=torch.arange(start, start + prompt),
        completion_ids=torch.arange(100 + start, 100 + start + completion),
        text="",
    )


def test_collate_scores_the_token_before_each_completion_token() -> None:
    batch = collate([rollout(2, 3), rollout(1, 1, start=10)])
    assert batch.input_ids.tolist() == [[0, 1, 100, 101, 102], [10, 110, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    # row 0: positions 1, 2, 3 predict 100, 101, 102; row 1 starts at 5 in the flattened input
    assert batch.scored.tolist() == [[1, 2, 3], [5, 0, 0]]
    assert batch.targets.tolist() == [[100, 101, 102], [110, 0, 0]]
    assert batch.present.tolist() == [[True, True, True], [True, False, False]]


def test_packing_fills_rows_and_restarts_positions() -> None:
    batch = collate([rollout(2, 3), rollout(1, 1, start=10), rollout(1, 1, start=20)], packing=True)
    assert batch.input_ids.tolist() == [[0, 1, 100, 101, 102], [10, 110, 20, 120, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 0]]
    assert batch.scored.tolist() == [[1, 2, 3], [5, 0, 0], [7, 0, 0]]


def test_micro_batches_hold_the_budget_and_every_rollout_once() -> None:
    rollouts = [rollout(3, n) for n in (1, 9, 4, 4, 2, 7, 30, 1)]
    for packing in (False, True):
        groups = micro_batches(rollouts, 24, packing=packing)
        assert sorted(map(id, (r for g in groups for r in g))) == sorted(map(id, rollouts))
        sizes = [collate(g, packing=packing).input_ids.numel() for g in groups]
        assert all(size <= 24 for size, g in zip(sizes, groups, strict=True) if len(g) > 1)
        assert len(groups[0]) == 1  # the one longer than the budget travels alone


def test_packing_needs_no_more_tokens_than_padding() -> None:
    rollouts = [rollout(3, n) for n in range(1, 40)]
    tokens = [
        sum(collate(g, packing=packing).input_ids.numel() for g in micro_batches(rollouts, 256, packing=packing))
        for packing in (False, True)
    ]
    assert tokens[1] < tokens[0]


def test_old_logprobs_are_float32_whatever_the_default_is() -> None:
    """`bf16-true` makes bfloat16 the default while a step runs; a ratio needs the other digits."""
    known = rollout(1, 2)
    known.old_logprobs = torch.tensor([-1.2345678, -0.1])
    torch.set_default_dtype(torch.bfloat16)
    try:
        batch = collate([known])
    finally:
        torch.set_default_dtype(torch.float32)
    assert batch.old_logprobs is not None
    assert torch.equal(batch.old_logprobs, known.old_logprobs[None])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_minibatches_differ_in_size_by_one_at_most_and_lose_nothing(count: int) -> None:
    rollouts = [rollout(1, n + 1) for n in range(10)]
    parts = minibatches(rollouts, count, torch.Generator().manual_seed(0))
    assert len(parts) == count
    assert sorted(map(id, (r for p in parts for r in p))) == sorted(map(id, rollouts))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_minibatches_keep_groups_together_and_shuffle_them() -> None:
    rollouts = [rollout(1, 2) for _ in range(24)]
    for n, r in enumerate(rollouts):
        r.group = n // 4
    draws = [minibatches(rollouts, 3, torch.Generator().manual_seed(seed)) for seed in range(20)]
    for parts in draws:
        assert [len({r.group for r in part}) for part in parts] == [2, 2, 2]
    assert len({tuple(r.group for r in parts[0]) for parts in draws}) > 10
    # where it does not divide, only the groups at the two cuts are in two parts
    assert sum(len({r.group for r in part}) for part in minibatches(rollouts[:22], 3, torch.Generator())) <= 6 + 2


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "gspo", "cross_entropy"])
def test_gradient_does_not_depend_on_micro_batches_or_packing(tiny_llama: str, loss: str) -> None:
    """1 x 8, 8 x 1, unequal splits; without shared prompts, packed and padded.

    One completion has no advantage, and is skipped where it may be.
    """
    result = window.gradients(tiny_llama, loss)
    assert len(result) == 5
    whole = result.pop("1x8")
    for name, gradient in result.items():
        assert float((gradient - whole).norm() / whole.norm()) < 1e-6, name


def test_gradient_does_not_depend_on_ranks(tiny_llama: str, tmp_path: Path) -> None:
    """One of them idle, too; and the advantages of a batch take their spread from all ranks."""
    cases = ("grpo group", "cross_entropy group", "grpo batch")
    found, _ = on_two_ranks(
        lambda *_: {case: window.gradients(tiny_llama, *case.split(), ranks=2) for case in cases}, tmp_path
    )
    for case, result in found.items():
        whole = window.gradients(tiny_llama, *case.split())["1x8"]
        assert len(result) == 3
        for name, gradient in result.items():
            assert float((gradient - whole).norm() / whole.norm()) < 1e-6, (case, name)


class Counting(GRPO):
    """GRPO whose advantages are given, and whose forward passes are counted."""

    given: ClassVar[list[float]]

    def credit(self, rollouts: list[Rollout]) -> list[Rollout]:
        for rollout, advantage in zip(rollouts, self.given, strict=True):
            rollout.advantage = advantage
        return rollouts

    def update(self, rollouts: Sequence[Rollout]) -> None:
        self.seen: list[int] = []
        plain = self.policy.logprobs

        def counted(batch: MicroBatch, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
            self.seen.append(int(batch.mask.any(1).sum()))
            return plain(batch, temperature)

        self.policy.logprobs = counted
        super().update(rollouts)


def learn(folder: str, advantages: list[float], **options: Any) -> tuple[Counting, float]:
    """One phase of four completions; the module, and how far its weights moved."""
    options = {"policy": PolicyOptions(model=folder), "loss": "dapo"} | options
    module = Counting(
        ["length"],
        group_size=4,
        sampling=Sampling(max_new_tokens=6),
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        **options,
    )
    module.given = advantages
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module.configure_model()
    before = torch.cat([p.detach().flatten().clone() for p in module.policy.parameters()])
    trainer.fit(module, DataLoader([Problem(prompt=[{"role": "user", "content": "Q"}])], collate_fn=list))
    after = torch.cat([p.detach().flatten() for p in module.policy.parameters()])
    return module, float((after - before).norm())


def test_completions_without_advantage_need_no_forward_pass(tiny_llama: str) -> None:
    module, moved = learn(tiny_llama, [0.0, 1.0, -1.0, 0.0])
    assert module.seen == [2]
    assert moved > 0
    module, moved = learn(tiny_llama, [0.0] * 4)
    assert sum(module.seen) == 0
    assert moved == 0
    # the KL term pulls on them, too; and BNPO's micro-batches are its normaliser
    assert sum(learn(tiny_llama, [0.0] * 4, loss={"dapo": {"beta": 0.1}})[0].seen) == 4 + 4
    assert learn(tiny_llama, [0.0, 1.0, -1.0, 0.0], loss="bnpo")[0].seen == [4]


def test_old_logprobs_cost_a_forward_pass_only_where_the_sampler_is_not_exact(tiny_llama: str) -> None:
    """Four windows of one completion: the sampler's log-probabilities serve; with dropout all but the first are run."""
    advantages = [1.0, -1.0, 0.5, -0.5]
    assert learn(tiny_llama, advantages, minibatches=4)[0].seen == [1, 1, 1, 1]
    dropout = PolicyOptions(model=tiny_llama, lora=LoRA(rank=2, dropout=0.1))
    assert learn(tiny_llama, advantages, minibatches=4, policy=dropout)[0].seen == [3, 1, 1, 1, 1]


def test_torchs_optimizers_are_fused_unless_told_otherwise(tiny_llama: str) -> None:
    for options, fused in (({}, True), ({"foreach": True}, None), ({"fused": False}, False)):
        module = GRPO(
            ["length"],
            policy=PolicyOptions(model=tiny_llama),
            sampling=Sampling(max_new_tokens=4),
            optimizer=partial(torch.optim.AdamW, lr=1e-3, **options),
        )
        trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.fit(module, DataLoader([Problem(prompt=[{"role": "user", "content": "Q"}])], collate_fn=list))
        assert trainer.optimizers[0].param_groups[0]["fused"] is fused
