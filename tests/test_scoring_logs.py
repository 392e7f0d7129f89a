"""What counts, and what modules log of rewards, on one rank and on two."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from scoring_rewards import ByRank, Timed, async_length
from scoring_tools import group, values
from torch.utils.data import DataLoader

from lit_reason import GRPO, PolicyOptions, Problem, RejectionSampling, Rollout, Sampling
from lit_reason.reward import Judgement, Reward, WeightedReward, weighted_rewards
from lit_reason.scoring import Scorer
from lit_reason.types import UserError


def fit(module: GRPO | RejectionSampling, folder: Path, batch_size: int = 2, **options: object) -> dict[str, float]:
    problems = [Problem(prompt=[{"role": "user", "content": c}], answer="1", id=c) for c in "abcd"]
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=folder, **options)
    trainer.fit(module, DataLoader(problems, batch_size=batch_size, collate_fn=list))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class ByPlace(Reward):
    """A status, a failure, or NaN by the place in the group."""

    def score_group(self, rollouts: Sequence[Rollout]) -> list[float | Judgement]:
        return [Judgement(value=1.0, status="right"), Judgement(value=None, status="odd"), float("nan"), 0.0]


@pytest.mark.parametrize(("options", "left_out"), [({"nonfinite": "mask"}, "nonfinite"), ({}, "failures")])
@pytest.mark.parametrize("kind", [GRPO, RejectionSampling])
def test_how_rewards_judged_is_logged(tiny_llama, tmp_path, kind, options, left_out) -> None:
    if kind is RejectionSampling:
        options, left_out = {}, "failures"
    module = kind(
        [ByPlace(), {"length": {"weight": 0}}],
        policy=PolicyOptions(model=tiny_llama),
        sampling=Sampling(max_new_tokens=4),
        group_size=4,
        failures="exclude",
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit(module, tmp_path)
    shares = {n: found[f"train/reward/ByPlace/{n}"] for n in ("ok", "right", "odd", "nonfinite")}
    assert shares == dict.fromkeys(shares, 0.25)
    assert found[f"train/{left_out}/ByPlace"] == 2.0
    assert (
        0 < found["train/reward/ByPlace/seconds"] == pytest.approx(2 * found["train/reward/ByPlace/seconds_per_item"])
    )
    assert [n for n in found if n.startswith("train/reward/length/")] == [
        "train/reward/length/seconds",
        "train/reward/length/seconds_per_item",
    ]
    assert [r.reward for r in module.last_rollouts[:4]] == [1.0, None, None, 0.0]


def test_a_reward_of_weight_0_is_a_metric() -> None:
    rows = group("a", "bb")
    some = Timed(deadline=None)
    some.memory_mb, some.score = None, lambda rollout: None if rollout.text == "a" else 1.0
    rewards = [WeightedReward(name="some", weight=2.0, reward=some), *weighted_rewards([async_length])]
    rewards[1] = WeightedReward(name="metric", weight=0.0, reward=rewards[1].reward)
    pool = Scorer(rewards)
    assert values(pool, rows) == [None, 2.0]
    assert [r.rewards["metric"] for r in rows] == [1.0, 2.0]
    pool.close()
    with pytest.raises(UserError, match="rewards all have weight 0"):
        weighted_rewards([{"length": {"weight": 0}}])


class Placed(GRPO):
    """GRPO whose completions say which rank's they are, and where in the group; writes down what it finds."""

    def rollout(self, *arguments: object, **options: object) -> list[Rollout]:
        rollouts = super().rollout(*arguments, **options)
        for place, rollout in enumerate(rollouts):
            rollout.text = f"{self.global_rank} {place}"
        return rollouts

    def on_train_end(self) -> None:
        metrics = self.trainer.callback_metrics
        logged = {name: float(value) for name, value in metrics.items() if "ByRank" in name}
        found = {"logged": logged, "advantages": [r.advantage for r in self.last_rollouts]}
        file = Path(self.trainer.default_root_dir) / f"rank{self.global_rank}.json"
        file.write_text(json.dumps(found))


def test_ranks_log_the_same_names_though_they_saw_other_statuses(tiny_llama, tmp_path) -> None:
    module = Placed(
        [ByRank()],
        policy=PolicyOptions(model=tiny_llama),
        sampling=Sampling(max_new_tokens=4),
        group_size=4,
        advantage="normalize_then_sum",
        failures="exclude",
        reward_workers=1,
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-3),
    )
    fit(module, tmp_path, batch_size=1, devices=2, strategy="ddp_fork")  # what is imported need not be imported again
    zero, one = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert zero["logged"] == one["logged"]
    logged = zero["logged"]
    # rank 0 has rollouts "even", rank 1 "odd", and one of its four hangs
    assert {n: logged[f"train/reward/ByRank/{n}"] for n in ("even", "odd", "timeout")} == {
        "even": 0.5,
        "odd": 0.375,
        "timeout": 0.125,
    }
    assert logged["train/failures/ByRank"] == 0.0
    # the sums of standardised rewards are worked by hand in test_advantage.py
    torch.testing.assert_close(torch.tensor(zero["advantages"] + one["advantages"]), expected_advantages())


def expected_advantages() -> torch.Tensor:
    """Rank 0's rewards are 0, 1, 2, 3, rank 1's 0, None, 2, 4, over their group's std and then over that of all."""
    first = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64) / ((5 / 3) ** 0.5 + 1e-4)
    second = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64) / (2.0 + 1e-4)
    both = torch.cat([first, second])
    both = both / ((both.square().sum() / 6) ** 0.5 + 1e-4)
    return torch.cat([both[:5], torch.zeros(1), both[5:]]).float()
