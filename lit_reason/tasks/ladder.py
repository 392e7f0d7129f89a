"""How far a curriculum has climbed, by the accuracy of the last training completions at its present level."""

from __future__ import annotations

from collections import deque
from typing import Any

from lit_reason.tasks.generators import Generator
from lit_reason.types import UserError


class Ladder:
    """The level a generator's curriculum has reached.

    Args:
        who: names the generator in errors.
        advance_at: accuracy in (0, 1] that raises the level; None never does.
        window: completions at a level that the accuracy is taken over.

    Attributes:
        level: steps above the declared difficulty.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(self, who: str, *, advance_at: float | None, window: int) -> None:
        if advance_at is not None and (
            isinstance(advance_at, bool) or not isinstance(advance_at, int | float) or not 0 < advance_at <= 1
        ):
            raise UserError(f"{who}: curriculum.advance_at must be an accuracy above 0 and up to 1, got {advance_at!r}")
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise UserError(f"{who}: curriculum.window must be 1 completion or more, got {window!r}")
        self.advance_at = advance_at
        self.level = 0
        self.recent: deque[bool] = deque(maxlen=window)

    def see(self, level: int, *, solved: bool, generator: Generator) -> None:
        """Count one completion, and climb when the window is full and its accuracy reaches `advance_at`."""
        if self.advance_at is None or level != self.level:  # a level is judged by its own problems
            return
        self.recent.append(solved)
        full = len(self.recent) == self.recent.maxlen
        if full and sum(self.recent) / len(self.recent) >= self.advance_at and generator.has_level(self.level + 1):
            self.level += 1
            self.recent.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level = state["level"]
        self.recent = deque(state["recent"], maxlen=self.recent.maxlen)
