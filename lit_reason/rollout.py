"""Stage 2: sample a group of completions for each problem, with no gradient.

An engine turns prompt tokens into completion tokens; `roll_out` does everything around it: rendering, groups, prompts
that do not fit the context, and decoding. Each completion draws from a random stream of its own, named by (seed, phase,
problem, sample), so that it is the same alone or among others, in any order and on any rank.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_reason.policy import Policy
from lit_reason.types import FinishReason, Problem, Rollout, UserError


@dataclass(kw_only=True, frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        temperature: logits are divided by it, in sampling and in the trained log-probabilities; 0 is greedy.
        top_p: keep the smallest set of tokens with this much probability; 1 keeps all. Below 1 the trained
            log-probabilities are not renormalised to the set, as everywhere in the field.
        top_k: keep the k most probable tokens; 0 keeps all.
        min_p: drop tokens less probable than this share of the most probable one; 0 keeps all.
        repetition_penalty: above 1 makes tokens that already occur, in the prompt too, less probable (1909.05858); the
            trained log-probabilities do not know of it.
        stop: a completion ends with the token that completes one of these strings.
        max_new_tokens: a completion that has not ended by then is cut off.
        concurrent: most sequences generated at once; bounds the memory of the key-value cache.
        cache_tokens: most completion tokens the key-value cache has room for, prompts not counted; fewer sequences run
            at once where `concurrent` of `max_new_tokens` each would need more. 0 is no such bound.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 256
    concurrent: int = 256
    cache_tokens: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):  # a string is a sequence of strings, and never meant as one
            raise UserError(f"sampling.stop must be a list of strings, got '{self.stop}': write [{self.stop!r}]")
        checks = {
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "min_p": (0 <= self.min_p < 1, "0 (off) or more, below 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0, 1 is off"),
            "stop": (all(self.stop), "strings of at least one character"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "concurrent": (self.concurrent >= 1, "1 or more"),
            "cache_tokens": (self.cache_tokens >= 0, "0 (no bound) or more"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise UserError(f"sampling.{name} must be {wanted}, got {getattr(self, name)}")

    def greedy(self) -> Sampling:
        """The same limits, always taking the most probable token."""
        return replace(self, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)

    @property
    def trained_temperature(self) -> float:
        """What the trained log-probabilities divide logits by: greedy sampling trains the plain distribution."""
        return self.temperature or 1.0


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Request:
    """A prompt and how many completions it wants.

    Attributes:
        prompt_ids: (P,) int64.
        streams: the random stream of each wanted completion, a 63-bit key.
    """

    prompt_ids: Tensor
    streams: tuple[int, ...]


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Completion:
    """What an engine answers.

    Attributes:
        ids: (T,) int64 on the CPU, the end-of-sequence token included where one was sampled; at least one token.
        logprobs: (T,) float32 on the CPU, of these tokens at the sampling temperature, before top-p, top-k, min-p or
            a penalty; None when the engine cannot say.
        finish_reason: "stop" when the model or a stop string ended it, "length" when it was cut off.
    """

    ids: Tensor
    logprobs: Tensor | None
    finish_reason: FinishReason


class Engine(ABC):
    """What generates; `InProcess` unless a configuration names another.

    Attributes:
        exact: the weights that sample are the trained ones in the same arithmetic, so that sampled log-probabilities
            are the trainer's; where they are not, the loss is corrected for the difference.
    """

    exact: bool = False

    @abstractmethod
    def generate(
        self, policy: Policy, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, int, Completion]]:
        """Completions as they finish, in any order: (number of the request, number of its completion, completion).

        Args:
            policy: the policy as it is now; in eval mode, no gradient.
            requests: prompts that fit the context together with `max_new_tokens`.
            sampling: how completions are drawn.
        """

    def weights_changed(self, policy: Policy) -> None:  # noqa: B027 - most engines hold no copy of the weights
        """The policy has learnt since the last `generate`, or was loaded; called before the next one."""


def roll_out(
    policy: Policy,
    problems: Sequence[Problem],
    sampling: Sampling,
    group_size: int = 1,
    *,
    stream: Sequence[int] = (0,),
    engine: Engine | None = None,
    on_group: Callable[[list[Rollout]], None] | None = None,
) -> list[Rollout]:
    """`group_size` completions of every problem whose prompt fits the context, group by group.

    Args:
        policy: who answers.
        problems: what is asked; a prompt that leaves no room for `max_new_tokens` in the context is left out.
        sampling: how completions are drawn.
        group_size: completions a problem.
        stream: integers that name the random streams, such as (seed, phase); the problem and the number of the sample
            are added to them.
        engine: what generates; None is the in-process one.
        on_group: called with each group as soon as its last completion has finished, while others still generate; not
            the place to use the policy.

    Returns:
        Rollouts without rewards, at most len(problems) * group_size; `group` numbers the problems from 0.
    """
    prompts = [policy.render(problem.prompt, problem.think) for problem in problems]
    for problem, prompt in zip(problems, prompts, strict=True):
        if len(prompt) == 0:
            raise UserError(f"problem '{problem.id}' of task '{problem.task}' has an empty prompt")
    limit = policy.context or 10**9
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) + sampling.max_new_tokens <= limit]
    if not fitting:
        return []
    if engine is None:
        from lit_reason.engines.in_process import InProcess

        engine = InProcess()
    seen: Counter[int] = Counter()
    requests = []
    for g in fitting:
        name = _fingerprint(problems[g], prompts[g])
        keys = tuple(mix(*stream, name, seen[name], sample) for sample in range(group_size))
        seen[name] += 1  # a problem asked twice is answered twice, not the same way
        requests.append(Request(prompt_ids=prompts[g], streams=keys))
    groups: list[dict[int, Rollout]] = [{} for _ in requests]
    for index, sample, completion in _generating(engine, policy, requests, sampling):
        groups[index][sample] = Rollout(
            problem=problems[fitting[index]],
            prompt_ids=prompts[fitting[index]],
            completion_ids=completion.ids,
            text=policy.decode(completion.ids),
            finish_reason=completion.finish_reason,
            sampler_logprobs=completion.logprobs,
            group=fitting[index],
        )
        if on_group is not None and len(groups[index]) == group_size:
            on_group([groups[index][s] for s in range(group_size)])
    return [group[sample] for group in groups for sample in range(group_size)]


def find_end(
    policy: Policy, completion_ids: Tensor, sampling: Sampling, first: int = 0
) -> tuple[int, FinishReason] | None:
    """Where a completion ends, looking at its tokens from number `first` on.

    Returns:
        Its length and "stop" when a token ends a turn or completes a stop string, "length" when it is cut off, None
        when it goes on.
    """
    ids = completion_ids[: sampling.max_new_tokens].tolist()
    for length in range(first + 1, len(ids) + 1):
        if ids[length - 1] in policy.eos_ids:
            return length, "stop"
        if sampling.stop:
            # a character takes up to four tokens, one for each of its bytes
            tail = ids[max(0, length - 4 * max(map(len, sampling.stop))) : length]
            text = policy.tokenizer.decode(tail, skip_special_tokens=False)
            if any(stop in text for stop in sampling.stop):
                return length, "stop"
    return (len(ids), "length") if len(ids) == sampling.max_new_tokens else None


def _generating(
    engine: Engine, policy: Policy, requests: Sequence[Request], sampling: Sampling
) -> Iterator[tuple[int, int, Completion]]:
    """The engine at work, in eval mode: no dropout, and gradient checkpointing off, which would recompute in vain."""
    was_training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            yield from engine.generate(policy, requests, sampling)
    finally:
        policy.train(was_training)


def _fingerprint(problem: Problem, prompt_ids: Tensor) -> int:
    """A number that names a problem wherever it turns up: its task, its id and what the model reads."""
    digest = hashlib.blake2b(f"{problem.task}\0{problem.id}\0".encode("utf-8", "replace"), digest_size=8)
    digest.update(prompt_ids.numpy().tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1


@contextmanager
def random_stream(*stream: int) -> Iterator[None]:
    """Inside, all that is random is a function of these integers; outside, the global generators go on untouched."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(mix(*stream))
        yield


def mix(*stream: int) -> int:
    """One 63-bit key from several integers, each of which changes all of it (splitmix64)."""
    state = 0
    for value in stream:
        state = (state + value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
