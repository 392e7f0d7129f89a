"""Two gloo ranks whose rewards say different things; started by test_scoring_items.py."""

import json
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_reason import GRPO, Judgement, PolicyOptions, Problem, Reward, Rollout, Sampling


class ByRank(Reward):
    """By problem and place in the group, as the completion's text says: 0, 1, 2, 3, and 0, never, 2, 4."""

    deadline = 0.5

    def score(self, rollout: Rollout) -> Judgement:
        rank, place = map(int, rollout.text.split())
        if rank and place == 1:
            time.sleep(600)
        value = float(place + (rank and place == 3))
        return Judgement(value=value, status="odd" if rank else "even")


class Placed(GRPO):
    """GRPO whose completions say which rank's they are, and where in the group."""

    def rollout(self, problems: list[Problem], group_size: int = 1, sampling: Sampling | None = None) -> list[Rollout]:
        rollouts = super().rollout(problems, group_size, sampling)
        for place, rollout in enumerate(rollouts):
            rollout.text = f"{self.global_rank} {place}"
        return rollouts


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    module = Placed(
        [ByRank()],
        policy=PolicyOptions(model=model),
        sampling=Sampling(max_new_tokens=4),
        group_size=4,
        advantage="normalize_then_sum",
        failures="exclude",
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-3),
    )
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        max_steps=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, default_root_dir=folder, **options
    )
    problems = [Problem(prompt=[{"role": "user", "content": "Q"}], answer="1", id=str(i)) for i in range(2)]
    trainer.fit(module, DataLoader(problems, batch_size=1, collate_fn=list))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "ByRank" in name}
    found = {"logged": logged, "advantages": [r.advantage for r in module.last_rollouts]}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
