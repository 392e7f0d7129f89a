"""How a token is drawn: a row of logits, a counter-based random number, and the options of `Sampling`.

The t-th token of a completion is the inverse of its row's distribution function at uniform number t of the completion's
own stream. Nothing else that is random, and no other row, can change it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lit_reason.rollout import Sampling

_GOLDEN, _FIRST, _SECOND = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniforms(keys: Tensor, count: int) -> Tensor:
    """The first `count` numbers of each stream (splitmix64 in counter mode).

    Args:
        keys: (B,) int64, one for each stream.
        count: how many.

    Returns:
        (B, count) float64 in [0, 1).
    """
    z = keys[:, None] + torch.arange(1, count + 1, device=keys.device) * _GOLDEN
    z = (z ^ _shift(z, 30)) * _FIRST  # int64 arithmetic wraps around, as the algorithm wants
    z = (z ^ _shift(z, 27)) * _SECOND
    z = z ^ _shift(z, 31)
    return _shift(z, 11).double() * 2.0**-53


def _shift(z: Tensor, by: int) -> Tensor:
    """Logical shift to the right; the operator would copy the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def draw(
    logits_BV: Tensor,  # noqa: N803 - shape suffix: B rows, V tokens
    uniform_B: Tensor,  # noqa: N803
    sampling: Sampling,
    seen_BV: Tensor | None = None,  # noqa: N803
) -> tuple[Tensor, Tensor]:
    """One token for each row.

    Args:
        logits_BV: (B, V), of any float type.
        uniform_B: (B,) float in [0, 1]; unused when greedy.
        sampling: temperature and what it may drop.
        seen_BV: (B, V) bool, tokens that already occur; needed with a repetition penalty only.

    Returns:
        (B,) int64 tokens and their (B,) float32 log-probabilities at the sampling temperature, before anything was
        dropped or penalised: what the trainer computes for them.
    """
    plain_BV = logits_BV.float()  # noqa: N806
    if sampling.trained_temperature != 1.0:
        plain_BV = plain_BV / sampling.trained_temperature  # noqa: N806
    kept_BV = plain_BV  # noqa: N806
    if seen_BV is not None:
        # the sign of a logit decides, so that the penalty always lowers it; temperature keeps signs
        penalised = torch.where(
            kept_BV > 0, kept_BV / sampling.repetition_penalty, kept_BV * sampling.repetition_penalty
        )
        kept_BV = torch.where(seen_BV, penalised, kept_BV)  # noqa: N806
    if sampling.temperature == 0:
        tokens = kept_BV.argmax(-1)
    else:
        kept_BV = _drop(kept_BV, sampling)  # noqa: N806
        probabilities = kept_BV.softmax(-1)
        total = probabilities.cumsum(-1)
        # below the last value, so that rounding never picks a token past the end, or one that was dropped
        at = torch.minimum(uniform_B.to(total.dtype) * total[:, -1], torch.nextafter(total[:, -1], total.new_zeros(1)))
        tokens = torch.searchsorted(total, at[:, None], right=True).squeeze(-1)
        tokens = tokens.clamp(max=logits_BV.shape[-1] - 1)  # logits that are no numbers; their log-probability says so
        if kept_BV is plain_BV:
            return tokens, probabilities.gather(-1, tokens[:, None]).squeeze(-1).log()
    logprobs = plain_BV.gather(-1, tokens[:, None]).squeeze(-1) - plain_BV.logsumexp(-1)
    return tokens, logprobs


def _drop(logits_BV: Tensor, sampling: Sampling) -> Tensor:  # noqa: N803
    """-inf for the tokens that top-k, top-p and min-p drop, in this order; the most probable one always stays."""
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        kth = logits_BV.topk(sampling.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)  # noqa: N806
    if sampling.top_p < 1:
        ordered, order = logits_BV.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # a token goes when those before it already hold the mass
        beyond = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        logits_BV = logits_BV.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)  # noqa: N806
    if sampling.min_p > 0:
        least = logits_BV.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)  # noqa: N806
    return logits_BV
