"""How text and numbers appear on a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import rich
from rich.table import Table
from rich.text import Text

from lit_reason.answer import extract_answer
from lit_reason.types import Problem, Rollout

_RETURN = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"

_ANSWER = 16
"""Columns of an answer at most."""

_PADDING = 2
"""Columns between two columns of the table."""


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


def sample_table(rollouts: Sequence[Rollout], title: str, width: int | None = None) -> Table:
    """Completions of one problem, the best rewarded first.

    Args:
        rollouts: of the problem.
        title: what comes before the question.
        width: columns of the terminal, None for all of this one's. Half of them are the completions', so that only
            the first rewards are shown where there are many; a line below names the others.
    """
    names = list(dict.fromkeys(name for rollout in rollouts for name in rollout.rewards))
    names = names if len(names) > 1 else []
    longest = max(len(visible(extract_answer(rollout.text) or "-")) for rollout in rollouts)
    beside = max(len("answer"), min(longest, _ANSWER)) + len("reward" + "advantage" + "tokens") + 5 * _PADDING
    room = (width or rich.get_console().width) // 2 - beside
    shown = []
    for name in names:
        room -= max(len(name), len("-0.00")) + _PADDING
        if room >= 0:
            shown.append(name)
    question = visible(f"{title}: {prompt_text(rollouts[0].problem)}")
    question.append(f"  (gold answer: {visible(str(rollouts[0].problem.answer))})")
    table = Table(title=question, title_justify="left", title_style="bold", expand=True, box=None, padding=(0, 1))
    table.add_column("completion", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("answer", max_width=_ANSWER, no_wrap=True, overflow="ellipsis")
    if left := names[len(shown) :]:
        table.caption = f"also in samples.jsonl: {', '.join(left)}"
        table.caption_justify = "left"
    for name in ("reward", *shown, "advantage", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for rollout in sorted(rollouts, key=lambda r: -1e9 if r.reward is None else r.reward, reverse=True):
        advantage = rollout.advantage if isinstance(rollout.advantage, float | int) else float(rollout.advantage.mean())
        rewards = [rollout.reward, *(rollout.rewards.get(name) for name in shown)]
        table.add_row(
            visible(rollout.text),
            visible(extract_answer(rollout.text) or "-"),
            *("-" if value is None else f"{value:.2f}" for value in rewards),
            f"{advantage:+.2f}",
            f"{rollout.length}" + ("+" if rollout.finish_reason == "length" else ""),  # + : cut off there
        )
    return table
