"""Continuous batching by transformers as a rollout engine: its paged key-value cache, its scheduler, its kernels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lit_reason.attention import NAME
from lit_reason.policy import Policy
from lit_reason.rollout import Completion, Engine, Request, Sampling, find_end, mix, random_stream
from lit_reason.types import UserError

POLL_SECONDS = 1.0
"""How often a waiting engine looks whether the generating thread is still alive."""


class ContinuousBatching(Engine):
    """Generates with the weights being trained, through transformers' `ContinuousBatchingManager`.

    For architectures whose attention the default engine does not know, and for flash attention with paged caches: the
    policy's attention implementation is used (`sdpa`, `eager` or a flash one). Prompts are read once per group.

    Randomness: one stream for the whole batch, named by the streams of its requests. The same requests on the same
    machine give the same completions; a completion does change with what else is in the batch and with the sizes
    below. Completions are handed out when all of them are done, because whoever draws random numbers in between would
    change those that follow.

    Sampling: temperature, top_p and top_k; `min_p` and `repetition_penalty` are refused. A completion that meets a stop
    string goes on to its own end, and is cut afterwards. With top_p or top_k no log-probabilities are recorded, for
    transformers renormalises them to what was kept.

    Not exact: tokens are drawn in a thread of their own, which mixed precision of the training thread does not reach.

    Args:
        page_tokens: tokens in a page of the key-value cache, 4 or more; whole pages of prompts are shared.
        batch_tokens: most tokens, of prompts and completions together, read in one forward pass; sequences beyond this
            number wait.
    """

    def __init__(self, *, page_tokens: int = 32, batch_tokens: int = 4096) -> None:
        if page_tokens < 4:
            raise UserError(f"engine.page_tokens must be 4 or more, got {page_tokens}")
        if batch_tokens < 1:
            raise UserError(f"engine.batch_tokens must be 1 or more, got {batch_tokens}")
        self.page_tokens, self.batch_tokens = page_tokens, batch_tokens

    def generate(
        self, policy: Policy, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, int, Completion]]:
        for name, off in (("min_p", 0.0), ("repetition_penalty", 1.0)):
            if getattr(sampling, name) != off:
                raise UserError(
                    f"sampling.{name}: ContinuousBatching cannot do this, transformers would ignore it there. "
                    f"Set it to {off:g}, or choose another engine"
                )
        # transformers forks a prompt into the same number of completions for all requests of a batch
        by_count: dict[int, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            by_count[len(request.streams)].append(number)
        for numbers in by_count.values():
            yield from self._batch(policy, {n: requests[n] for n in numbers}, sampling)

    def _batch(
        self, policy: Policy, requests: dict[int, Request], sampling: Sampling
    ) -> list[tuple[int, int, Completion]]:
        """Every completion of requests that want equally many."""
        seed = mix(*(stream for request in requests.values() for stream in request.streams)) >> 1
        with random_stream(seed), policy.plain_weights(), _plain_attention(policy.causal_lm):
            outputs = self._run(policy, requests, sampling, seed)
        # the log-probabilities are those of what top-p and top-k kept
        known = sampling.temperature == 0 or (sampling.top_p == 1 and sampling.top_k == 0)
        found = []
        for (number, sample), output in outputs.items():
            ids = torch.tensor(output.generated_tokens, dtype=torch.int64)
            logprobs = torch.tensor(output.logprobs, dtype=torch.float32)
            if not bool(logprobs.isfinite().all()):
                raise UserError(
                    "the policy's logits are not finite, so nothing can be sampled from it: its weights have diverged "
                    "or overflow their dtype. Go on from an earlier checkpoint with a lower learning rate, or use "
                    "float32"
                )
            length, reason = find_end(policy, ids, sampling) or (len(ids), "length")
            completion = Completion(
                ids=ids[:length], logprobs=logprobs[:length] if known else None, finish_reason=reason
            )
            found.append((number, sample, completion))
        return found

    def _run(
        self, policy: Policy, requests: dict[int, Request], sampling: Sampling, seed: int
    ) -> dict[tuple[int, int], Any]:
        """What transformers answers, by (number of the request, number of its completion)."""
        lm = policy.causal_lm
        count = len(next(iter(requests.values())).streams)
        try:
            manager = lm.init_continuous_batching(
                generation_config=self._generation(policy, sampling, count),
                continuous_batching_config=self._sizes(list(requests.values()), sampling, seed),
            )
        except ValueError as error:  # an attention implementation without a paged form
            raise _failed(error) from error
        wanted: dict[str, tuple[int, int]] = {}
        for number, request in requests.items():
            # queued before anything runs, so that what shares a forward pass is no matter of timing
            manager.add_request(request.prompt_ids.tolist(), request_id=str(number), eos_token_id=policy.eos_ids)
            wanted[str(number)] = (number, 0)
            wanted |= {f"{number}__child#{i}": (number, i + 1) for i in range(count - 1)}
        outputs: dict[tuple[int, int], Any] = {}
        manager.start()
        try:
            while len(outputs) < len(wanted):
                output = manager.get_result(timeout=POLL_SECONDS)
                if output is None:
                    if not manager.is_running():
                        raise _failed(manager.background_thread_status.fatal_error)
                elif output.error is not None:
                    raise _failed(output.error)
                elif output.is_finished():
                    outputs[wanted[output.request_id]] = output
        finally:
            manager.stop(hard_stop=len(outputs) < len(wanted))
            manager.destroy()
        return dict(sorted(outputs.items()))

    @staticmethod
    def _generation(policy: Policy, sampling: Sampling, count: int) -> Any:  # noqa: ANN401 - a GenerationConfig
        from transformers import GenerationConfig

        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        return GenerationConfig(
            eos_token_id=policy.eos_ids,
            pad_token_id=policy.pad_id,
            max_new_tokens=sampling.max_new_tokens,
            num_return_sequences=count,
            **drawn,
        )

    def _sizes(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> Any:  # noqa: ANN401 - a ContinuousBatchingConfig
        """Room for as many sequences as `sampling` allows; left to itself, transformers takes most of the memory."""
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        rows = min(sampling.concurrent, sum(len(r.streams) for r in requests), self.batch_tokens)
        if sampling.cache_tokens:
            rows = min(rows, max(1, sampling.cache_tokens // sampling.max_new_tokens))
        longest = max(len(r.prompt_ids) for r in requests) + sampling.max_new_tokens
        return ContinuousBatchingConfig(
            page_size=self.page_tokens,
            num_blocks=rows * (math.ceil(longest / self.page_tokens) + 1),
            max_batch_tokens=self.batch_tokens,
            max_requests_per_batch=rows,
            return_logprobs=True,
            seed=seed % 2**32,
            auto_switch_to_flash=False,  # the policy's own implementation, so that sampling is like training
        )


@contextmanager
def _plain_attention(lm: Any) -> Iterator[None]:  # noqa: ANN401 - a transformers model
    """Inside, a model that attends by `lit_reason.attention` attends by `sdpa`, which the paged cache knows."""
    ours = lm.config._attn_implementation == NAME  # noqa: SLF001 - there is no public name for it
    if ours:
        lm.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if ours:
            lm.set_attn_implementation(NAME)


def _failed(error: object) -> UserError:
    return UserError(
        f"engine ContinuousBatching: transformers says: {' '.join(str(error).split())}. If memory ran out, lower "
        "sampling.concurrent or engine.batch_tokens; else use the default engine"
    )
