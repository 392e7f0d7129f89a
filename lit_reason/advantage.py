"""Stage 4: from rewards to advantages, one completion compared with the others of its group.

Definitions: GRPO (arXiv 2402.03300) standardises within the group, Dr. GRPO (2503.20783) only subtracts the mean, RLOO
(2402.14740) subtracts the mean of the *other* completions, REINFORCE++ (2501.03262) whitens over the whole phase, GDPO
(2601.05242) standardises each reward before it sums them. Rows with no reward leave the baseline and learn nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Advantage = Literal["group", "batch", "none", "rloo", "reinforce++", "normalize_then_sum"]

STD_FLOOR = 1e-4
"""Added to the standard deviation, as in the reference implementations."""

VARIANCE_FLOOR = 1e-8
"""Added to the variance by whitening, as in PPO."""


def std(values: Tensor) -> float:
    """The standard deviation of values (N,), with ddof 1; 0 for less than two."""
    return float(values.std(correction=1)) if len(values) > 1 else 0.0


Spread = Callable[[Tensor], float]


def advantages(
    rewards: Sequence[float | None], groups: Sequence[int], kind: Advantage = "group", spread: Spread = std
) -> Tensor:
    """Advantages (N,) float32 of N completions by their reward.

    Args:
        rewards: one per completion; None excludes the row.
        groups: completions with the same number answer the same problem.
        kind: `group`: (R - mean) / (std + 1e-4), std with ddof 1 over the group; `batch`: the same mean, std over all
            rows; `none`: R - mean; `rloo`: R - mean of the others; `reinforce++`: R - mean, divided by its own std over
            all rows, as sqrt(variance + 1e-8). `normalize_then_sum` is `normalized_sum`'s.
        spread: the std of float64 values, together with those that other ranks hold; called exactly once by `batch`
            and `reinforce++`, also without rows, and by no other kind.

    Returns:
        Exactly 0 for excluded rows, for groups whose rewards are all equal, and for rows alone in their group.
    """
    value, valid = _columns(rewards)
    result = torch.zeros_like(value)
    over_all = spread(value[valid]) if kind == "batch" else 0.0
    for rows in _groups(groups, valid):
        mine = value[rows]
        n = len(mine)
        if n < 2 or bool((mine == mine[0]).all()):
            continue
        centred = mine - mine.mean()
        if kind == "group":
            centred = centred / (std(mine) + STD_FLOOR)
        elif kind == "batch":
            centred = centred / (over_all + STD_FLOOR)
        elif kind == "rloo":
            centred = centred * (n / (n - 1))
        result[rows] = centred
    if kind == "reinforce++":  # centred group by group, so that the mean over all is 0 already
        result = result / math.sqrt(spread(result[valid]) ** 2 + VARIANCE_FLOOR)
    return result.float()


def normalized_sum(
    rewards: Sequence[Sequence[float | None]],
    weights: Sequence[float],
    groups: Sequence[int],
    spread: Spread = std,
) -> Tensor:
    """Advantages (N,) float32 by several rewards, each of which counts by how it orders a group, not by its scale.

    Each reward is standardised in its group, (r - mean) / (std + 1e-4); their weighted sum is divided by its std over
    all rows + 1e-4. Without this second division advantages would grow with the number of rewards and shrink where
    they contradict each other, and with them the steps of the optimizer; with it they are of size 1 over the phase,
    as those of `batch` are, and only the ratios of the weights matter. Their mean over all is 0 without being
    subtracted, and so a group of equals stays exactly 0.

    Args:
        rewards: (K, N), by reward and completion; None where one does not apply.
        weights: (K,); a reward of weight 0 is a metric and plays no part.
        groups: as for `advantages`.
        spread: likewise; called exactly once.

    Returns:
        As `advantages`; a row is excluded when no reward applies to it.
    """
    total = torch.zeros(len(groups), dtype=torch.float64)
    applies = torch.zeros(len(groups), dtype=torch.bool)
    for row, weight in zip(rewards, weights, strict=True):
        if weight:
            total += weight * advantages(row, groups, "group").double()
            applies |= _columns(row)[1]
    return (total / (spread(total[applies]) + STD_FLOOR)).float()


def _columns(rewards: Sequence[float | None]) -> tuple[Tensor, Tensor]:
    """Values and which of them there are."""
    # float64: the mean of equal rewards is then that reward to the last bit far more often; the rest is caught above
    value = torch.tensor([0.0 if r is None else r for r in rewards], dtype=torch.float64)
    return value, torch.tensor([r is not None for r in rewards], dtype=torch.bool)


def _groups(groups: Sequence[int], valid: Tensor) -> Iterator[Tensor]:
    """The rows of each group that count."""
    _, group = torch.unique(torch.tensor(groups, dtype=torch.int64), return_inverse=True)
    for g in range(int(group.max()) + 1 if len(group) else 0):
        yield valid & (group == g)
