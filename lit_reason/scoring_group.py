"""What scoring keeps: a group on its way from reward to reward, its items, judgements that are shared, and counts."""

from __future__ import annotations

import copy
import math
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, fields

from lit_reason.findings import Finding
from lit_reason.reward import Judgement, Reward, WeightedReward
from lit_reason.types import Rollout

REMEMBERED = 10_000
"""Judgements of one reward that are kept for rollouts with the same `cache_key`."""

_GIVEN = tuple(f.name for f in fields(Rollout) if f.name not in {"rewards", "reward", "statuses"})


class Group:
    """The rollouts of one problem, which the rewards judge in turn.

    Attributes:
        rollouts: as they were given.
        seen: copies of them, which the rewards see; `rewards` holds what earlier ones gave.
        turn: number of the reward whose turn it is.
        begun: whether it has begun.
        missing: how many of its findings are not there yet.
        findings: of this turn, by rollout.
        judged: those of the turns that are over.
        error: what stopped the group at this turn.
        wanted: whether anybody still waits for it.
        payload: the copies, pickled, once a worker needs them.
    """

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self.rollouts = list(rollouts)
        self.seen = [copy.copy(rollout) for rollout in rollouts]
        for rollout in self.seen:
            rollout.rewards, rollout.reward = {}, None
        self.turn = 0
        self.begun = False
        self.missing = 0
        self.findings: list[Finding | None] = []
        self.judged: list[list[Finding]] = []
        self.error: str | None = None
        self.wanted = True
        self.payload: bytes | None = None

    def is_of(self, rollouts: Sequence[Rollout]) -> bool:
        """Whether these are the rollouts the group was made of, and nothing was put in the place of anything since."""
        return len(rollouts) == len(self.seen) and all(
            getattr(now, name) is getattr(then, name)
            for now, then in zip(rollouts, self.seen, strict=True)
            for name in _GIVEN
        )

    def begin(self) -> None:
        """The turn of the next reward."""
        self.begun, self.missing, self.findings = True, len(self.seen), [None] * len(self.seen)

    def fill(self, row: int, finding: Finding) -> None:
        """One finding of this turn."""
        self.findings[row] = finding
        self.missing -= 1

    def end(self, name: str, findings: list[Finding]) -> None:
        """The turn is over, with these findings."""
        for rollout, finding in zip(self.seen, findings, strict=True):
            rollout.rewards[name] = finding.judgement.value
        self.judged.append(findings)
        self.turn, self.begun = self.turn + 1, False


@dataclass(slots=True, eq=False)
class Item:
    """Rollouts of one group that a reward judges at once, or one after the other.

    Attributes:
        group: whose turn it is with the reward.
        rows: places in the group.
        keys: by row, what the judgement is remembered by; None for not at all.
        findings: by row, once they are there.
        ended: the process that judged it ended.
    """

    group: Group
    rows: list[int]
    keys: list[Hashable | None]
    findings: list[Finding] = field(default_factory=list)
    ended: bool = False

    @property
    def number(self) -> int:
        """Of the reward."""
        return self.group.turn

    def settle(self, findings: list[Finding]) -> Item:
        """The item with its findings."""
        self.findings = findings
        return self


class Memory:
    """Judgements of one reward by key: those that were made, and who waits for those that are being made."""

    def __init__(self) -> None:
        self.known: OrderedDict[Hashable, Finding] = OrderedDict()
        self.waiting: dict[Hashable, list[tuple[Group, int]]] = {}

    def ask(self, key: Hashable, group: Group, row: int) -> bool:
        """Have a row filled in, now or as soon as the judgement is there; False when somebody must make it."""
        if key in self.known:
            self.known.move_to_end(key)
            group.fill(row, self.known[key])
        elif key in self.waiting:
            self.waiting[key].append((group, row))
        else:
            self.waiting[key] = []
            return False
        return True

    def tell(self, key: Hashable, finding: Finding) -> Iterable[Group]:
        """Who waited for a judgement and has it now."""
        if finding.lasting:
            self.known[key] = finding
            if len(self.known) > REMEMBERED:
                self.known.popitem(last=False)
        waited = self.waiting.pop(key)
        for group, row in waited:
            group.fill(row, finding)
        return [group for group, _ in waited]

    def state(self) -> list[tuple[Hashable, float | None, str, list[tuple[int, float]]]]:
        """The judgements by their keys, which are plain data, the least recently used first."""
        return [
            (key, found.judgement.value, found.judgement.status, list(found.judgement.steps))
            for key, found in self.known.items()
        ]

    def load(self, state: Iterable[tuple[Hashable, float | None, str, list[tuple[int, float]]]]) -> None:
        """Know what `state` returned."""
        self.known = OrderedDict(
            (key, Finding(judgement=Judgement(value=value, status=status, steps=steps)))
            for key, value, status, steps in state
        )


@dataclass(kw_only=True, slots=True)
class Tally:
    """What one reward did.

    Attributes:
        statuses: how many rollouts got which status.
        items: judgements made, one for each rollout, or for each group if it judges groups.
        seconds: they took, all together.
        cached: rollouts that got the judgement of another with the same `cache_key`.
        failures: rollouts left out because the reward failed.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    items: int = 0
    seconds: float = 0.0
    cached: int = 0
    failures: int = 0

    def count(self, findings: Sequence[Finding], items: int) -> None:
        """Judgements that were made."""
        self.items += items
        self.seconds += math.fsum(finding.seconds for finding in findings)

    def add(self, other: Tally) -> None:
        """What the same reward did elsewhere."""
        self.statuses.update(other.statuses)
        self.items += other.items
        self.seconds += other.seconds
        self.cached += other.cached
        self.failures += other.failures

    def after(self) -> Tally:
        """A new tally, which remembers the statuses that there are."""
        return Tally(statuses=Counter(dict.fromkeys(self.statuses, 0)))

    def figures(self, weighted: WeightedReward) -> dict[str, float]:
        """What is logged of the reward: time, and shares of rollouts."""
        found = {"seconds": self.seconds}
        if self.items:
            found["seconds_per_item"] = self.seconds / self.items
        rows = self.statuses.total()
        if rows and type(weighted.reward).cache_key is not Reward.cache_key:
            found["cached"] = self.cached / rows
        if rows and set(self.statuses) != {"ok"}:
            found |= {status: count / rows for status, count in sorted(self.statuses.items())}
        return found
