"""Stage 2: sample a group of completions for each problem, with no gradient.

An engine turns prompt tokens into completion tokens; `roll_out` does everything around it: rendering, groups, prompts
that do not fit the context, and decoding. Each phase draws from its own random stream, a function of (seed, phase,
rank), so that what was sampled before a restart never matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_reason.policy import Policy
from lit_reason.types import Problem, Rollout, UserError


@dataclass(kw_only=True, frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        temperature: logits are divided by it, in sampling and in the trained log-probabilities; 0 is greedy.
        top_p: keep the smallest set of tokens with this much probability; 1 keeps all. Below 1 the trained
            log-probabilities are not renormalised to the set, as everywhere in the field.
        top_k: keep the k most probable tokens; 0 keeps all.
        min_p: drop tokens less probable than this share of the most probable one; 0 keeps all.
        max_new_tokens: a completion that has not ended by then is cut off.
        concurrent: most sequences generated at once; bounds the memory of the key-value cache.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 256
    concurrent: int = 256

    def __post_init__(self) -> None:
        checks = {
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "min_p": (0 <= self.min_p < 1, "0 (off) or more, below 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "concurrent": (self.concurrent >= 1, "1 or more"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise UserError(f"sampling.{name} must be {wanted}, got {getattr(self, name)}")

    def greedy(self) -> Sampling:
        """The same limits, always taking the most probable token."""
        return Sampling(temperature=0.0, max_new_tokens=self.max_new_tokens, concurrent=self.concurrent)


class Engine(Protocol):
    """What generates: prompt tokens in, completion tokens out, in the same order."""

    def __call__(self, policy: Policy, prompts: Sequence[Tensor], sampling: Sampling) -> list[Tensor]:
        """One completion (T_i,) for each prompt (P_i,), the end-of-sequence token included when one was sampled."""
        ...


def in_process(policy: Policy, prompts: Sequence[Tensor], sampling: Sampling) -> list[Tensor]:
    """The default engine: transformers' `generate` on the training weights, prompts of like length side by side."""
    options: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        if sampling.min_p > 0:
            options["min_p"] = sampling.min_p
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: dict[int, Tensor] = {}
    for start in range(0, len(order), sampling.concurrent):
        chosen = order[start : start + sampling.concurrent]
        completions.update(zip(chosen, policy.generate([prompts[i] for i in chosen], **options), strict=True))
    return [completions[i] for i in range(len(prompts))]


def roll_out(
    policy: Policy,
    problems: Sequence[Problem],
    sampling: Sampling,
    group_size: int = 1,
    *,
    stream: Sequence[int] = (0,),
    engine: Engine = in_process,
) -> list[Rollout]:
    """`group_size` completions of every problem whose prompt fits the context, group by group.

    Args:
        policy: who answers.
        problems: what is asked; a prompt that leaves no room for `max_new_tokens` in the context is left out.
        sampling: how completions are drawn.
        group_size: completions a problem.
        stream: integers that name the random stream, such as (seed, phase, rank).
        engine: what generates.

    Returns:
        Rollouts without rewards, at most len(problems) * group_size; `group` numbers the problems from 0.
    """
    prompts = [policy.render(problem.prompt, problem.think) for problem in problems]
    limit = policy.context or 10**9
    groups = [i for i, prompt in enumerate(prompts) if len(prompt) + sampling.max_new_tokens <= limit]
    if not groups:
        return []
    with random_stream(*stream):
        completions = engine(policy, [prompts[g] for g in groups for _ in range(group_size)], sampling)
    rollouts = []
    for index, completion_ids in enumerate(completions):
        group = groups[index // group_size]
        ended = len(completion_ids) > 0 and int(completion_ids[-1]) in policy.eos_ids
        rollouts.append(
            Rollout(
                problem=problems[group],
                prompt_ids=prompts[group],
                completion_ids=completion_ids,
                text=policy.decode(completion_ids),
                finish_reason="stop" if ended else "length",
                group=group,
            )
        )
    return rollouts


@contextmanager
def random_stream(*stream: int) -> Iterator[None]:
    """Inside, all that is random is a function of these integers; outside, the global generators go on untouched."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(_stream_seed(stream))
        yield


def _stream_seed(stream: Sequence[int]) -> int:
    """One 63-bit seed from several integers, each of which changes all of it (splitmix64)."""
    state = 0
    for value in stream:
        state = (state + value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
