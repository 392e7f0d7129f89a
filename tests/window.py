"""The gradient of one optimizer window, cut in several ways; on one rank or two."""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_reason import GRPO, PolicyOptions, Problem, Rollout, Sampling

PROMPTS = {0: 7, 1: 1, 2: 6}
LENGTHS = [11, 2, 5, 1, 3, 9, 8, 5]
ADVANTAGES = [1.0, -0.5, 0.25, -2.0, 1.5, -1.0, 0.75, 0.0]
GROUPS = [0, 0, 0, 1, 1, 2, 2, 2]


class Window(GRPO):
    """GRPO with sampling and credit replaced by fixed tokens and advantages, and its gradient kept.

    With `advantage: batch` the credit is real, for the rewards of `tally`.
    """

    first_rank = 5
    """How many completions rank 0 of two has."""

    def rollout(
        self, problems: Sequence[Problem], group_size: int = 1, sampling: Sampling | None = None
    ) -> list[Rollout]:
        generator = torch.Generator().manual_seed(0)
        prompts = {g: torch.randint(0, 200, (length,), generator=generator) for g, length in PROMPTS.items()}
        rollouts = [
            Rollout(
                problem=problems[0],
                prompt_ids=prompts[group],
                completion_ids=torch.randint(0, 200, (c,), generator=generator),
                text="",
                mask=torch.rand(c, generator=generator) < 0.8,  # some tokens do not learn
                advantage=advantage,
                group=group,
            )
            for c, advantage, group in zip(LENGTHS, ADVANTAGES, GROUPS, strict=True)
        ]
        if self.trainer.world_size == 1:
            return rollouts
        return rollouts[: self.first_rank] if self.global_rank == 0 else rollouts[self.first_rank :]

    def credit(self, rollouts: list[Rollout]) -> list[Rollout]:
        return super().credit(rollouts) if self.advantage == "batch" else rollouts

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.gradient = torch.cat([p.grad.flatten() for p in self.policy.parameters() if p.grad is not None])


def gradients(folder: str, loss: str, advantage: Any = "group", ranks: int = 1) -> dict[str, torch.Tensor]:
    """The gradient of the window, by how it was cut; on several ranks each has the whole of it."""
    cuts: dict[str, tuple[int, bool]] = {"1x8": (10**6, False), "8x1": (1, False), "unequal": (40, False)}
    cuts |= {"plain, packed": (64, True), "plain, padded": (10**6, False)}
    if ranks == 2:
        # with 18 tokens 4 micro-batches and 3, so that rank 1 adds one in which nothing learns; idle, it adds them all
        cuts = {"2 ranks": (40, False), "2 ranks, unequal": (18, False), "2 ranks, one idle": (40, False)}
    results = {}
    for name, (tokens, packing) in cuts.items():
        module = Window(
            [tally],
            # the plain road: each sequence with its own prompt, through transformers' attention
            policy=PolicyOptions(model=folder, attention="eager" if "plain" in name else None),
            loss=loss,
            advantage=advantage,
            optimizer=lambda p: torch.optim.SGD(p, lr=1e-3),
            tokens_per_microbatch=tokens,
            packing=packing,
            gradient_clip=None,
        )
        if name == "2 ranks, one idle":
            module.first_rank = len(LENGTHS)
        trainer = Trainer(
            max_steps=1,
            accelerator="cpu",
            devices=ranks,
            strategy="ddp" if ranks > 1 else "auto",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tempfile.gettempdir(),
        )
        problems = [Problem(prompt=[{"role": "user", "content": "Q"}])] * 2
        trainer.fit(module, DataLoader(problems, batch_size=1, collate_fn=list))
        results[name] = module.gradient
    return results


def tally(rollout: Rollout) -> float:
    return float(rollout.length)
