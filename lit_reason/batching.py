"""Stage 6, first half: a phase's rollouts become windows, a window micro-batches, a micro-batch tensors.

A window is what one optimizer step sees. It is cut by a token budget, longest sequences first; where the architecture's
attention is known (`attention.py`) a micro-batch is a single row without padding that holds each prompt once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from lit_reason.attention import Family, SharedPrompts
from lit_reason.types import MicroBatch, Rollout


def learns(rollout: Rollout) -> Tensor:
    """(T_i,) bool, True on the tokens of a rollout that learn."""
    return torch.ones(rollout.length, dtype=torch.bool) if rollout.mask is None else rollout.mask


def minibatches(rollouts: Sequence[Rollout], count: int, generator: torch.Generator) -> list[list[Rollout]]:
    """Cut rollouts into `count` windows of like size, shuffled when there is more than one; no size needs to divide.

    A group stays together, but for groups at a cut: its prompt is then computed once, and its advantages balance.
    """
    if count == 1:
        return [list(rollouts)]
    groups: dict[int, list[int]] = {}  # in the order of their first completions, which is random
    for i in torch.randperm(len(rollouts), generator=generator).tolist():
        groups.setdefault(rollouts[i].group, []).append(i)
    order = [i for group in groups.values() for i in group]
    edges = [round(i * len(order) / count) for i in range(count + 1)]
    return [[rollouts[i] for i in order[a:b]] for a, b in pairwise(edges)]


def micro_batches(
    rollouts: Sequence[Rollout],
    token_budget: int,
    *,
    packing: bool = False,
    sharing: bool = False,
    prompt_copies: bool = False,
) -> list[list[Rollout]]:
    """Cut a window into groups whose input tensor holds at most `token_budget` tokens, longest rollouts first.

    Sorting by length keeps padding small and memory independent of the window's longest completion; with `sharing`,
    completions of one prompt stay side by side instead, and the prompt counts once, or with `prompt_copies` for each of
    them, as where attention copies it. A rollout longer than the budget gets a micro-batch of its own.
    """
    if sharing:
        return _sharing_prompts(rollouts, token_budget, prompt_copies)
    groups: list[list[Rollout]] = []
    rows: list[int] = []  # tokens in each row of the group being filled
    for rollout in sorted(rollouts, key=total_length, reverse=True):
        size = total_length(rollout)
        width = total_length(groups[-1][0]) if groups else 0
        fits_row = packing and any(used + size <= width for used in rows)
        if groups and (fits_row or (len(rows) + 1) * width <= token_budget):
            groups[-1].append(rollout)
        else:
            groups.append([rollout])
            rows = []
        _place(rows, size, total_length(groups[-1][0]) if packing else 0)
    return groups


def _sharing_prompts(rollouts: Sequence[Rollout], token_budget: int, prompt_copies: bool) -> list[list[Rollout]]:
    groups: list[list[Rollout]] = []
    used = 0
    for numbers in sorted(_by_prompt(rollouts), key=lambda n: total_length(rollouts[n[0]]), reverse=True):
        same = [rollouts[b] for b in numbers]
        prompt = len(same[0].prompt_ids)
        fresh = True  # the prompt is not in the micro-batch yet
        for rollout in same:
            size = rollout.length + (prompt if fresh else 0)
            if not groups or used + size > token_budget:
                groups.append([])
                used, size = 0, rollout.length + prompt
            groups[-1].append(rollout)
            used += size
            fresh = prompt_copies
    return groups


def _by_prompt(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """Numbers of the rollouts with the same prompt tokens, longest first."""
    groups: dict[bytes, list[int]] = {}
    for b in sorted(range(len(rollouts)), key=lambda b: total_length(rollouts[b]), reverse=True):
        groups.setdefault(rollouts[b].prompt_ids.numpy().tobytes(), []).append(b)
    return list(groups.values())


def total_length(rollout: Rollout) -> int:
    """Tokens of prompt and completion."""
    return len(rollout.prompt_ids) + rollout.length


def _place(rows: list[int], size: int, width: int) -> int:
    """First fit: the row that `size` more tokens go into; a new one when none has room."""
    for index, used in enumerate(rows):
        if used + size <= width:
            rows[index] += size
            return index
    rows.append(size)
    return len(rows) - 1


def collate(rollouts: Sequence[Rollout], *, packing: bool = False, sharing: bool = False) -> MicroBatch:
    """Rollouts as one micro-batch.

    They are padded on the right, packed first-fit into rows as wide as the longest, or stand in a single row that holds
    each prompt once, followed by its completions.

    No attention mask is needed: real tokens never look right, at padding; transformers keeps packed sequences apart by
    the restarts of `position_ids`, which is also how padding after the last sequence of a packed row is kept apart; and
    where prompts are shared, `MicroBatch.layout` says what attends to what.
    """
    longest = max(1, *(r.length for r in rollouts))
    shape = (len(rollouts), longest)
    scored, targets = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    present, mask = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    advantages = torch.zeros(shape, dtype=torch.float32)
    for b, rollout in enumerate(rollouts):
        targets[b, : rollout.length] = rollout.completion_ids
        present[b, : rollout.length] = True
        mask[b, : rollout.length] = learns(rollout)
        advantages[b, : rollout.length] = torch.as_tensor(rollout.advantage, dtype=torch.float32)
    place = _one_row if sharing else partial(_rows, packing=packing)
    input_ids, position_ids, layout = place(rollouts, scored)
    return MicroBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        scored=scored,
        targets=targets,
        present=present,
        mask=mask,
        advantages=advantages,
        old_logprobs=_pad([r.old_logprobs for r in rollouts], longest),
        reference_logprobs=_pad([r.reference_logprobs for r in rollouts], longest),
        sampler_logprobs=_pad([r.sampler_logprobs for r in rollouts], longest),
        layout=layout,
    )


def _rows(rollouts: Sequence[Rollout], scored: Tensor, *, packing: bool) -> tuple[Tensor, Tensor, None]:
    """Input and position ids (R, L) of whole sequences; fills in where each completion token is predicted."""
    width = max(total_length(r) for r in rollouts)
    rows: list[int] = []
    starts = []
    for rollout in rollouts:
        size = total_length(rollout)
        row = _place(rows, size, width if packing else 0)
        starts.append((row, rows[row] - size))
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    position_ids = torch.arange(width).repeat(len(rows), 1)
    for b, (rollout, (row, start)) in enumerate(zip(rollouts, starts, strict=True)):
        prompt, length = len(rollout.prompt_ids), rollout.length
        end = start + prompt + length
        input_ids[row, start:end] = torch.cat([rollout.prompt_ids, rollout.completion_ids])
        position_ids[row, start:] = torch.arange(width - start)
        if packing:
            position_ids[row, end:] = torch.arange(width - end)
        # the token before a completion token predicts it
        scored[b, :length] = row * width + start + prompt - 1 + torch.arange(length)
    return input_ids, position_ids, None


def _one_row(rollouts: Sequence[Rollout], scored: Tensor) -> tuple[Tensor, Tensor, SharedPrompts]:
    """Input and position ids (1, N) with each prompt once, and what attends to what."""
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    families: list[Family] = []
    end = 0
    for numbers in _by_prompt(rollouts):
        prompt_ids = rollouts[numbers[0]].prompt_ids
        prompt = len(prompt_ids)
        families.append(Family(start=end, prompt=prompt, completions=tuple(rollouts[b].length for b in numbers)))
        ids.append(prompt_ids)
        positions.append(torch.arange(prompt))
        last_of_prompt = end + prompt - 1
        end += prompt
        for b in numbers:
            rollout = rollouts[b]
            ids.append(rollout.completion_ids)
            positions.append(torch.arange(prompt, prompt + rollout.length))
            # its first token is predicted by the end of the prompt, every other one by the token before
            predicted_by = torch.arange(end - 1, end + rollout.length - 1)
            predicted_by[:1] = last_of_prompt
            scored[b, : rollout.length] = predicted_by
            end += rollout.length
    return torch.cat(ids)[None], torch.cat(positions)[None], SharedPrompts(families)


def _pad(values: Sequence[Tensor | None], longest: int) -> Tensor | None:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    padded = torch.zeros(len(known), longest, dtype=torch.float32)  # said outright: bf16-true changes the default
    for b, value in enumerate(known):
        padded[b, : len(value)] = value
    return padded
