"""A side of `bench_grpo.py`: a process that stays warm and computes only when it is told to.

    python tools/bench_sides.py prepare|ours|trl '{"workload": "W1", ...}'

Here is ours; TRL's is in bench_peer.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_turns import Job, Turns
from bench_workloads import LEARNING_RATE, prompts, reward, traces, write_model


def ours_grpo(job: Job, turns: Turns) -> None:
    """Our `GRPO` under a plain Trainer."""
    import torch

    from lit_reason import GRPO, PolicyOptions, Problem, Rollout, Sampling
    from lit_reason.policy import LoRA

    work = job.work

    class Timed(GRPO):
        def training_step(self, problems: list[Problem], batch_idx: int) -> None:
            turns.arrive()
            super().training_step(problems, batch_idx)

        def rollout(self, *args: Any, **kwargs: Any) -> list[Rollout]:  # noqa: ANN401 - passed on as they are
            with turns.timed("rollout"):
                rollouts = super().rollout(*args, **kwargs)
            turns.done([r.prompt_ids.tolist() for r in rollouts], [r.length for r in rollouts])
            return rollouts

        def score(self, rollouts: list[Rollout]) -> list[Rollout]:
            with turns.timed("reward"):
                return super().score(rollouts)

    def judge(rollout: Rollout) -> float:
        return reward(rollout.text)

    rewards: Any = [judge]  # resolved as in YAML, where any of several forms will do
    loss: Any = {"dapo": {"beta": work.beta}}
    lora = LoRA(rank=work.lora_rank, alpha=2 * work.lora_rank) if work.lora_rank else None
    module = Timed(
        rewards=rewards,
        policy=PolicyOptions(model=job.folder, lora=lora),
        loss=loss,
        group_size=work.group,
        sampling=Sampling(max_new_tokens=work.new_tokens),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0),
        minibatches=work.minibatches,
        passes=work.passes,
        tokens_per_microbatch=work.ours_tokens,
        packing=work.ours_packing,
        seed=job.seed,
    )
    problems = [Problem(prompt=prompt) for prompt in prompts(work, job.phases, job.seed)]
    fit(module, problems, work.prompts, job)


def ours_sft(job: Job, turns: Turns) -> None:
    """Our `SFT` under a plain Trainer."""
    import torch

    from lit_reason import SFT, PolicyOptions, Problem, Rollout

    work = job.work

    class Timed(SFT):
        def training_step(self, problems: list[Problem], batch_idx: int) -> None:
            turns.arrive()
            super().training_step(problems, batch_idx)

        def update(self, rollouts: Sequence[Rollout]) -> None:
            whole = [torch.cat([r.prompt_ids, r.completion_ids]).tolist() for r in rollouts]
            turns.done(whole, [r.length for r in rollouts])
            super().update(rollouts)

    module = Timed(
        policy=PolicyOptions(model=job.folder),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0),
        tokens_per_microbatch=work.ours_tokens,
        packing=work.ours_packing,
        seed=job.seed,
    )
    rows = traces(work, job.phases, job.seed)
    fit(module, [Problem(prompt=prompt, completion=completion) for prompt, completion in rows], work.prompts, job)


def fit(module: Any, problems: Any, batch: int, job: Job) -> None:  # noqa: ANN401 - lit_reason is imported late
    """Train over all problems with a Trainer that does nothing else."""
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader

    trainer = Trainer(
        max_epochs=1,
        accelerator=job.device,
        devices=1,
        precision=job.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(problems, batch_size=batch, collate_fn=list))


def main() -> None:
    """Run one side until the parent has seen enough."""
    side, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    if job.ours_path is not None:
        sys.path.insert(0, job.ours_path)
    if side == "prepare":
        write_model(job.work, Path(job.folder), job.seed)
        return
    import torch

    torch.set_num_threads(job.threads)
    turns = Turns(job.device)
    if side == "ours":
        (ours_grpo if job.work.group else ours_sft)(job, turns)
    else:
        from bench_peer import trl_grpo, trl_sft

        (trl_grpo if job.work.group else trl_sft)(job, turns)


if __name__ == "__main__":
    main()
