"""How text and numbers appear on a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from lit_reason.types import Problem

_RETURN = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"


def visible(text: str) -> Text:
    """Text a model wrote, safe to show: one line, no markup read into it, control characters spelt out.

    Escape sequences could move the cursor or rename the window, and bidirectional controls reverse what one reads.
    """
    shown = []
    for char in text.strip():
        if char == "\n":
            shown.append(f" {_RETURN} ")
        elif unicodedata.category(char)[0] == "C":  # control, format, surrogate, private use, unassigned
            shown.append(char.encode("unicode_escape").decode("ascii"))
        else:
            shown.append(char)
    return Text("".join(shown), no_wrap=True, overflow="ellipsis")


def prompt_text(problem: Problem) -> str:
    """The prompt as text: the question alone when that is all, else every message with its role."""
    if len(problem.prompt) == 1:
        return problem.prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in problem.prompt)


def percent(metrics: Mapping[str, float], name: str) -> str:
    """A rate with its 95 % interval when there is one: `43.0 % (36.3-49.9)`."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    interval = f" ({100 * low:.1f}-{100 * high:.1f})" if low is not None and high is not None else ""
    return f"{100 * metrics[name]:.1f} %{interval}"


def metrics_table(metrics: Mapping[str, float]) -> Table:
    """Validation metrics, a row each, with 95 % intervals where there are any.

    Args:
        metrics: as `ReasoningMetrics` computes them, without a `val/` before the names.
    """
    table = Table("metric", "value", "95 % interval", box=None)
    for name, value in metrics.items():
        if name.endswith(("_low", "_high")):
            continue
        if name == "problems":
            table.add_row(name, f"{value:.0f}", "")
        elif name == "length":
            table.add_row(name, f"{value:.1f} tokens", "")
        else:
            text, _, interval = percent(metrics, name).partition(" (")
            table.add_row(name, text, interval.rstrip(")"))
    return table
