"""SFT: imitate worked completions, loss on the completion only.

    lit-reason fit --config configs/sft.yaml

The same update as GRPO's, fed with rollouts that were written instead of sampled; each token weighs 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from lit_reason.losses.cross_entropy import CrossEntropy
from lit_reason.modules.base import Reasoner, check_problems
from lit_reason.policy import PolicyOptions
from lit_reason.rollout import Sampling
from lit_reason.types import Problem, Rollout, UserError


class SFT(Reasoner):
    """Supervised fine-tuning on problems that carry a completion, in think or no-think mode as each problem says.

    Args:
        policy: which model, and how to hold it.
        max_tokens: leave out examples longer than this, prompt and completion together; null takes the model's context.
        optimizer: builds the optimizer from the trainable parameters.
        lr_scheduler: builds a scheduler from the optimizer; it steps once per optimizer step.
        sampling: limits of the completions written during validation.
        validation_samples: sampled completions for each held-out problem, beside the greedy one; 0 for greedy only.
        minibatches: optimizer steps cut from one batch of examples.
        passes: passes over one batch of examples before the next.
        tokens_per_microbatch: most input tokens, padding included, in one forward and backward pass; bounds memory.
        packing: put several examples into one row of input.
        gradient_clip: clip the gradient's norm to this; null never clips.
        seed: of sampling and of shuffles; the command line links it to `seed_everything`.

    Raises:
        UserError: an option or the model folder is wrong; one line says which.
    """

    learns_without_sampling = True

    def __init__(
        self,
        *,
        policy: PolicyOptions = PolicyOptions(),
        max_tokens: int | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=2e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        sampling: Sampling = Sampling(),
        validation_samples: int = 0,
        minibatches: int = 1,
        passes: int = 1,
        tokens_per_microbatch: int = 16384,
        packing: bool = True,
        gradient_clip: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens must be 1 or more, or null for the model's context, got {max_tokens}")
        super().__init__(
            policy=policy,
            loss=CrossEntropy(),
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            sampling=sampling,
            validation_samples=validation_samples,
            minibatches=minibatches,
            passes=passes,
            tokens_per_microbatch=tokens_per_microbatch,
            packing=packing,
            gradient_clip=gradient_clip,
            seed=seed,
        )
        self.max_tokens = max_tokens
        self.updater.temperature = 1.0  # the examples were not sampled; `sampling` is validation's alone

    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        check_problems(problems)
        rollouts = self.written(problems)
        lengths = [float(r.length) for r in rollouts]
        self.log_phase({"length": lengths}, {"too_long": float(len(problems) - len(rollouts))})
        self.update(rollouts)

    def written(self, problems: Sequence[Problem]) -> list[Rollout]:
        """The problems' own completions as rollouts; examples longer than `max_tokens` are left out."""
        limit = self.max_tokens or self.policy.context or 10**9
        rollouts = []
        for group, problem in enumerate(problems):
            prompt_ids = self.policy.render(problem.prompt, problem.think)
            completion_ids = self.policy.encode_completion(problem)
            if len(prompt_ids) + len(completion_ids) <= limit:
                rollouts.append(
                    Rollout(
                        problem=problem,
                        prompt_ids=prompt_ids,
                        completion_ids=completion_ids,
                        text=problem.completion or "",
                        group=group,
                    )
                )
        return rollouts
