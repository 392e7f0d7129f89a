"""The engine of last resort: transformers' `generate`, with the random streams of the in-process engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lit_reason.policy import Policy
from lit_reason.rollout import Completion, Engine, Request, Sampling, find_end
from lit_reason.sample import draw, uniforms


class Generate(Engine):
    """Generates with the weights being trained, through whatever cache and attention the model brings."""

    exact = True

    def generate(
        self, policy: Policy, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, int, Completion]]:
        wanted = [(r, s) for r, request in enumerate(requests) for s in range(len(request.streams))]
        wanted.sort(key=lambda pair: len(requests[pair[0]].prompt_ids))  # prompts of like length side by side
        for start in range(0, len(wanted), sampling.concurrent):
            chosen = wanted[start : start + sampling.concurrent]
            prompts = [requests[r].prompt_ids for r, _ in chosen]
            keys = [requests[r].streams[s] for r, s in chosen]
            drawing = _Drawing(prompts, keys, sampling, policy.causal_lm.device)
            outputs = policy.generate(
                prompts, max_new_tokens=sampling.max_new_tokens, do_sample=False, logits_processor=[drawing]
            )
            logprobs = torch.stack(drawing.logprobs, 1).cpu()
            for row, (ids, (r, s)) in enumerate(zip(outputs, chosen, strict=True)):
                length, reason = find_end(policy, ids, sampling) or (len(ids), "length")
                yield r, s, Completion(ids=ids[:length], logprobs=logprobs[row, :length], finish_reason=reason)


class _Drawing:
    """A logits processor that draws the token itself and leaves `generate` no choice."""

    def __init__(
        self, prompts: Sequence[Tensor], keys: Sequence[int], sampling: Sampling, device: torch.device
    ) -> None:
        self.prompts, self.sampling = prompts, sampling
        self.noise = uniforms(torch.tensor(keys), sampling.max_new_tokens).float().to(device)
        self.seen: Tensor | None = None
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.sampling.repetition_penalty != 1.0 and self.seen is None:
            self.seen = torch.zeros_like(scores, dtype=torch.bool)
            for row, prompt in enumerate(self.prompts):
                self.seen[row, prompt.to(scores.device)] = True
        tokens, logprobs = draw(scores, self.noise[:, len(self.logprobs)], self.sampling, self.seen)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)
