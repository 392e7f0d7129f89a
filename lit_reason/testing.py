"""Conformance checks for plugins, and small builders to test them with.

    from lit_reason.testing import check_reward

    def test_my_reward():
        check_reward(MyReward())

A check collects every complaint and raises one `AssertionError` that lists them. `lit-reason plugins check` runs the
same checks on what is installed.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_reason.tiny import tiny_policy
from lit_reason.types import FinishReason, LossInputs, Problem, Rollout, UserError

if TYPE_CHECKING:
    from lit_reason.loss import Loss
    from lit_reason.reward import Reward, WeightedReward
    from lit_reason.scoring import Scorer
    from lit_reason.task import Split, Task

__all__ = ["HOSTILE", "check_loss", "check_reward", "check_task", "loss_inputs", "sample_rollouts", "tiny_policy"]

HOSTILE = (
    "",
    " \r\n\t ",
    "\x00 nul \x00",
    "a" * 100_000,
    "9" * 5_000,  # more digits than int() takes
    "nan",
    "-inf",
    "1/0",
    "1e999",
    "\ud800 a lone surrogate",
    "\u202e right to left, \U0001f4a1, e\u0301\u0301\u0301, \ufeff",
    "<think>" * 5_000,
    "<answer>" * 2_000 + "4" + "</answer>" * 2_000,
    "</answer> 4 <answer>",
    "\\boxed{" * 2_000 + "4",
    "__import__('os')",
    "{0} %s {{}} $x",
)
"""Texts and answers that a model may well write and that must not stop a run."""

SECONDS_A_TEXT = 2.0
"""How long judging one text may take; a backtracking regular expression takes longer on the long ones."""

WORKED = (
    "<think> 2 + 2 is 4 </think> <answer> 4 </answer>",
    "<think> 2 + 2 is 5 </think> <answer> 5 </answer>",
    "it is 4",
    "<think> 2 + 2",
)


class _Complaints:
    """What a check found, each complaint once."""

    def __init__(self, subject: object) -> None:
        self.subject = type(subject).__name__
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)

    def attempt(self, what: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the call returns
        """The result of a call; None and a complaint when it raises."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - what a plugin raises is the finding
            self(f"{what} raised {type(error).__name__}: {error}")
            return None

    def settle(self) -> None:
        if self.lines:
            raise AssertionError("\n- ".join([f"{self.subject} does not conform:", *self.lines]))


# --- tasks


def check_task(task: Task, *, limit: int = 100) -> None:
    """Check that a task keeps the promises of `lit_reason.Task`.

    Problems are indexable and the same each time, prompts are chat turns that end with the user's, ids are unique, the
    splits do not share a prompt, gold answers score 1.0 and no answer does not, any answer at all gets a score in
    [0, 1], and the task can be sent to another process.

    Args:
        task: what to check.
        limit: how many problems of each split to look at.

    Raises:
        AssertionError: lists all that is wrong.
    """
    complain = _Complaints(task)
    prompts: dict[str, set[str]] = {}
    clone = complain.attempt("pickling the task", lambda: pickle.loads(pickle.dumps(task)))  # noqa: S301 - our own bytes
    for split in ("train", "validation"):
        problems = _sample(task, split, limit, complain)
        if not problems and split == "train":
            complain("problems('train') is empty")
        _check_again(task, split, problems, complain, "a second call")
        if clone is not None:
            _check_again(clone, split, problems, complain, "a copy in another process")
        for problem in problems:
            _check_prompt(problem, complain)
        _check_ids(problems, split, complain)
        prompts[split] = {_text(problem) for problem in problems}
        _check_scores(task, problems, complain)
    shared = prompts["train"] & prompts["validation"]
    if shared:
        complain(f"train and validation share {len(shared)} prompts, such as {min(shared)[:80]!r}")
    state = complain.attempt("state_dict", task.state_dict)
    if state is not None:
        complain.attempt("state_dict is not made of plain values: json", lambda: json.dumps(state))
        complain.attempt("load_state_dict of its own state_dict", lambda: task.load_state_dict(state))
    complain.settle()


def _sample(task: Task, split: Split, limit: int, complain: _Complaints) -> list[Problem]:
    problems = complain.attempt(f"problems('{split}')", lambda: task.problems(split))
    length = None if problems is None else complain.attempt(f"len(problems('{split}'))", lambda: len(problems))
    if not length:
        return []
    found = complain.attempt(f"problems('{split}')[i]", lambda: [problems[i] for i in range(min(limit, length))]) or []
    for problem in found:
        if not isinstance(problem, Problem):
            complain(f"problems('{split}')[i] is of type {type(problem).__name__}, expected lit_reason.Problem")
    complain.attempt(f"problems('{split}')[len - 1]", lambda: problems[length - 1])
    try:
        problems[length]
    except IndexError:
        pass
    except Exception as error:  # noqa: BLE001 - see above
        complain(f"problems('{split}')[len] raised {type(error).__name__}, expected IndexError")
    else:
        complain(f"problems('{split}')[len] gave a problem, expected IndexError: iteration would never end")
    return [problem for problem in found if isinstance(problem, Problem)]


