"""The data that travels: read this first.

A `Problem` becomes G `Rollout`s (a group), rollouts become `MicroBatch`es, a loss sees `LossInputs` and answers
`LossOutput`. Shapes in the docstrings: B completions, T the longest completion of the micro-batch, R rows of input,
L their length. Whatever text a model wrote is judged into data (`finish_reason`, a reward of `None`), never into an
exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from lit_reason.attention import SharedPrompts

Message = dict[str, str]
"""One chat turn: {"role": "system" | "user" | "assistant", "content": text}."""

FinishReason = Literal["stop", "length"]


class UserError(ValueError):
    """Something the person who started the run can mend. The command line prints it as one line, without traceback."""


class Stopped(SystemExit):
    """The run was asked to stop, and has; the code is 128 + the signal's number."""


def exact_match(problem: Problem, answer: str | None) -> float:
    """1.0 when `answer` equals the gold answer up to surrounding whitespace, else 0.0; the scorer of last resort."""
    return float(answer is not None and problem.answer is not None and answer.strip() == problem.answer.strip())


@dataclass(kw_only=True, slots=True)
class Problem:
    """One question with what is needed to judge an answer to it.

    Attributes:
        prompt: chat messages, ending with a user turn.
        answer: the gold answer as text, or None when only `scorer` can judge.
        completion: a worked assistant turn to learn from (SFT); None for problems that are only sampled.
        think: True / False asks the chat template for think / no-think mode; None leaves it at its default.
        task: name of the task the problem came from, for the logs.
        id: unique within the task, stable between runs.
        metadata: whatever the scorer or a reward wants to know.
        scorer: (problem, extracted answer or None) -> score in [0, 1]; 1.0 means correct.
    """

    prompt: list[Message]
    answer: str | None = None
    completion: str | None = None
    think: bool | None = None
    task: str = "inline"
    id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    scorer: Callable[[Problem, str | None], float] = field(default=exact_match, repr=False, compare=False)

    def score(self, answer: str | None) -> float:
        """Score in [0, 1] of an extracted answer (None when the completion held none)."""
        return self.scorer(self, answer)


@dataclass(kw_only=True, slots=True, eq=False)  # identity: tensors compared have no truth value
class Rollout:
    """One completion of one problem, and everything learnt about it on the way.

    Attributes:
        problem: what was asked.
        prompt_ids: (P,) int64, the rendered prompt.
        completion_ids: (T_i,) int64, the sampled tokens, the end-of-sequence token included when there is one.
        text: the completion decoded, without the end-of-sequence token.
        finish_reason: "stop" when the model ended by itself, "length" when it was cut off.
        mask: (T_i,) bool, True on tokens that learn; None means all of them.
        sampler_logprobs: (T_i,) float32 as the engine reported them, at the sampling temperature; None where it cannot,
            and to be set to None by whoever changes prompt or completion.
        old_logprobs: (T_i,) float32 under the policy before the first optimizer step of the phase; None while it has
            not moved, when the training forward itself supplies them.
        reference_logprobs: (T_i,) float32 under the reference policy, when the loss asks for it.
        rewards: raw reward by name, None where a reward does not apply to this row.
        reward: weighted sum of `rewards`, None when none applies.
        statuses: what each reward says of how its value came about, such as "ok" or "timeout".
        steps: by name of a reward that scores steps, (where a step ends in characters of `text`, its score) each.
        advantage: a scalar for the whole completion or (T_i,) one per token.
        group: rollouts with the same number answer the same problem.
    """

    problem: Problem
    prompt_ids: Tensor
    completion_ids: Tensor
    text: str
    finish_reason: FinishReason = "stop"
    mask: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    rewards: dict[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    statuses: dict[str, str] = field(default_factory=dict)
    steps: dict[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    advantage: float | Tensor = 0.0
    group: int = 0

    @property
    def length(self) -> int:
        """Completion length in tokens."""
        return len(self.completion_ids)


@dataclass(kw_only=True, slots=True, eq=False)
class MicroBatch:
    """Rollouts as tensors, one forward and backward pass.

    A row of input holds one sequence, or several when packed; `position_ids` start again at 0 with each sequence.
    `scored[b, t]` says where in the flattened (R * L) input the token that *predicts* completion token t of rollout b
    stands.

    Attributes:
        input_ids: (R, L) int64.
        position_ids: (R, L) int64.
        scored: (B, T) int64, 0 beyond the end of completion b.
        targets: (B, T) int64, the completion tokens, 0 beyond the end.
        present: (B, T) bool, True on completion tokens.
        mask: (B, T) bool, True on tokens that learn (a subset of `present`).
        advantages: (B, T) float32.
        old_logprobs: (B, T) float32, or None while the policy has not moved.
        reference_logprobs: (B, T) float32, or None when the loss needs no reference.
        sampler_logprobs: (B, T) float32 as the sampler reported them, or None when it did not.
        layout: what attends to what, where prompts are shared by their completions; None for rows as described.
    """

    input_ids: Tensor
    position_ids: Tensor
    scored: Tensor
    targets: Tensor
    present: Tensor
    mask: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    layout: SharedPrompts | None = None


@dataclass(kw_only=True, slots=True, frozen=True)
class Window:
    """Totals over the optimizer window: every micro-batch of one optimizer step, on every rank.

    Attributes:
        sequences: completions that learn.
        tokens: tokens that learn.
        micro_batches: how many micro-batches of the window are computed.
        max_completion_tokens: the sampling limit, Dr. GRPO's constant.
    """

    sequences: float
    tokens: float
    micro_batches: float
    max_completion_tokens: int


@dataclass(kw_only=True, slots=True)
class LossInputs:
    """All a loss may look at; every tensor is (B, T), float32 unless said otherwise.

    Attributes:
        logprobs: log-probability of each completion token under the trained policy, at the sampling temperature.
        old_logprobs: the same under the policy that sampled; no gradient.
        advantages: one per token.
        mask: bool, True on tokens that count.
        entropies: entropy of the policy at each token, in nats; no gradient.
        window: totals to normalise by.
        reference_logprobs: under the reference policy, or None.
        weights: what each token's policy term is multiplied by, because something else than the policy sampled it; no
            gradient. None where nothing needs correcting.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    entropies: Tensor
    window: Window
    reference_logprobs: Tensor | None = None
    weights: Tensor | None = None


@dataclass(kw_only=True, slots=True)
class LossOutput:
    """What a loss answers.

    Attributes:
        loss: scalar with gradient, this micro-batch's *share*: the shares of a window sum to the window's loss.
        metrics: name -> detached scalar, the *sum over tokens that count*; the trainer divides by their number, which
            leaves out completions that are skipped for having no advantage.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
