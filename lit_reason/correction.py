"""Correct the policy gradient for completions that something else than the trained policy sampled.

Another engine holds the same weights and still gives its tokens other probabilities: other kernels, another precision,
weights one update old. So each token is weighted by rho = pi_old / pi_sampler, truncated at a cap (`tis`, truncated
importance sampling, Ionides 2008), or is left out when its ratio is beyond the cap (`mis`, masked importance sampling).
The weight multiplies the policy term before the KL term is added (`PolicyLoss`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_reason.types import UserError

Correction = Literal["tis", "mis", "none"]

LARGEST_LOG_RATIO = 20.0
"""Log ratios are held within this: a token the sampler calls impossible must not turn means into infinity."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Mismatch:
    """How far sampler and policy are apart on one micro-batch, before anything is truncated.

    Attributes:
        tokens: tokens that count.
        ratio: sum of rho over them; near `tokens` where the two agree.
        largest: the largest rho; 0 where no token counts.
        cut: how many the cap changes.
    """

    tokens: Tensor
    ratio: Tensor
    largest: Tensor
    cut: Tensor


def check_correction(correction: Correction, cap: float) -> None:
    """Raises UserError for a cap that would cut off agreement itself."""
    if correction != "none" and cap <= 1:
        raise UserError(f"correction_cap must be above 1, which is the ratio of a sampler like the policy; got {cap}")


def importance_weights(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, correction: Correction, cap: float
) -> tuple[Tensor | None, Mismatch]:
    """What each token's policy term is multiplied by.

    Args:
        old_logprobs: (B, T) under the policy before the phase's first optimizer step, at the sampling temperature.
        sampler_logprobs: (B, T) under whatever sampled, at the sampling temperature.
        mask: (B, T) bool, True on tokens that count.
        correction: `tis`: min(rho, cap). `mis`: rho within [1 / cap, cap], 0 outside. `none` only measures.
        cap: above 1.

    Returns:
        (B, T) float32 weights without gradient, 1 where the mask is False; None for `none`. And the mismatch.
    """
    with torch.no_grad():
        log_ratio = (old_logprobs - sampler_logprobs).float().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        # where, not *: what stands behind the mask may be NaN
        ratio = torch.where(mask, log_ratio, 0.0).exp()
        within = ratio <= cap
        if correction == "mis":
            within &= ratio >= 1 / cap
        mismatch = Mismatch(
            tokens=mask.sum(),
            ratio=torch.where(mask, ratio, 0.0).sum(),
            largest=torch.where(mask, ratio, 0.0).amax(),
            cut=(mask & ~within).sum(),
        )
        if correction == "none":
            return None, mismatch
        return (ratio.clamp(max=cap) if correction == "tis" else torch.where(within, ratio, 0.0)), mismatch