def _check_again(task: Task, split: Split, problems: list[Problem], complain: _Complaints, when: str) -> None:
    if not problems:
        return
    again = complain.attempt(f"problems('{split}') of {when}", lambda: task.problems(split))
    for index, problem in enumerate(problems if again is not None else []):
        other = again[index]
        if (other.prompt, other.answer, other.id) != (problem.prompt, problem.answer, problem.id):
            complain(f"problems('{split}')[{index}] is another problem in {when}")
            return


def _check_prompt(problem: Problem, complain: _Complaints) -> None:
    who = f"problem '{problem.id}'"
    messages = problem.prompt
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        complain(f"{who}: prompt must be a list of messages, got {messages!r}")
        return
    roles = [m.get("role") for m in messages]
    if not all(set(m) == {"role", "content"} and isinstance(m["content"], str) for m in messages):
        complain(f"{who}: a message is {{'role': ..., 'content': text}}")
    if roles[-1] != "user":
        complain(f"{who}: the prompt ends with a message of '{roles[-1]}', expected 'user'")
    if unknown := set(roles) - {"system", "user", "assistant"}:
        complain(f"{who}: roles are system, user and assistant, got {', '.join(map(repr, sorted(map(str, unknown))))}")
    if "system" in roles[1:]:
        complain(f"{who}: a system message may only come first")


def _check_ids(problems: list[Problem], split: str, complain: _Complaints) -> None:
    ids = [problem.id for problem in problems]
    if not all(ids):
        complain(f"a problem of '{split}' has no id")
    elif len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        complain(f"ids of '{split}' are not unique: '{twice}' appears twice")


def _check_scores(task: Task, problems: list[Problem], complain: _Complaints) -> None:
    for line in complain.attempt("scoring gold answers", lambda: task.validate(problems)) or []:
        complain(line)
    for problem in problems[:3]:
        for answer in (None, *HOSTILE):
            shown = "None" if answer is None else _short(answer)
            start = time.perf_counter()
            value = complain.attempt(f"scoring the answer {shown}", partial(problem.score, answer))
            _check_seconds(start, shown, complain)
            if value is not None and not (_is_number(value) and 0.0 <= value <= 1.0):
                complain(f"the answer {shown} scores {value!r}, expected a number in [0, 1]")
    for problem in problems[:1]:
        complain.attempt("pickling a problem", partial(pickle.dumps, problem))


def _text(problem: Problem) -> str:
    return json.dumps(problem.prompt, default=repr)


# --- rewards


def sample_rollouts(
    texts: Sequence[str] = WORKED,
    *,
    problem: Problem | None = None,
    finish_reason: FinishReason = "stop",
    group: int = 0,
) -> list[Rollout]:
    """One group of rollouts with given completions, spelled in bytes as the tokenizer of `tiny_policy` does.

    Args:
        texts: completions; by default a right one, a wrong one, one without tags and one that breaks off.
        problem: what was asked; by default the sum of 2 and 2, whose gold answer is "4".
        finish_reason: "stop", or "length" for completions that were cut off.
        group: the group's number.
    """
    import torch

    asked = problem or Problem(prompt=[{"role": "user", "content": "What is 2 + 2?"}], answer="4", id="sum-0")
    prompt_ids = torch.tensor(list(asked.prompt[-1]["content"].encode()), dtype=torch.int64)
    end = [256] if finish_reason == "stop" else []
    return [
        Rollout(
            problem=asked,
            prompt_ids=prompt_ids,
            completion_ids=torch.tensor([*text.encode(errors="surrogatepass"), *end], dtype=torch.int64),
            text=text,
            finish_reason=finish_reason,
            group=group,
        )
        for text in texts
    ]


