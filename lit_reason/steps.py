"""Stage 4 for rewards that judge steps: from scores of steps to advantages of tokens.

Process supervision of GRPO (arXiv 2402.03300, section 4.1.3): the scores of all steps of a group are standardised
together, and a token's advantage is the sum of those of the steps that end at or after it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_reason.advantage import Advantage, advantages
from lit_reason.reward import WeightedReward
from lit_reason.types import Rollout


def outcomes(rollouts: Sequence[Rollout], name: str) -> list[float | None]:
    """What one reward gave to each rollout as a whole: None where it gave nothing, or scored steps."""
    return [None if name in rollout.steps else rollout.rewards[name] for rollout in rollouts]


def weighted_sums(rewards: Sequence[Sequence[float | None]], weights: Sequence[float]) -> list[float | None]:
    """The weighted sum of the rewards (K, N) of each rollout, None where there is none of any weight."""
    sums: list[float | None] = []
    for row in zip(*rewards, strict=True):
        parts = [weight * value for weight, value in zip(weights, row, strict=True) if weight and value is not None]
        sums.append(math.fsum(parts) if parts else None)
    return sums


def credit_steps(
    rollouts: Sequence[Rollout], weighted: WeightedReward, decode: Callable[[Tensor], str], kind: Advantage = "group"
) -> None:
    """Add to the advantages, token by token, what the steps that one reward has scored are worth.

    Args:
        rollouts: whole groups; those whose steps the reward did not score stay as they are.
        weighted: the reward and its weight.
        decode: how the policy reads token ids; the last token's end may be left out.
        kind: `none` only subtracts the mean of the group's steps and `rloo` the mean of the others; all else
            standardises over the group's steps as `group` does.
    """
    scored = [rollout for rollout in rollouts if weighted.weight and weighted.name in rollout.steps]
    steps = [rollout.steps[weighted.name] for rollout in scored]
    groups = [rollout.group for rollout, mine in zip(scored, steps, strict=True) for _ in mine]
    scores = [score for mine in steps for _, score in mine]
    worth = iter(advantages(scores, groups, kind if kind in {"none", "rloo"} else "group").tolist())
    for rollout, mine in zip(scored, steps, strict=True):
        gained = torch.zeros(rollout.length)
        for end in end_tokens(rollout.completion_ids, rollout.text, [end for end, _ in mine], decode):
            gained[:end] += next(worth)
        rollout.advantage = rollout.advantage + weighted.weight * gained


def end_tokens(ids: Tensor, text: str, ends: Sequence[int], decode: Callable[[Tensor], str]) -> list[int]:
    """How many tokens it takes to spell the first `end` characters of a completion.

    Only the policy's tokenizer knows: a token may hold several characters, or a few of a character's bytes. A token
    that ends one step and begins the next counts for the one it ends; what follows the text, such as the end of the
    turn, for the step that ends with it. Exact wherever the first tokens of a text decode to the beginning of what all
    of them decode to, as with byte-level BPE and with SentencePiece.

    Args:
        ids: (T,) the completion's tokens.
        text: what they decode to.
        ends: in characters, ascending.
        decode: ids -> text.
    """
    found: list[int] = []
    anchor = start = 0  # a token and a character between which nothing is lost, so that long texts are not read again
    for end in ends:

        def spells(count: int, anchor: int = anchor, wanted: str = text[start:end]) -> bool:
            piece = decode(ids[anchor:count])
            # a character that lacks bytes reads as U+FFFD, and so may one that is really there: look one further
            return piece.startswith(wanted) and (wanted[-1] != "\ufffd" or len(piece) > len(wanted))

        low, width = found[-1] if found else 0, end - start
        while low + width < len(ids) and not spells(low + width):
            width *= 2
        among = range(low, min(low + width, len(ids)))
        count = len(ids) if end >= len(text) else low + bisect_left(among, x=True, key=spells)
        found.append(count)
        after = decode(ids[count : count + 8]).rstrip("\ufffd")
        if decode(ids[anchor:count]) == text[start:end] and text.startswith(after, end):
            anchor, start = count, end
    return found
