"""Stage 3: rewards judge rollouts, by name; their weighted sum is the rollout's reward."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import traceback
from collections import Counter
from collections.abc import Awaitable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from lit_reason.plugins import RewardRef
from lit_reason.types import Rollout, UserError


@dataclass(kw_only=True, slots=True, frozen=True)
class Judgement:
    """What a reward may return instead of a number, to say how it came about.

    Attributes:
        value: the reward, finite; None leaves the row out, as if the reward did not apply to it.
        status: one short word, such as "ok", "wrong" or "unparseable_gold"; the share of rows with each is logged.
        steps: (where a step ends in characters of the completion's text, its score) each, ascending. GRPO then credits
            tokens with the scores of the steps that end at or after them, see `lit_reason.steps`, instead of the
            completion with `value`, which is still logged.

    Raises:
        ValueError: a step ends no later than the one before, or has a score that is not finite.
    """

    value: float | None
    status: str = "ok"
    steps: Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
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
        deadline: seconds that judging one item may take. With a deadline items are judged in worker processes; the
            clock starts when a worker begins with the item, and on expiry the worker is killed and replaced and the
            item becomes `Judgement(value=on_timeout, status="timeout")`. None never ends, and may run in the process
            that trains.
        on_timeout: the reward of an item that was not judged in time; None leaves its rows out.
        memory_mb: MiB of address space that judging may take beyond what the worker has when it starts; a reward with a
            bound is judged in worker processes. None is no bound. Linux only, elsewhere there is none.
    """

    deadline: float | None = None
    on_timeout: float | None = None
    memory_mb: int | None = None

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

        None for what must not be remembered. For rewards that implement `score`.
        """
        return None


@dataclass(kw_only=True, slots=True, frozen=True)
class WeightedReward:
    """A reward under the name and with the weight the configuration gives it."""

    name: str
    weight: float
    reward: Reward


def score_rollouts(
    rollouts: Sequence[Rollout],
    rewards: Sequence[WeightedReward],
    nonfinite: Literal["error", "mask"] = "error",
    statuses: Counter[tuple[str, str]] | None = None,
) -> Counter[str]:
    """Fill `rewards` and `reward` of every rollout, group by group.

    Args:
        rollouts: rollouts of one group must carry the same `group` number, in any order.
        rewards: what judges them; a rollout's reward is the weighted sum of those not None, or None when all are.
        nonfinite: what NaN or an infinity does: stop with an error, or turn into None and be counted.
        statuses: where rows are counted by (name of the reward, status).

    Returns:
        How many values of each reward were masked for not being finite.

    Raises:
        UserError: a reward raised, returned something that is no number, or the wrong number of values.
    """
    groups: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group, []).append(rollout)
        rollout.rewards, rollout.steps = {}, {}
    masked: Counter[str] = Counter()
    for weighted in rewards:
        for group in groups.values():
            for rollout, judgement in zip(group, _judge(weighted, group), strict=True):
                value = judgement.value
                if statuses is not None:
                    statuses[weighted.name, judgement.status] += 1
                if value is not None and not math.isfinite(value):
                    if nonfinite == "error":
                        raise UserError(
                            f"reward '{weighted.name}' returned {value} for problem '{rollout.problem.id}'; expected a "
                            "finite number or None. Mend the reward, or set nonfinite: mask to leave such rows out"
                        )
                    masked[weighted.name] += 1
                    value = None  # from here on it is like any reward that does not apply
                rollout.rewards[weighted.name] = value
                if judgement.steps and value is not None:
                    rollout.steps[weighted.name] = judgement.steps
    for rollout in rollouts:
        parts = [w.weight * v for w in rewards if (v := rollout.rewards[w.name]) is not None]
        rollout.reward = math.fsum(parts) if parts else None
    return masked


def _judge(weighted: WeightedReward, group: list[Rollout]) -> list[Judgement]:
    """One reward on one group, its answer checked."""
    name = weighted.name
    try:
        # one more than expected is enough to see that there are too many, also of an endless generator
        values = list(islice(_settled(weighted.reward.score_group(tuple(group))), len(group) + 1))
        values = [_settled(value) for value in values]
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}, line {frame.lineno}"
        raise UserError(f"reward '{name}' raised {type(error).__name__}: {error} ({where})") from error
    if len(values) != len(group):
        raise UserError(
            f"reward '{name}' returned {len(values)} values for {len(group)} completions; expected one each"
        )
    checked: list[Judgement] = []
    for given in values:
        judgement = given if isinstance(given, Judgement) else Judgement(value=given)
        value = judgement.value
        try:
            if isinstance(value, str | bytes):
                raise TypeError("text is no number")  # noqa: TRY301 - though float() would read it as one
            checked.append(replace(judgement, value=None if value is None else float(value)))
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"reward '{name}' returned {value!r} of type {type(value).__name__}; expected a number or None"
            ) from error
    return checked


def _settled(answer: Any) -> Any:  # noqa: ANN401 - whatever a reward returns
    """What an awaitable comes to, in an event loop in a thread of its own; anything else as it is."""
    if not inspect.isawaitable(answer):
        return answer
    results: list[Any] = []
    errors: list[BaseException] = []

    async def wait() -> None:
        try:
            results.append(await answer)
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            errors.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(wait()))
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def weighted_rewards(references: Sequence[RewardRef]) -> list[WeightedReward]:
    """Build the rewards a configuration names.

    Raises:
        UserError: there is none, two share a name, or one cannot be built.
    """
    built = [
        WeightedReward(name=ref.name, weight=ref.weight, reward=ref.build()) for ref in map(RewardRef.of, references)
    ]
    if not built:
        raise UserError("rewards is empty: name at least one, such as 'accuracy'")
    twice = [name for name, count in Counter(w.name for w in built).items() if count > 1]
    if twice:
        raise UserError(f"rewards names '{twice[0]}' more than once; each reward may appear once, with its weight")
    return built
