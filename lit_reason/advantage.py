"""Stage 4: from rewards to advantages, one completion compared with the others of its group.

Definitions: GRPO (arXiv 2402.03300) standardises within the group, Dr. GRPO (2503.20783) only subtracts the mean, RLOO
(2402.14740) subtracts the mean of the *other* completions. Rows with no reward leave the baseline and learn nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Advantage = Literal["group", "batch", "none", "rloo"]

STD_FLOOR = 1e-4
"""Added to the standard deviation, as in the reference implementations."""


def advantages(
    rewards: Sequence[float | None], groups: Sequence[int], kind: Advantage = "group", spread: float | None = None
) -> Tensor:
    """Advantages (N,) float32 of N completions.

    Args:
        rewards: one per completion; None excludes the row.
        groups: completions with the same number answer the same problem.
        kind: `group`: (R - mean) / (std + 1e-4), std with ddof 1 over the group; `batch`: the same mean, std over all
            rows; `none`: R - mean; `rloo`: R - mean of the others.
        spread: the std that `batch` divides by, where other ranks hold rows too; None takes these rows' own.

    Returns:
        Exactly 0 for excluded rows, for groups whose rewards are all equal, and for rows alone in their group.
    """
    # float64: the mean of equal rewards is then that reward to the last bit far more often; the rest is caught below
    value = torch.tensor([0.0 if r is None else r for r in rewards], dtype=torch.float64)
    valid = torch.tensor([r is not None for r in rewards], dtype=torch.bool)
    _, group = torch.unique(torch.tensor(groups, dtype=torch.int64), return_inverse=True)
    result = torch.zeros_like(value)
    spread_all = _std(value[valid]) if spread is None else spread
    for g in range(int(group.max()) + 1 if len(group) else 0):
        rows = valid & (group == g)
        mine = value[rows]
        n = len(mine)
        if n < 2 or bool((mine == mine[0]).all()):
            continue
        centred = mine - mine.mean()
        if kind == "group":
            centred = centred / (_std(mine) + STD_FLOOR)
        elif kind == "batch":
            centred = centred / (spread_all + STD_FLOOR)
        elif kind == "rloo":
            centred = centred * (n / (n - 1))
        result[rows] = centred
    return result.float()


def _std(values: Tensor) -> Tensor:
    return values.std(correction=1) if len(values) > 1 else values.new_zeros(())
