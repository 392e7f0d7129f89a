"""What scoring keeps count of: a group on its way from reward to reward, its items, and judgements that are shared."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, fields

from lit_reason.findings import Finding
from lit_reason.types import Rollout

REMEMBERED = 10_000
"""Judgements of one reward that are kept for rollouts with the same `cache_key`."""

_GIVEN = tuple(f.name for f in fields(Rollout) if f.name not in {"rewards", "reward"})


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
