"""Stage 3: rewards judge rollouts, by name; their weighted sum is the rollout's reward. How is `scoring.py`'s part."""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Awaitable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lit_reason.plugins import RewardRef
from lit_reason.types import Problem, Rollout, UserError

FIGURES = frozenset({"seconds", "seconds_per_item", "cached"})
"""What is logged of every reward beside its statuses, which therefore cannot be called so."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Judgement:
    """What a reward may return instead of a number, to say how it came about.

    Attributes:
        value: the reward, finite; None leaves the row out, as if the reward did not apply to it.
        status: a short word of small letters, digits and underscores, such as "ok", "wrong" or "unparseable_gold"; the
            share of rows with each is logged.
        steps: (where a step ends in characters of the completion's text, its score) each, ascending. GRPO then credits
            tokens with the scores of the steps that end at or after them, see `lit_reason.steps`, instead of the
            completion with `value`, which is still logged.

    Raises:
        ValueError: the status is no such word, or the name of a figure that is logged anyway; or a step ends no later
            than the one before or has a score that is not finite.
    """

    value: float | None
    status: str = "ok"
    steps: Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.status, str) or not re.fullmatch(r"[a-z0-9_]{1,32}", self.status):
            raise ValueError(f"status must be a short word such as 'wrong', got {str(self.status)[:80]!r}")
        if self.status in FIGURES:
            raise ValueError(f"status cannot be {self.status!r}, which is logged of every reward")
        last = 0
        for end, score in self.steps:
            if end <= last or not math.isfinite(score):
                raise ValueError(f"steps must be (end, finite score) with ascending ends, got ({end}, {score})")
            last = end


Verdict = float | Judgement | None
"""What a reward says of one rollout."""


class Reward:
    """Base class of reward plugins (entry-point group `lit_reason.rewards`).

    Implement `score` for a reward that looks at one rollout, or `score_group` for one that compares the rollouts of
    one problem; either may be `async`, and then runs for all rows of a phase at once. Options are typed keyword
    arguments of `__init__`; `weight` is not among them, the trainer keeps it. A reward must never raise on what a model
    wrote: return 0.0 for nonsense, None for "does not apply here".

    An item is one rollout, or one group for a reward that overrides `score_group`.

    Attributes:
        default_weight: what the reward counts for when the configuration does not say; 0 for a metric.
        deadline: seconds that judging one item may take. With a deadline items are judged in worker processes; the
            clock starts when a worker begins with the item, and on expiry the worker is killed and replaced and the
            item becomes `Judgement(value=on_timeout, status="timeout")`. None never ends, and may run in the process
            that trains.
        on_timeout: the reward of an item that was not judged in time; None leaves its rows out.
        memory_mb: MiB of address space that judging an item may take beyond what the worker holds when it begins with
            it; such items too are judged in worker processes. None is no bound. On Linux; elsewhere there is none.
    """

    default_weight: ClassVar[float] = 1.0
    deadline: float | None = None
    on_timeout: float | None = None
    memory_mb: int | None = None

    def setup(self, problem: Problem | None) -> None:
        """Called once before a fit, in the process that trains, and before a model loads: what can be told now, should.

        Args:
            problem: the first to train on; None where that is not known.

        Raises:
            UserError: the reward cannot judge such problems, or lacks what it needs.
        """

    def score(self, rollout: Rollout) -> Verdict | Awaitable[Verdict]:
        """The reward of one rollout, finite, or None when it does not apply to this row."""
        raise TypeError(f"{type(self).__name__} implements neither 'score' nor 'score_group'")

    def score_group(
        self, rollouts: Sequence[Rollout]
    ) -> Sequence[Verdict | Awaitable[Verdict]] | Awaitable[Sequence[Verdict]]:
        """Rewards of all rollouts of one problem, in their order."""
        return [self.score(rollout) for rollout in rollouts]

    def quick(self, rollout: Rollout) -> Judgement | None:
        """A judgement that takes next to no time, tried first, in the calling process; None when it takes more.

        For rewards that implement `score`.
        """
        return None

    def cache_key(self, rollout: Rollout) -> Hashable | None:
        """What a judgement depends on, such as `(gold, answer)`: rollouts with equal keys are judged once.

        Text, bytes, numbers, or tuples of these; None for what must not be remembered. For rewards that implement
        `score`.
        """
        return None


@dataclass(kw_only=True, slots=True, frozen=True)
class WeightedReward:
    """A reward under the name and with the weight the configuration gives it."""

    name: str
    weight: float
    reward: Reward

    def __post_init__(self) -> None:
        deadline, on_timeout, memory_mb = self.reward.deadline, self.reward.on_timeout, self.reward.memory_mb
        for option, good, expected in (
            (
                "deadline",
                deadline is None or 0 < deadline <= 1e6,
                "seconds above 0 and at most 1e6, or None for no end",
            ),
            ("on_timeout", on_timeout is None or math.isfinite(on_timeout), "a finite number or None"),
            ("memory_mb", memory_mb is None or 0 < memory_mb <= 2**40, "MiB above 0 and at most 2**40, or None"),
        ):
            if not good:
                raise UserError(
                    f"reward '{self.name}': {option} must be {expected}, got {getattr(self.reward, option)}"
                )

    @property
    def grouped(self) -> bool:
        """Whether it judges whole groups."""
        return type(self.reward).score_group is not Reward.score_group

    @property
    def asynchronous(self) -> bool:
        """Whether judging waits for something else, so that many items can wait at once."""
        return inspect.iscoroutinefunction(self.reward.score_group if self.grouped else self.reward.score)

    @property
    def isolated(self) -> bool:
        """Whether it must be judged in a process that can be ended."""
        return self.reward.deadline is not None or self.reward.memory_mb is not None


def weighted_rewards(references: Sequence[RewardRef]) -> list[WeightedReward]:
    """Build the rewards a configuration names.

    Raises:
        UserError: there is none, none has a weight, two share a name, or one cannot be built.
    """
    built = [
        WeightedReward(name=ref.name, weight=ref.weight, reward=ref.build()) for ref in map(RewardRef.of, references)
    ]
    if not built:
        raise UserError("rewards is empty: name at least one, such as 'accuracy'")
    if not any(w.weight for w in built):
        raise UserError("rewards all have weight 0, as metrics have: give one that is to be learnt from another weight")
    twice = [name for name, count in Counter(w.name for w in built).items() if count > 1]
    if twice:
        raise UserError(f"rewards names '{twice[0]}' more than once; each reward may appear once, with its weight")
    return built
