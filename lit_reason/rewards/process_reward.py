"""`process_reward`: every step of a completion judged by a Hugging Face token classifier.

rewards:
  - process_reward: {model: owner/name, aggregate: min}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from lit_reason.reward import Judgement, Reward
from lit_reason.rewards.classifier import Classifier, question_text
from lit_reason.types import Rollout, UserError

_AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "min": min,
    "mean": lambda scores: math.fsum(scores) / len(scores),
    "last": lambda scores: scores[-1],
    "product": math.prod,
}


class ProcessReward(Reward):
    """How likely each step is right, in the eyes of a token classifier, as one figure or step by step.

    The model is read as TRL's PRMTrainer teaches it: the prompt as plain text behind the tokenizer's first token, if it
    has one, then each step followed by the separator; the score of a step is the probability of label 1 at the last
    token of its separator. Steps are what stands between `split` in the completion; blank ones belong to the step
    before. Special tokens in the completion are pulled apart. A sequence longer than the model reads is never cut: the
    row is left out and counted as `too_long`; a completion without any step is worth 0 and counted as `no_steps`. The
    model is loaded with the first group and frozen, once in each process that scores.

    With `per_step` the scores reach the tokens (GRPO only): standardised over all steps of the group, each token's
    advantage gains, times the reward's weight, the sum of the scores of the steps that end at or after it. The
    aggregate is then logged but adds nothing to the advantage. The sum favours many good steps over few: watch the
    length.

    Source: process supervision of GRPO, arXiv 2402.03300 section 4.1.3; step scores and their minimum or product, arXiv
    2305.20050 and 2312.08935.

    Args:
        model: a folder or a hub id whose architecture ends in ForTokenClassification, with two labels; its own code is
            never run.
        split: what stands between two steps of a completion, a blank line, or a line break or marker.
        separator: what stood after each step when the model was trained; TRL's default is a line break.
        aggregate: how a completion's scores become one: `min`, `mean`, `last` or `product`.
        per_step: give each step its own score, see above.
        device: such as `cpu` or `cuda:1`; null is the device of training if that is CUDA, else the CPU.
        dtype: of the weights; bfloat16 halves the memory, and then neighbours in a batch may change the third digit.
        tokens_per_batch: most input tokens, padding included, in one forward pass; bounds memory.
        max_tokens: longest sequence that is judged; null is what the model reads.

    Raises:
        UserError: an option is wrong, or the folder is missing or no token classifier with two labels.
    """

    def __init__(
        self,
        *,
        model: str,
        split: str = "\n\n",
        separator: str = "\n",
        aggregate: Literal["min", "mean", "last", "product"] = "min",
        per_step: bool = False,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        tokens_per_batch: int = 16384,
        max_tokens: int | None = None,
    ) -> None:
        for name, value in (("split", split), ("separator", separator)):
            if not value:
                raise UserError(f"reward 'process_reward': {name} must be one character or more, got ''")
        self.split, self.separator, self.aggregate, self.per_step = split, separator, aggregate, per_step
        self.classifier = Classifier(
            "process_reward",
            model=model,
            head="Token",
            labels=(2,),
            device=device,
            dtype=dtype,
            tokens_per_batch=tokens_per_batch,
            max_tokens=max_tokens,
        )

    def score_group(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        found = [Judgement(value=0.0, status="no_steps")] * len(rollouts)
        cut = [steps_of(rollout.text, self.split) for rollout in rollouts]
        stepping = [number for number in range(len(rollouts)) if cut[number]]
        read = {number: self._ids(rollouts[number], [text for text, _ in cut[number]]) for number in stepping}
        for number in stepping:
            found[number] = Judgement(value=None, status="too_long")
        fitting = [number for number in stepping if self.classifier.fits(read[number][0])]
        for number, logits in zip(fitting, self.classifier.logits([read[n][0] for n in fitting]), strict=True):
            scores: list[float] = logits.softmax(-1)[read[number][1], 1].tolist()
            ends = [end for _, end in cut[number]]
            steps = tuple(zip(ends, scores, strict=True)) if self.per_step else ()
            found[number] = Judgement(value=_AGGREGATES[self.aggregate](scores), steps=steps)
        return found

    def _ids(self, rollout: Rollout, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """A rollout as the model reads it, and where each step's score stands."""
        tokenizer = self.classifier.tokenizer

        def spelled(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids

        first = tokenizer.bos_token_id
        ids = [*([] if first is None else [first]), *spelled(question_text(rollout.problem))]
        separator, places = spelled(self.separator), []
        for step in steps:
            ids += [*spelled(self.classifier.plain(step)), *separator]
            places.append(len(ids) - 1)
        return ids, places


def steps_of(text: str, split: str) -> list[tuple[str, int]]:
    """The steps of a text, and where each ends in characters, with what separates it from the next.

    Args:
        text: a completion.
        split: what stands between two steps; nothing but whitespace between two of them is no step.

    Returns:
        Steps without the whitespace around them; the last one ends where the text does.
    """
    steps: list[tuple[str, int]] = []
    start = 0
    while start < len(text):
        at = text.find(split, start)
        end = len(text) if at < 0 else at + len(split)
        if step := text[start:end].removesuffix(split).strip():
            steps.append((step, end))
        elif steps:
            steps[-1] = (steps[-1][0], end)
        start = end
    return steps
