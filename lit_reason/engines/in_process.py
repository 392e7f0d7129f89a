"""The default engine: continuous batching on the training weights, in the training process.

A prompt is read once, whatever its group's size, and its keys and values are shared by the group's completions
(`cache.py`). Rows whose completion has ended make room at once for waiting ones. Each row draws from its own
counter-based stream (`sample.py`), so a completion does not depend on who else is in the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_reason.adapters import quantised
from lit_reason.architecture import UNLIMITED
from lit_reason.attention import no_mask
from lit_reason.engines.cache import FIRST_COLUMNS, Decode, Prefill, Store
from lit_reason.engines.generate import Generate
from lit_reason.engines.graphs import DEVICES, FixedDecode, Recorder
from lit_reason.engines.straight import Straight, straight
from lit_reason.policy import Policy
from lit_reason.rollout import Completion, Engine, Request, Sampling, find_end
from lit_reason.sample import draw, uniforms
from lit_reason.types import FinishReason, UserError

PREFILL_TOKENS = 16384
"""Most prompt tokens, padding included, read in one forward pass."""

STEPS_BETWEEN_LOOKS = {"cpu": 1}
"""Tokens drawn before the host looks which rows have ended; 8 on accelerators, where looking waits for the device."""


class InProcess(Engine):
    """Generates with the weights being trained; models whose attention it does not know use `Generate`."""

    exact = True

    def generate(
        self, policy: Policy, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, int, Completion]]:
        reach = max(len(r.prompt_ids) for r in requests) + sampling.max_new_tokens
        if policy.window < reach:
            rank_zero_warn(
                f"'{policy.options.model}' attends in a way the rollout engine does not know, so completions come from "
                "transformers' generate: same results, more time and memory"
            )
            yield from Generate().generate(policy, requests, sampling)
            return
        with policy.plain_weights():
            yield from _Batch(policy, requests, sampling, reach).run()


@dataclass(slots=True)
class _Row:
    """One sequence: completion `sample` of `request`, joined at step `born`; its prompt is the `group`-th."""

    request: int
    sample: int
    group: int
    born: int


class _Batch:
    """The rows of one call, from the first prompt to the last completion."""

    def __init__(self, policy: Policy, requests: Sequence[Request], sampling: Sampling, reach: int) -> None:
        self.policy, self.requests, self.sampling = policy, requests, sampling
        self.lm = policy.causal_lm
        self.device = self.lm.device
        limit = sampling.max_new_tokens
        wanted = sum(len(r.streams) for r in requests)
        self.capacity = min(sampling.concurrent, wanted)
        if sampling.cache_tokens:
            self.capacity = min(self.capacity, max(1, sampling.cache_tokens // limit))
        self.look = STEPS_BETWEEN_LOOKS.get(self.device.type, 8)
        self.turn = limit + self.look  # columns of the ring: a row may draw a few tokens too many before a look
        self.own = Store(self.capacity, FIRST_COLUMNS, self.capacity, self.turn)
        self.prompts = Store(1, 1, self.capacity, max(len(r.prompt_ids) for r in requests))
        # rows that ended unseen may run past the longest sequence, but not past what the model knows
        self.positions = min(reach + self.look, policy.context or UNLIMITED)
        self.straight: Straight | None = straight(self.lm, self.positions)
        self.checked = False
        # layers of few bits look at their input to decide how to multiply, which no recording can
        fixed = self.device.type in DEVICES and self.straight is not None and not quantised(self.lm)
        self.layout = (FixedDecode if fixed else Decode)(self.prompts, self.own, reach)
        self.recorder = Recorder()
        self.clock = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.rows: list[_Row] = []
        self.groups: list[int] = []  # the request of each live group, in the order of their prompts in the store
        # prompts of like length are read together
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        self.waiting = deque((i, list(range(len(requests[i].streams)))) for i in order)
        self.now = self.oldest = 0
        self._rearranged = True  # since the layout was told which rows there are
        self.mask = no_mask(self.device)
        vocabulary = self.lm.config.get_text_config().vocab_size
        # state of the rows, first dimension `capacity`
        self.tokens = torch.zeros(self.capacity, self.turn, dtype=torch.int64, device=self.device)  # by column, drawn
        self.logprobs = torch.zeros(self.capacity, self.turn, device=self.device, dtype=torch.float32)
        self.current = torch.zeros(self.capacity, dtype=torch.int64, device=self.device)  # token to read next
        self.born = torch.zeros(self.capacity, dtype=torch.int64, device=self.device)
        self.prompt_length = torch.zeros(self.capacity, dtype=torch.int64, device=self.device)
        self.noise = torch.zeros(self.capacity, self.turn, dtype=torch.float32, device=self.device)
        self.seen: Tensor | None = None
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(self.capacity, vocabulary, dtype=torch.bool, device=self.device)
        self.ends = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
        self.ends[[i for i in policy.eos_ids if i < vocabulary]] = True

    def run(self) -> Iterator[tuple[int, int, Completion]]:
        while self.rows or self.waiting:
            free = self.capacity - len(self.rows)
            # a prefill interrupts everyone, so wait until it is worth it
            if self.waiting and (not self.rows or free >= max(1, self.capacity // 8)):
                self._admit(free)
                yield from self._harvest(1)
                continue
            self._prepare()
            for _ in range(self.look):
                if isinstance(self.layout, FixedDecode):
                    self._fixed_step(self.layout)
                else:
                    self._step()
            yield from self._harvest(self.look)

    # ------------------------------------------------------------------ joining
    def _admit(self, free: int) -> None:
        """Read waiting prompts and draw the first token of as many of their completions as there is room for."""
        if not self.rows:
            self.now = 0
        joining: list[tuple[int, list[int]]] = []
        room = free
        width = 0
        while self.waiting and room:
            request, samples = self.waiting[0]
            width = max(width, len(self.requests[request].prompt_ids))
            if joining and (len(joining) + 1) * width > PREFILL_TOKENS:
                break
            self.waiting.popleft()
            joining.append((request, samples[:room]))
            if samples[room:]:  # the rest of the group follows, and reads the prompt again
                self.waiting.appendleft((request, samples[room:]))
            room -= len(joining[-1][1])
        logits = self._read([request for request, _ in joining])
        start, first_group = len(self.rows), len(self.groups)
        pick: list[int] = []
        keys: list[int] = []
        for g, (request, samples) in enumerate(joining):
            self.groups.append(request)
            for sample in samples:
                self.rows.append(_Row(request, sample, first_group + g, self.now))
                pick.append(g)
                keys.append(self.requests[request].streams[sample])
        new = slice(start, len(self.rows))
        # made on the CPU: not every accelerator knows the 64-bit types
        self.noise[new] = uniforms(torch.tensor(keys), self.turn).float().to(self.device)
        self.born[new] = self.now
        lengths = torch.tensor([len(self.requests[request].prompt_ids) for request, _ in joining])
        self.prompt_length[new] = lengths[pick].to(self.device)
        if self.seen is not None:
            self.seen[new] = False
            for row in range(start, len(self.rows)):
                self.seen[row, self.requests[self.rows[row].request].prompt_ids.to(self.device)] = True
        self._draw(logits[pick], new, self.noise[new, 0], self.now % self.turn)
        self._rearranged = True

    def _read(self, requests: Sequence[int]) -> Tensor:
        """Prefill: store the prompts' keys and values, and give the logits (G, V) that follow them."""
        prompts = [self.requests[i].prompt_ids for i in requests]
        width = max(len(p) for p in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        self.prompts.reserve(len(self.groups) + len(prompts), width)
        layout = Prefill(self.prompts, len(self.groups), width)
        hidden = self._forward(ids.to(self.device), torch.arange(width, device=self.device)[None], layout)
        last = torch.tensor([len(p) - 1 for p in prompts], device=self.device)
        return self.policy.logits(hidden[torch.arange(len(prompts), device=self.device), last])

    def _forward(self, ids: Tensor, positions: Tensor, layout: object) -> Tensor:
        hidden: Tensor = self.lm.base_model(
            input_ids=ids,
            position_ids=positions.expand_as(ids),
            attention_mask=self.mask,
            use_cache=False,
            layout=layout,
        ).last_hidden_state
        return hidden

    # ------------------------------------------------------------------ a token for everyone
    def _prepare(self) -> None:
        """Room for the next columns, and the rows as they are now."""
        self.own.reserve(self.capacity, min(self.now + self.look, self.turn))
        if self._rearranged:
            lengths = [len(self.requests[request].prompt_ids) for request in self.groups]
            self.layout.arrange([row.group for row in self.rows], lengths, self.device)
            self.oldest = min(row.born for row in self.rows)
            self.alike = all(row.born == self.oldest for row in self.rows)
            self.offset = (self.prompt_length - self.born)[: len(self.rows), None]
            self._rearranged = False

    def _step(self) -> None:
        rows, column = len(self.rows), self.now % self.turn
        first, last = self.oldest % self.turn, column + 1
        hidden_columns = None
        if last <= first or self.now - self.oldest >= self.turn:  # the ring has wrapped around
            first, last = 0, self.turn
        if not self.alike or last - first > self.now - self.oldest + 1:
            columns = torch.arange(first, last, device=self.device)
            written = self.now - (column - columns) % self.turn  # the step that wrote each column last
            hidden_columns = (written < self.born[:rows, None])[:, None, None]
        self.layout.step(column, first, last, hidden_columns)
        logits = self._advance(self.current[:rows, None], (self.offset + self.now).clamp_(max=self.positions - 1))
        self.now += 1
        if self.alike:
            uniform = self.noise[:rows, min(self.now - self.oldest, self.turn - 1)]
        else:
            number = (self.now - self.born[:rows]).clamp_(max=self.turn - 1)
            uniform = self.noise[:rows].gather(1, number[:, None]).squeeze(1)
        self._draw(logits, slice(rows), uniform, self.now % self.turn)

    def _fixed_step(self, layout: FixedDecode) -> None:
        """The same step with fixed shapes, recorded where the device can; rows that are too many draw in vain."""
        if not self.checked:
            self.clock.fill_(self.now)
            layout.step_at(self.clock, self.born[: layout.rows], self.turn)
            self._advance(self.current[: layout.rows, None], self._positions(layout.rows))
        if self.straight is None:  # just found out; from here on the plain way
            self.layout = Decode(self.prompts, self.own, layout.reach)
            self._rearranged = True
            self._prepare()
            self._step()
            return
        self.clock.fill_(self.now)
        self.recorder(layout.shapes, lambda: self._work(layout))
        self.now += 1

    def _positions(self, rows: int) -> Tensor:
        return (self.prompt_length - self.born + self.clock)[:rows, None].clamp(0, self.positions - 1)

    def _work(self, layout: FixedDecode) -> None:
        assert self.straight is not None
        rows, born = layout.rows, self.born[: layout.rows]
        layout.step_at(self.clock, born, self.turn)
        logits = self._logits(self.straight(self.current[:rows, None], self._positions(rows), layout))
        number = (self.clock + 1 - born).clamp(0, self.turn - 1)
        uniform = self.noise[:rows].gather(1, number[:, None]).squeeze(1)
        seen = None if self.seen is None else self.seen[:rows]
        tokens, logprobs = draw(logits, uniform, self.sampling, seen)
        column = (self.clock + 1) % self.turn
        self.current[:rows].copy_(tokens)
        self.tokens[:rows].index_copy_(1, column, tokens[:, None])
        self.logprobs[:rows].index_copy_(1, column, logprobs[:, None])
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)

    def _advance(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Read one token in every row: logits (S, V) of the next."""
        if self.straight is not None and self.checked:
            return self._logits(self.straight(ids, positions, self.layout))
        hidden = self._forward(ids, positions, self.layout)[:, 0]
        if self.straight is not None:
            quick = self.straight(ids, positions, self.layout)
            mixed = torch.is_autocast_enabled(self.device.type)
            loose = 1e-4 if hidden.dtype == torch.float32 and not mixed else 2e-2
            self.checked = bool(((quick - hidden).abs() <= loose * (hidden.abs() + hidden.abs().amax())).all())
            if not self.checked:
                self.straight = None
        return self._logits(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        head = None if self.straight is None else self.straight.head
        return self.policy.logits(hidden) if head is None else head(hidden)

    def _draw(self, logits: Tensor, rows: slice, uniform: Tensor, column: int) -> None:
        seen = None if self.seen is None else self.seen[rows]
        tokens, logprobs = draw(logits, uniform, self.sampling, seen)
        self.current[rows] = tokens
        self.tokens[rows, column] = tokens
        self.logprobs[rows, column] = logprobs
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)

    # ------------------------------------------------------------------ leaving
    def _harvest(self, looked: int) -> Iterator[tuple[int, int, Completion]]:
        """Take out the rows that ended within the last `looked` tokens."""
        ended = self._ended(looked)
        if not self.sampling.stop and True not in ended and self.now - self.oldest + 1 < self.sampling.max_new_tokens:
            return
        finished: list[int] = []
        taken: list[tuple[int, int, Completion]] = []
        for index, row in enumerate(self.rows):
            drawn = self.now - row.born + 1
            if ended[index] or drawn >= self.sampling.max_new_tokens or self.sampling.stop:
                ids = self.tokens[index, self._columns(row, drawn)].cpu()
                end = find_end(self.policy, ids, self.sampling, max(0, drawn - looked))
                if end is not None:
                    finished.append(index)
                    taken.append((row.request, row.sample, self._completion(index, ids, *end)))
        if finished:
            self._close(finished)
            yield from taken

    def _ended(self, looked: int) -> list[bool]:
        """Whether each row drew an end-of-sequence token within the last `looked` tokens."""
        rows = len(self.rows)
        if looked == 1:
            return self.ends.index_select(0, self.current[:rows]).tolist()
        columns = [(self.now - k) % self.turn for k in reversed(range(looked))]
        return self.ends[self.tokens[:rows, columns]].any(1).tolist()

    def _completion(self, index: int, ids: Tensor, length: int, reason: FinishReason) -> Completion:
        logprobs = self.logprobs[index, self._columns(self.rows[index], length)].cpu()
        if not bool(logprobs.isfinite().all()):
            raise UserError(
                "the policy's logits are not finite, so nothing can be sampled from it: its weights have diverged or "
                "overflow their dtype. Go on from an earlier checkpoint with a lower learning rate, or use float32"
            )
        return Completion(ids=ids[:length], logprobs=logprobs, finish_reason=reason)

    def _columns(self, row: _Row, length: int) -> Tensor:
        return torch.arange(row.born, row.born + length, device=self.device) % self.turn

    def _close(self, finished: Sequence[int]) -> None:
        """Fill the places of rows that left with the last ones, then those of groups that have no row any more."""
        state = [self.tokens, self.logprobs, self.current, self.born, self.prompt_length, self.noise]
        state += [] if self.seen is None else [self.seen]
        for index in reversed(finished):  # from the end, so that what moves in has not finished
            last = len(self.rows) - 1
            if index != last:
                self.own.move(last, index)
                for x in state:
                    x[index] = x[last]
                self.rows[index] = self.rows[last]
            self.rows.pop()
        alive = {row.group for row in self.rows}
        for group in reversed(range(len(self.groups))):
            if group not in alive:
                last = len(self.groups) - 1
                if group != last:
                    self.prompts.move(last, group)
                    self.groups[group] = self.groups[last]
                    for row in self.rows:
                        if row.group == last:
                            row.group = group
                self.groups.pop()
        self._rearranged = True
