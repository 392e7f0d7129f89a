"""What the columns of a data set mean: from a row to prompt, worked completion and gold answer.

Recognised without being told: `messages` and `conversations` (from/value, with their role names), or else `prompt`,
`question` or `problem`; `completion`, or a worked `solution`; `final_answer`, `expected_answer`, `ground_truth` or
`answer`, with gsm8k's `worked steps #### answer`; `system` and `think`. Bespoke-Stratos' thought and solution tags
become think and answer tags. Sources: gsm8k (arXiv 2110.14168), MATH (arXiv 2103.03874), the data-set cards of
Bespoke-Stratos-17k, OpenR1-Math and the ShareGPT and TRL conversation formats.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lit_reason.answer import TAGS, extract_answer
from lit_reason.tasks.rows import Row
from lit_reason.types import Message, UserError

_RECOGNISED = {
    "messages": ("messages", "conversations"),
    "prompt": ("prompt", "question", "problem"),
    "completion": ("completion",),
    "solution": ("solution",),
    "answer": ("final_answer", "expected_answer", "ground_truth", "answer"),
    "system": ("system",),
    "think": ("think",),
}

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

_STRATOS_TAGS = {
    "<|begin_of_thought|>": "<think>",
    "<|end_of_thought|>": "</think>",
    "<|begin_of_solution|>": "<answer>",
    "<|end_of_solution|>": "</answer>",
}

_CALCULATION = re.compile(r"<<[^<>\n]*>>")  # gsm8k's notes for a calculator: 48/2 = <<48/2=24>>24


class RowError(ValueError):
    """Why a row cannot be used; the same words for every such row, so that they can be counted."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Example:
    """A row that was understood.

    Attributes:
        prompt: chat turns, ending with the user's.
        completion: the assistant turn to learn from, or None.
        answer: the gold answer, or None.
        think: think or no-think mode, None where the row does not say.
    """

    prompt: list[Message]
    completion: str | None
    answer: str | None
    think: bool | None


@dataclass(kw_only=True, slots=True, frozen=True)
class Columns:
    """Which column plays which part; None where none does.

    Attributes:
        messages: a conversation; its last assistant turn is the completion.
        prompt: a question, or the turns up to it.
        completion: what the assistant should say, as it is.
        solution: a worked solution, put between think tags with the gold answer between answer tags after it.
        answer: the gold answer; what precedes `####` is taken for a worked solution.
        system: text of a system turn.
        think: True or False, the mode of the row.
    """

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    solution: str | None = None
    answer: str | None = None
    system: str | None = None
    think: str | None = None

    def used(self) -> set[str]:
        """The columns that play a part."""
        return {column for field in fields(self) if (column := getattr(self, field.name)) is not None}

    def example(self, row: Row) -> Example:
        """What a row says.

        Raises:
            RowError: it has no question, or something in it is not what the column should hold.
        """
        turns = self._turns(row)
        completion = _last_assistant(turns) if self.messages else self._completion(row)
        if not turns or turns[-1]["role"] != "user":
            raise RowError("the prompt does not end with a user turn")
        if not turns[-1]["content"].strip():
            raise RowError("the prompt is empty")
        solution, answer = _text(row, self.solution), _text(row, self.answer)
        if answer is not None and "####" in answer:
            worked, _, answer = (part.strip() for part in answer.rpartition("####"))
            solution = solution or _CALCULATION.sub("", worked)
        answer = answer or _final_answer(solution) or _final_answer(completion)
        if completion is None and solution is not None:
            completion = _worked(solution, answer)
        system = _text(row, self.system)
        if system is not None:
            turns = [{"role": "system", "content": system}, *turns]
        return Example(prompt=turns, completion=completion, answer=answer, think=self._think(row))

    def _turns(self, row: Row) -> list[Message]:
        column = self.messages or self.prompt
        value = row.get(column) if column else None
        if value is None:
            raise RowError(f"'{column}' is missing")
        if self.messages or not isinstance(value, str | int | float):
            return _conversation(value)
        return [{"role": "user", "content": _plain(value)}]

    def _completion(self, row: Row) -> str | None:
        value = row.get(self.completion) if self.completion else None
        if value is None or isinstance(value, str):
            return _text(row, self.completion)
        return _last_assistant(_conversation(value))

    def _think(self, row: Row) -> bool | None:
        value = row.get(self.think) if self.think else None
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):  # all that CSV can say
            value = value.strip().lower() == "true"
        if value is not None and value != "" and not isinstance(value, bool):
            raise RowError(f"'{self.think}' is neither true nor false")
        return value or (False if value is False else None)


