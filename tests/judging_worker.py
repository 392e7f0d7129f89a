"""Two gloo ranks whose rewards say different things; started by test_scoring_items.py.

What trains is imported late, for reward workers import this script too.
"""

import json
import sys
from pathlib import Path

from scoring_rewards import ByRank


def main() -> None:
    import torch
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader

    from lit_reason import GRPO, PolicyOptions, Problem, Rollout, Sampling

    class Placed(GRPO):
        """GRPO whose completions say which rank's they are, and where in the group."""

        def rollout(self, *arguments: object, **options: object) -> list[Rollout]:
            rollouts = super().rollout(*arguments, **options)
            for place, rollout in enumerate(rollouts):
                rollout.text = f"{self.global_rank} {place}"
            return rollouts

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
