"""`reward_model`: an outcome reward from a Hugging Face sequence classifier.

rewards:
  - reward_model: {model: owner/name}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from lit_reason.reward import Judgement, Reward
from lit_reason.rewards.classifier import Classifier, question_text
from lit_reason.types import Rollout


class RewardModel(Reward):
    """What a sequence classifier makes of prompt and completion, read where it reads the whole.

    A model with one label gives its logit, as reward models trained on preferences do; one with two labels gives the
    probability of label 1. Prompt and completion are rendered by the model's own chat template, the completion as the
    assistant's turn, which the template may rid of its thoughts; without a template, as text with a blank line between
    the turns. Special tokens in the completion are pulled apart, so that it cannot end its turn. A sequence longer than
    the model reads is never cut: the row is left out and counted as `too_long`.

    The model is loaded with the first group and frozen, once in each process that scores. A policy learns what such a
    model overrates: keep `accuracy` in sight. Source: arXiv 2110.14168 (a verifier of whole solutions) and 2203.02155
    (a scalar head trained on preferences).

    Args:
        model: a folder or a hub id whose architecture ends in ForSequenceClassification; its own code is never run.
        activation: `sigmoid` squeezes the logit of a model with one label into (0, 1); `none` gives it as it is.
        device: such as `cpu` or `cuda:1`; null is the device of training if that is CUDA, else the CPU.
        dtype: of the weights; bfloat16 halves the memory, and then neighbours in a batch may change the third digit.
        tokens_per_batch: most input tokens, padding included, in one forward pass; bounds memory.
        max_tokens: longest sequence that is judged; null is what the model reads.

    Raises:
        UserError: an option is wrong, or the folder is missing or no sequence classifier.
    """

    def __init__(
        self,
        *,
        model: str,
        activation: Literal["none", "sigmoid"] = "none",
        device: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        tokens_per_batch: int = 16384,
        max_tokens: int | None = None,
    ) -> None:
        self.activation = activation
        self.classifier = Classifier(
            "reward_model",
            model=model,
            head="Sequence",
            labels=(1, 2),
            device=device,
            dtype=dtype,
            tokens_per_batch=tokens_per_batch,
            max_tokens=max_tokens,
        )

    def score_group(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        rows = [self._ids(rollout) for rollout in rollouts]
        fitting = [number for number, ids in enumerate(rows) if self.classifier.fits(ids)]
        found = [Judgement(value=None, status="too_long")] * len(rows)
        for number, logits in zip(fitting, self.classifier.logits([rows[n] for n in fitting]), strict=True):
            found[number] = Judgement(value=self._value(logits.tolist()))
        return found

    def _value(self, logits: list[float]) -> float:
        if len(logits) == 1 and self.activation == "none":
            return logits[0]
        # of two labels, the softmax is the sigmoid of the difference
        logit = logits[0] if len(logits) == 1 else logits[1] - logits[0]
        return 0.5 * (1.0 + math.tanh(0.5 * logit))  # the sigmoid, which overflows nowhere in this form

    def _ids(self, rollout: Rollout) -> list[int]:
        tokenizer, text = self.classifier.tokenizer, self.classifier.plain(rollout.text)
        if not tokenizer.chat_template:
            ids: list[int] = tokenizer(f"{question_text(rollout.problem)}\n\n{text}")["input_ids"]
            return ids
        turns = [*rollout.problem.prompt, {"role": "assistant", "content": text}]
        rendered: list[int] = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        return rendered
