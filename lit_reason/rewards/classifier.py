"""What rewards by a Hugging Face classifier share: checked at once, loaded when first needed, and never learning."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_reason.types import Problem, UserError

if TYPE_CHECKING:
    from torch import Tensor

Head = Literal["Sequence", "Token"]

_LOADING = threading.Lock()


class Classifier:
    """A frozen classifier with its tokenizer.

    Args:
        reward: whose errors to raise.
        model: a folder or a hub id; no code that comes with it is run.
        head: what classifies: whole sequences, or tokens.
        labels: how many labels it may have.
        device: such as `cpu` or `cuda:1`; None is the device of training if that is CUDA, else the CPU.
        dtype: of the weights.
        tokens_per_batch: most input tokens, padding included, in one forward pass.
        max_tokens: longest sequence; None is what model and tokenizer take.

    Raises:
        UserError: an option is wrong, or the folder is missing or holds something else.
    """

    def __init__(
        self,
        reward: str,
        *,
        model: str,
        head: Head,
        labels: tuple[int, ...],
        device: str | None,
        dtype: Literal["float32", "bfloat16"],
        tokens_per_batch: int,
        max_tokens: int | None,
    ) -> None:
        for name, value in (("tokens_per_batch", tokens_per_batch), ("max_tokens", max_tokens)):
            if value is not None and value < 1:
                raise UserError(f"reward '{reward}': {name} must be 1 or more, got {value}")
        self.reward, self.model, self.head, self.labels = reward, model, head, labels
        self.device, self.dtype = device, dtype
        self.tokens_per_batch, self.max_tokens = tokens_per_batch, max_tokens
        self._loaded: tuple[Any, Any] | None = None
        self._check_folder()

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights, which the other process reads for itself."""
        return {**self.__dict__, "_loaded": None}

    # ------------------------------------------------------------------ text to tokens
    @property
    def tokenizer(self) -> Any:  # noqa: ANN401 - transformers is untyped
        """The tokenizer beside the model."""
        return self._load()[1]

    def plain(self, text: str) -> str:
        """A text in which no special token of this tokenizer stands, so that it cannot end its turn or open another."""
        text = text.encode(errors="replace").decode()  # a lone surrogate is no text to a tokenizer
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.special and len(token.content) > 1:
                text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
        return text

    def fits(self, ids: Sequence[int]) -> bool:
        """Whether a sequence is short enough; a longer one is not cut, for what is cut off would go unjudged."""
        model, tokenizer = self._load()
        limits = (self.max_tokens, getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
        return 0 < len(ids) <= min(limit for limit in limits if limit is not None)

    # ------------------------------------------------------------------ tokens to logits
    def logits(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits in float32 on the CPU: (labels,) of each row, or (length of the row, labels) for a head over tokens.

        Rows are batched by length within the token budget; their neighbours and the padding make no difference beyond
        rounding.

        Args:
            rows: token ids, none of them empty.
        """
        import torch

        model, _ = self._load()
        found: list[Any] = [None] * len(rows)
        for numbers in self._batches(rows):
            width = len(rows[numbers[0]])
            ids = torch.full((len(numbers), width), self._filler() or 0, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for place, number in enumerate(numbers):
                length = len(rows[number])
                ids[place, :length] = torch.tensor(rows[number])
                mask[place, :length] = 1
            # neither a precision plugin nor who asks may change a judgement
            with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
                output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
            for number, logits in zip(numbers, output.float().cpu(), strict=True):
                found[number] = logits if self.head == "Sequence" else logits[: len(rows[number])]
        return found

    def _batches(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Numbers of rows that go together, the longest first; one by one for a model that knows no padding."""
        batches: list[list[int]] = []
        for number in sorted(range(len(rows)), key=lambda n: len(rows[n]), reverse=True):
            room = batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) <= self.tokens_per_batch
            if room and self._filler() is not None:
                batches[-1].append(number)
            else:
                batches.append([number])
        return batches

    def _filler(self) -> int | None:
        """What transformers takes for padding when it looks for the last token of a sequence."""
        config = self._load()[0].config.get_text_config()
        filler: int | None = config.pad_token_id
        return filler

    # ------------------------------------------------------------------ finding the model
    def _check_folder(self) -> None:
        """Look into a folder, without importing anything; a hub id is believed until it is loaded."""
        folder = Path(self.model).expanduser()
        if not folder.is_dir():
            if self.model.startswith((".", "/", "~")) or self.model.count("/") != 1 or folder.exists():
                raise UserError(
                    f"reward '{self.reward}': model must be an existing folder or a hub id (owner/name), there is no "
                    f"folder '{self.model}'"
                )
            return
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            architectures = " ".join(config.get("architectures") or ["none named"])
            # transformers does not write down the two labels it has by default
            labels = config.get("num_labels") or len(config.get("id2label") or "01")
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"reward '{self.reward}': model must be a folder with a config.json, '{self.model}' holds none that "
                f"can be read ({error})"
            ) from error
        if not architectures.endswith(f"For{self.head}Classification"):
            raise UserError(
                f"reward '{self.reward}': model must be a {self.head.lower()} classification model, config.json of "
                f"'{self.model}' says {architectures}"
            )
        self._check_labels(labels)

    def _check_labels(self, labels: int) -> None:
        if labels not in self.labels:
            expected = " or ".join(map(str, self.labels))
            raise UserError(f"reward '{self.reward}': model must have {expected} labels, '{self.model}' has {labels}")

    def _load(self) -> tuple[Any, Any]:
        """Model and tokenizer, read once a process."""
        with _LOADING:
            if self._loaded is None:
                self._loaded = self._read()
        return self._loaded

    def _read(self) -> tuple[Any, Any]:
        import torch
        import transformers

        where = os.path.expanduser(self.model)  # noqa: PTH111 - a hub id is no path
        auto = getattr(transformers, f"AutoModelFor{self.head}Classification")
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        options = {"dtype": getattr(torch, self.dtype), "trust_remote_code": False, "output_loading_info": True}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            with _silence():
                model, info = auto.from_pretrained(where, **options)
            model = model.to(device).eval().requires_grad_(requires_grad=False)
        except Exception as error:  # whatever a damaged file makes of safetensors, pickle or a validator
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"reward '{self.reward}': model '{self.model}' could not be loaded: {first}") from error
        if missing := sorted(info["missing_keys"]):  # transformers would make up a head for any model
            raise UserError(
                f"reward '{self.reward}': model '{self.model}' lacks {len(missing)} weights, such as {missing[0]}: it "
                f"was not trained as a {self.head.lower()} classifier"
            )
        self._check_labels(model.config.num_labels)
        return model, tokenizer


@contextmanager
def _silence() -> Iterator[None]:
    """Inside, transformers prints no table of what it misses in a model: the error says it on one line."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def question_text(problem: Problem) -> str:
    """The turns of a prompt without markup, for models that know no chat."""
    return "\n\n".join(turn["content"] for turn in problem.prompt)
