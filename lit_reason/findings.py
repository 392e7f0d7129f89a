"""One item judged: a reward is called, and its answer checked. Whatever goes wrong becomes data."""

from __future__ import annotations

import asyncio
import inspect
import math
import signal
import time
import traceback
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from lit_reason.registry import cause
from lit_reason.reward import Judgement, WeightedReward
from lit_reason.types import Rollout, Stopped, UserError

TIMEOUT, FAILED, NONFINITE = "timeout", "failed", "nonfinite"
"""Statuses of items that ended without a judgement that could be kept."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Finding:
    """What came of judging one rollout.

    Attributes:
        judgement: what the reward said; a row left out where it said nothing that can be used.
        error: what went wrong, as one line; None when nothing did.
        fatal: whether the error stops the run even where failures are excluded.
        seconds: spent on it; a group's are shared out to its rollouts.
    """

    judgement: Judgement
    error: str | None = None
    fatal: bool = False
    seconds: float = 0.0

    @property
    def lasting(self) -> bool:
        """Whether judging again would give the same."""
        return self.error is None and self.judgement.status not in {TIMEOUT, FAILED, NONFINITE}


def failure(error: str, *, fatal: bool = False, seconds: float = 0.0) -> Finding:
    """A row that could not be judged."""
    return Finding(judgement=Judgement(value=None, status=FAILED), error=error, fatal=fatal, seconds=seconds)


Answer = list[Finding] | Coroutine[Any, Any, list[Finding]]


def judge(weighted: WeightedReward, rollouts: Sequence[Rollout]) -> Answer:
    """Findings of one item, of one rollout or of a group if the reward judges groups; or something that awaits them."""
    start = time.perf_counter()

    def ask() -> Answer:
        if not weighted.grouped:
            given: Any = [weighted.reward.score(rollouts[0])]
        else:
            given = weighted.reward.score_group(tuple(rollouts))
        if not inspect.isawaitable(given):
            given = _values(given, rollouts)
        if inspect.isawaitable(given) or any(map(inspect.isawaitable, given)):
            return _awaited(weighted, rollouts, given, start)
        return _checked(weighted, rollouts, given, start)

    return _guarded(weighted, rollouts, ask, start)


T = TypeVar("T")


def _guarded(
    weighted: WeightedReward, rollouts: Sequence[Rollout], ask: Callable[[], T], start: float
) -> T | list[Finding]:
    """What calling a reward gives, or what came of whatever it raises; a signal to the run is not its doing."""
    try:
        return ask()
    except Stopped:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            raise
        return _raised(weighted, rollouts, error, start)


async def _awaited(weighted: WeightedReward, rollouts: Sequence[Rollout], given: Any, start: float) -> list[Finding]:  # noqa: ANN401 - whatever a reward returns
    values, error = (given, None) if isinstance(given, list) else await _caught(given, rollouts)
    if error is None:
        outcomes = await asyncio.gather(*map(_caught, values))
        values = [value for value, _ in outcomes]
        error = next((error for _, error in outcomes if error is not None), None)
    return _checked(weighted, rollouts, values, start) if error is None else _raised(weighted, rollouts, error, start)


async def _caught(given: Any, rollouts: Sequence[Rollout] | None = None) -> tuple[Any, BaseException | None]:  # noqa: ANN401 - as above
    """What something comes to if it is awaited, a group's values as a list; or what it raises.

    In an event loop even Ctrl-C is a reward's own doing, and would end the loop.
    """
    try:
        value = await given if inspect.isawaitable(given) else given
        return (value if rollouts is None else _values(value, rollouts)), None
    except BaseException as error:  # noqa: BLE001 - see above
        return None, error


def quick(weighted: WeightedReward, rollout: Rollout) -> Finding | None:
    """What a reward can say of a rollout at once; None when that is nothing."""
    start = time.perf_counter()

    def ask() -> list[Finding] | None:
        judgement = weighted.reward.quick(rollout)
        return None if judgement is None else _checked(weighted, [rollout], [judgement], start)

    found = _guarded(weighted, [rollout], ask, start)
    return found[0] if found else None


def cache_key(weighted: WeightedReward, rollout: Rollout) -> Hashable | Finding:
    """What the judgement of a rollout is remembered by, None for not at all; a finding when that goes wrong."""

    def ask() -> Hashable | list[Finding]:
        key = weighted.reward.cache_key(rollout)
        if _plain(key):
            return key
        wrong = f"gave the cache_key {_shown(key)}; expected text, bytes, numbers, or tuples of these"
        return [failure(f"reward '{weighted.name}' {wrong}")]

    found = _guarded(weighted, [rollout], ask, time.perf_counter())
    return found[0] if isinstance(found, list) else found


def _plain(key: object) -> bool:
    """Whether comparing it cannot fail, nor run code of anybody's."""
    if type(key) is tuple:
        return all(map(_plain, key))
    return key is None or type(key) in (str, bytes, bool, int, float)


def _values(given: Any, rollouts: Sequence[Rollout]) -> list[Any]:  # noqa: ANN401 - as above
    """One more than expected is enough to see that there are too many, also of an endless generator."""
    return list(islice(given, len(rollouts) + 1))


def _checked(
    weighted: WeightedReward, rollouts: Sequence[Rollout], values: Sequence[Any], start: float
) -> list[Finding]:
    seconds = (time.perf_counter() - start) / len(rollouts)
    if len(values) == len(rollouts):
        return [_finding(weighted.name, r, v, seconds) for r, v in zip(rollouts, values, strict=True)]
    error = f"returned {len(values)} values for {len(rollouts)} completions; expected one each"
    return [failure(f"reward '{weighted.name}' {error}", seconds=seconds)] * len(rollouts)


def _finding(name: str, rollout: Rollout, given: Any, seconds: float) -> Finding:  # noqa: ANN401 - as above
    judgement = given if isinstance(given, Judgement) else Judgement(value=given)
    value: Any = judgement.value
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text is no number")  # noqa: TRY301 - though float() would read it as one
        number = None if value is None else float(value)
    except Exception:  # noqa: BLE001 - the value brings a `__float__` of its own
        wrong = f"returned {_shown(value)} of type {type(value).__name__}; expected a number or None"
        return failure(f"reward '{name}' {wrong}", seconds=seconds)
    if number is None or math.isfinite(number):
        return Finding(judgement=replace(judgement, value=number), seconds=seconds)
    return Finding(
        judgement=Judgement(value=None, status=NONFINITE),
        error=f"reward '{name}' returned {number} for problem '{rollout.problem.id}'; expected a finite number or None",
        seconds=seconds,
    )


def _shown(value: Any) -> str:  # noqa: ANN401 - as above
    """A value as part of one line."""
    try:
        return " ".join(repr(value).split())[:200]
    except BaseException:  # noqa: BLE001 - as above
        return "a value"


def _raised(weighted: WeightedReward, rollouts: Sequence[Rollout], error: BaseException, start: float) -> list[Finding]:
    seconds = (time.perf_counter() - start) / len(rollouts)
    if isinstance(error, UserError):  # it says what a person should mend
        return [failure(str(error), fatal=True, seconds=seconds)] * len(rollouts)
    memory = ""
    if isinstance(error, MemoryError):
        traceback.clear_frames(error.__traceback__)  # lets go of what filled the memory
        memory = f", memory_mb is {weighted.reward.memory_mb}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename}, line {frame.lineno}{memory}"
    return [failure(f"reward '{weighted.name}' raised {cause(error)} ({where})", seconds=seconds)] * len(rollouts)
