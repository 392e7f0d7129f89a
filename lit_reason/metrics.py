"""Evaluation: how often the policy is right, with the interval that number deserves.

One greedy completion a problem gives accuracy with a Wilson interval; several sampled ones give avg@n with a bootstrap
interval over problems, pass@k and maj@n. Everything is a torchmetrics `Metric`, so that ranks gather and Lightning
resets it, and nothing depends on the order in which problems arrive.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_reason.answer import extract_answer
from lit_reason.rewards.format import Format
from lit_reason.types import Problem, Rollout

_Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal
_RESAMPLES = 2000  # enough that the 2.5 % quantile itself moves by well under a tenth of the interval


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a rate, for one completion a problem.

    Args:
        correct: how many are right.
        n: how many there are, at least one.

    Returns:
        Lower and upper end, within [0, 1] and never of zero width, unlike the normal approximation's.
    """
    rate, z2 = correct / n, _Z95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(per_problem_means: Sequence[float] | NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over problems, for several completions a problem.

    Completions of one problem are not independent, so problems are what is drawn again. Drawing how often each distinct
    value occurs is the same as drawing problems, and does not depend on their order.

    Args:
        per_problem_means: the mean of each problem, at least one.
        seed: of the resampling; the same input and seed give the same interval.
    """
    values, counts = np.unique(np.asarray(per_problem_means, dtype=np.float64), return_counts=True)
    n = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=_RESAMPLES)
    low, high = np.quantile(draws @ values / n, [0.025, 0.975])
    return float(low), float(high)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k completions is right, given c right ones among n (arXiv 2107.03374).

    1 - C(n - c, k) / C(n, k), as a product so that no factorial overflows.
    """
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def majority_answer(answers: Sequence[str | None]) -> str | None:
    """The answer most completions agree on, ties by first seen; completions without an answer have no vote."""
    votes = Counter(answer.strip() for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None  # most_common keeps the order of first sight among equals


class ReasoningMetrics(Metric):
    """Accuracy, format, truncation and length over a set of problems.

    Each problem counts once, however often a distributed sampler repeats it to make the ranks' shares equal: problems
    with an `id` are told apart by task and id, those without are all taken as different.

    Args:
        bootstrap_seed: of the resampling behind the intervals of sampled accuracy.
    """

    full_state_update = False
    greedy: list[Tensor]
    sampled: list[Tensor]

    def __init__(self, bootstrap_seed: int = 0) -> None:
        super().__init__()
        self.bootstrap_seed = bootstrap_seed
        self.format = Format(strict=True)
        # Flat float32 lists of rows. A rank that saw nothing joins the gather with an empty flat float32 tensor, which
        # fits no other shape or type.
        self.add_state("greedy", default=[], dist_reduce_fx="cat")
        self.add_state("sampled", default=[], dist_reduce_fx="cat")

    def update(self, greedy: Sequence[Rollout], sampled: Sequence[Sequence[Rollout]] = ()) -> None:
        """Take in completions of some problems.

        Args:
            greedy: one greedy completion a problem; gives accuracy, score, format, truncated and length.
            sampled: several sampled completions a problem, a sequence for each; gives sampled accuracy, pass@k, maj@n.
        """
        for rollout in greedy:
            score = rollout.problem.score(extract_answer(rollout.text))
            row = [score == 1.0, score, self.format.score(rollout), rollout.finish_reason == "length", rollout.length]
            self._append(self.greedy, rollout.problem, row)
        for group in sampled:
            problem = group[0].problem
            answers = [extract_answer(rollout.text) for rollout in group]
            correct = sum(problem.score(answer) == 1.0 for answer in answers)
            majority = problem.score(majority_answer(answers)) == 1.0
            self._append(self.sampled, problem, [len(group), correct, majority])

    def compute(self) -> dict[str, float]:
        """All metrics there is data for, by name; see the module's docstring. Empty before the first update."""
        result: dict[str, float] = {}
        greedy, sampled = _rows(self.greedy, width=5), _rows(self.sampled, width=3)
        if len(greedy):
            names = ("accuracy", "score", "format", "truncated", "length")
            result.update(zip(names, greedy.mean(axis=0).tolist(), strict=True))
            low, high = wilson_interval(float(greedy[:, 0].sum()), len(greedy))
            result |= {"accuracy_low": low, "accuracy_high": high}
        if len(sampled):
            result.update(self._sampled_metrics(sampled))
        if result:
            result["problems"] = float(max(len(greedy), len(sampled)))
        return result

    def _sampled_metrics(self, rows: NDArray[np.float64]) -> dict[str, float]:
        n, correct, majority = rows.T
        low, high = bootstrap_interval(correct / n, self.bootstrap_seed)
        result = {
            "sampled_accuracy": float((correct / n).mean()),
            "sampled_accuracy_low": low,
            "sampled_accuracy_high": high,
        }
        k, fewest = 1, int(n.min())  # a k that some problem has too few samples for would be a mean over other problems
        while k <= fewest:
            passed = [pass_at_k(int(of), int(right), k) for of, right in zip(n, correct, strict=True)]
            result[f"pass@{k}"] = math.fsum(passed) / len(passed)
            k *= 2
        if fewest == int(n.max()):
            result[f"maj@{fewest}"] = float(majority.mean())
        return result

    def _append(self, state: list[Tensor], problem: Problem, row: Sequence[float]) -> None:
        state.append(torch.tensor([*_identity(problem), *map(float, row)], dtype=torch.float32, device=self.device))


def _identity(problem: Problem) -> tuple[float, float]:
    """48 bits that tell problems apart, as two numbers float32 holds exactly; (-1, -1) for a problem without an id."""
    if not problem.id:
        return -1.0, -1.0
    digest = hashlib.sha256(f"{problem.task}\0{problem.id}".encode()).digest()
    return float(int.from_bytes(digest[:3], "big")), float(int.from_bytes(digest[3:6], "big"))


def _rows(state: list[Tensor] | Tensor, width: int) -> NDArray[np.float64]:
    """(N, width) of a flat state, whether still a list or already gathered, each identified problem once."""
    flat = dim_zero_cat(state) if len(state) else torch.zeros(0)
    rows = flat.cpu().double().numpy().reshape(-1, 2 + width)
    # sorted, so that even the rounding of a mean is that of any other order
    rows = rows[np.lexsort(rows.T)]
    named = rows[:, 0] >= 0
    _, first = np.unique(rows[named, :2], axis=0, return_index=True)
    kept: NDArray[np.float64] = np.concatenate([rows[~named], rows[named][first]])[:, 2:]
    return kept