def recognise(names: Sequence[str], where: str, chosen: Mapping[str, str] | None = None) -> Columns:
    """Which columns play which part.

    Args:
        names: of the columns there are.
        where: what to call the data in errors.
        chosen: part -> column; given, only these are used.

    Raises:
        UserError: a part or a column does not exist, or nothing here could be a prompt.
    """
    if chosen is not None:
        for part, column in chosen.items():
            if part not in _RECOGNISED:
                raise UserError(f"task 'dataset': columns names no part '{part}'; parts: {', '.join(_RECOGNISED)}")
            if column not in names:
                near = difflib.get_close_matches(str(column), names, 1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise UserError(
                    f"task 'dataset': columns.{part}: {where} has no column '{column}'{hint} (has {', '.join(names)})"
                )
        found = dict(chosen)
    else:
        found = {
            part: hit for part, known in _RECOGNISED.items() if (hit := next((k for k in known if k in names), None))
        }
    if "messages" in found:
        found = {part: column for part, column in found.items() if part not in ("prompt", "completion", "solution")}
    elif "prompt" not in found:
        known = ", ".join((*_RECOGNISED["messages"], *_RECOGNISED["prompt"]))
        raise UserError(
            f"task 'dataset': no prompt among the columns of {where} ({', '.join(names) or 'none'}); recognised are "
            f"{known}. Say which it is, as in columns: {{prompt: NAME}}"
        )
    return Columns(**found)


def _conversation(value: Any) -> list[Message]:  # noqa: ANN401 - whatever the row holds
    """Chat turns from role/content or from/value, as a list of turns or a table of two columns."""
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, cells, strict=False)) for cells in zip(*value.values(), strict=False)]
    if not isinstance(value, list):
        raise RowError("the conversation is not a list of turns")
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise RowError("a turn of the conversation is not a mapping")
        speaker, content = turn.get("role") or turn.get("from"), turn.get("content")
        if not isinstance(speaker, str) or speaker not in _ROLES:
            raise RowError(f"a turn's role is {speaker!r}")
        if content is None:
            content = turn.get("value")
        if not isinstance(content, str):
            raise RowError("a turn of the conversation holds no text")
        turns.append({"role": _ROLES[speaker], "content": _tagged(content)})
    return turns


def _last_assistant(turns: list[Message]) -> str | None:
    """Take the last turn off when it is the assistant's."""
    return turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else None


def _text(row: Row, column: str | None) -> str | None:
    """The text of a column, None where it is empty."""
    value = row.get(column) if column else None
    return None if value is None else _plain(value, column) or None


def _plain(value: Any, column: str | None = None) -> str:  # noqa: ANN401 - whatever the row holds
    if not isinstance(value, str | int | float):
        raise RowError(f"'{column}' is neither text nor a number")
    return _tagged(str(value)).strip()


def _tagged(text: str) -> str:
    for tag, ours in _STRATOS_TAGS.items():
        text = text.replace(tag, ours)
    return text


def _final_answer(text: str | None) -> str | None:
    r"""The answer a worked text ends with: of `<answer>… \boxed{4}</answer>` it is 4."""
    answer = extract_answer(text) if text else None
    while answer and (inner := extract_answer(answer)) is not None:
        answer = inner
    return answer or None


def _worked(solution: str, answer: str | None) -> str:
    """A solution in the think/answer format, unless it already is or there is no answer to give."""
    if answer is None or any(tag in solution for tag in TAGS):
        return solution
    return f"<think> {solution} </think> <answer> {answer} </answer>"
