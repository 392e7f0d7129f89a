"""`overlong`: a penalty for coming near the limit of a completion."""

from __future__ import annotations

from lit_reason.rewards.length import Length
from lit_reason.types import UserError


class Overlong(Length):
    """DAPO's soft overlong punishment: 0 up to max_tokens - buffer, then falling to -1 at max_tokens and beyond.

    ((max_tokens - buffer) - L) / buffer inside the buffer, whatever the answer, with L the completion's length in
    tokens, the end-of-sequence token included: a completion that was cut off at max_tokens gets -1. `length` is the
    same line, set by where it begins. Source: arXiv 2503.14476.

    Args:
        max_tokens: the limit; usually sampling.max_new_tokens.
        buffer: tokens before the limit over which the penalty grows; the paper takes a fifth of the limit.

    Raises:
        UserError: buffer is not between 1 and max_tokens.
    """

    def __init__(self, *, max_tokens: int, buffer: int) -> None:
        if not 1 <= buffer <= max_tokens:
            raise UserError(f"reward 'overlong': buffer must be 1 to max_tokens = {max_tokens} tokens, got {buffer}")
        super().__init__(target=max_tokens - buffer, span=buffer)