def check_reward(reward: Reward, *, rollouts: Sequence[Rollout] | None = None) -> None:
    """Check that a reward keeps the promises of `lit_reason.Reward`.

    One finite number, `Judgement` or None for each rollout, whatever the text; the same when asked again; a reward that
    looks at one rollout does not depend on its neighbours; what rollouts hold is left as it was; it can be sent to
    another process. The reward is run as training runs it: in an event loop if it is async, and in a worker process if
    it has a `deadline` or `memory_mb`; its deadline then bounds its time, and passing it is no fault.

    Args:
        reward: what to check.
        rollouts: one group to try first, of the task the reward is made for; the built-in completions then answer its
            problem. By default they answer a plain sum, whose problem has no metadata.

    Raises:
        UserError: the reward asks for problems of another kind; give `rollouts` of that kind.
        AssertionError: lists all that is wrong.
    """
    from lit_reason.reward import WeightedReward
    from lit_reason.scoring import Scorer

    complain = _Complaints(reward)
    asked = rollouts[0].problem if rollouts else None
    groups = [list(rollouts)] if rollouts else []
    groups += [sample_rollouts(problem=asked), sample_rollouts(problem=asked, finish_reason="length")]
    groups += [sample_rollouts(WORKED[:1], problem=asked)]
    scorer = complain.attempt(
        "the reward", lambda: Scorer([WeightedReward(name=complain.subject, weight=1.0, reward=reward)])
    )
    if scorer is not None:
        _check_applies(scorer.rewards, groups[0])
        try:
            for group in groups:
                _check_group(scorer, group, complain)
            for text in HOSTILE:
                start = time.perf_counter()
                _check_group(scorer, sample_rollouts([text, WORKED[0]], problem=asked), complain)
                if reward.deadline is None:
                    _check_seconds(start, _short(text), complain)
        finally:
            scorer.close()
    complain.attempt("pickling the reward", lambda: pickle.dumps(reward))
    complain.settle()


def _check_applies(rewards: Sequence[WeightedReward], group: list[Rollout]) -> None:
    """Let a reward say that it needs problems of another kind: nothing else stops a scorer that excludes failures."""
    from lit_reason.scoring import Scorer

    scorer = Scorer(rewards, nonfinite="mask", failures="exclude")
    try:
        with warnings.catch_warnings(action="ignore"):
            scorer.collect([copy.copy(row) for row in group])
    finally:
        scorer.close()


def _check_group(scorer: Scorer, group: list[Rollout], complain: _Complaints) -> None:
    def judged(rows: list[Rollout]) -> list[float | None]:
        asked = [copy.copy(row) for row in rows]
        with warnings.catch_warnings(action="ignore"):  # that the deadline passed is no fault
            scorer.collect(asked)
        return [rollout.reward for rollout in asked]

    shown = _short(group[0].text)
    before = [_snapshot(rollout) for rollout in group]
    try:
        values, again = judged(group), judged(group)
        backwards = values[::-1] if scorer.rewards[0].grouped else judged(group[::-1])
    except UserError as error:
        complain(f"the completion {shown}: {error}")
        return
    if again != values:
        complain(f"the completion {shown} got another reward the second time")
    if backwards != values[::-1]:
        complain(f"the completion {shown} got another reward in another order")
    if [_snapshot(rollout) for rollout in group] != before:
        complain(f"what the rollout of {shown} holds was changed; a reward only looks")


def _snapshot(rollout: Rollout) -> tuple[Any, ...]:
    problem = rollout.problem
    asked = (problem.prompt, problem.answer, problem.completion, problem.metadata)
    found = (rollout.text, rollout.finish_reason, rollout.rewards, rollout.reward, rollout.advantage, rollout.group)
    return copy.deepcopy((asked, found, rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()))


# --- losses


def loss_inputs(
    lengths: Sequence[int] = (5, 3, 4), *, padding: int = 0, reference: bool = False, seed: int = 0
) -> LossInputs:
    """Plausible random inputs of a loss: advantages of both signs, a policy that has moved a little since sampling.

    Args:
        lengths: tokens of each completion that count; 0 makes a row that is masked altogether.
        padding: columns beyond the longest completion.
        reference: also fill `reference_logprobs`.
        seed: of the numbers; row i is the same whatever the other rows and the padding are.

    Returns:
        Inputs whose `logprobs` is a leaf that requires a gradient, and whose window is this one micro-batch.
    """
    from lit_reason.loss_checks import make_inputs

    return make_inputs(lengths, padding=padding, reference=reference, seed=seed)


def check_loss(loss: Loss) -> None:
    """Check that a loss keeps the promises of `lit_reason.Loss`; see `lit_reason.loss_checks` for what they are.

    Raises:
        AssertionError: lists all that is wrong.
    """
    from lit_reason.loss_checks import complaints_about

    complain = _Complaints(loss)
    complain.attempt("the loss", lambda: complaints_about(loss, complain))
    complain.attempt("pickling the loss", lambda: pickle.dumps(loss))
    complain.settle()


# --- shared


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]  # that it may be no number is the question
    except (TypeError, ValueError, OverflowError):
        return False


def _check_seconds(start: float, shown: str, complain: _Complaints) -> None:
    seconds = time.perf_counter() - start
    if seconds > SECONDS_A_TEXT:
        complain(f"{shown} took {seconds:.1f} s to judge, expected less than {SECONDS_A_TEXT:g} s")


def _short(text: str) -> str:
    return repr(text if len(text) <= 24 else f"{text[:20]}...") + (
        f" ({len(text)} characters)" if len(text) > 24 else ""
    )
