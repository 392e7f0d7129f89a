"""The policy every module shares: a Hugging Face causal LM, its tokenizer and its chat template.

One object answers the four questions a trainer has: how does a problem read as tokens (`render`, `encode_completion`),
how likely were these tokens (`logprobs`), what would the model say (`generate`), and what would it have said before
training (`reference`).
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from lit_reason.adapters import add_adapter, merged_copy, plain_weights
from lit_reason.architecture import install_layouts, keeps_packed_apart, switch_dropout_off
from lit_reason.attention import no_mask
from lit_reason.loading import check_quantization, identity, load_chat_template, load_model, load_tokenizer
from lit_reason.policy_options import LoRA, PolicyOptions
from lit_reason.sharding import plain_name, shard, whole, whole_state, wrap
from lit_reason.types import Message, MicroBatch, Problem, UserError

__all__ = ["LoRA", "Policy", "PolicyOptions"]

EMPTY_THINK = "<think> </think>"

LOGIT_CHUNK = 2**25
"""How many logits the head holds at once: 128 MiB in float32, enough rows of any vocabulary to keep a GPU busy."""


class Policy(nn.Module):
    """A causal LM with its tokenizer.

    Args:
        options: which model, and how to hold it.
        device: where quantised weights are made, the CPU unless said; all others are loaded there and moved by whoever
            trains.

    Raises:
        UserError: the folder, the tokenizer or the chat template is missing or unusable; one line says which.

    Attributes:
        model: the transformers model, or the PEFT model around it.
        tokenizer: its tokenizer, chat template set.
        eos_ids: every token id that ends a turn, sorted.
        pad_id: filler for padding; never trusted to tell padding from text.
        context: the most tokens the model can read, or None when it does not say.
        packs: whether the architecture keeps sequences packed into one row apart.
        base: fingerprint of the base model where only adapters change, None where all of the model may.
        window: the longest sequence that `lit_reason.attention` computes as the model does; 0 where it cannot at all.
    """

    def __init__(self, options: PolicyOptions, device: torch.device | None = None) -> None:
        from transformers import GenerationConfig

        super().__init__()
        self.options = options
        check_quantization(options.quantization, options.lora)
        # cheapest first: a missing template or tokenizer is found before gigabytes of weights are read
        self.tokenizer = load_tokenizer(options.model, options.revision)
        load_chat_template(self.tokenizer, options.chat_template, options.model)
        lm = load_model(
            options.model,
            revision=options.revision,
            dtype=options.dtype,
            attention=options.attention,
            random_weights=options.random_weights,
            quantization=options.quantization,
            device=device,
        )
        self._generation_defaults = copy.deepcopy(lm.generation_config)
        self.eos_ids = _eos_ids(lm, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.eos_ids[0] if pad is None else pad
        self.context: int | None = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
        self.turn_end_id = self._find_turn_end()
        self.template_knows_think = self._renders(think=True) != self._renders(think=False)
        switch_dropout_off(lm)
        # `generate` merges the checkpoint's sampling defaults (top_k 20, temperature 0.6, ...) into what it is given
        lm.generation_config = GenerationConfig(eos_token_id=self.eos_ids, pad_token_id=self.pad_id)
        if options.gradient_checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # of the base of adapters, which checkpoints leave out; random weights are nowhere else
        self.base = None if options.lora is None or options.random_weights else identity(lm, options.model)
        self.model: nn.Module = lm if options.lora is None else add_adapter(lm, options.lora)
        self.window = 0
        # a list hides the frozen copy from parameters(), state_dict() and DDP
        self._frozen_reference: list[nn.Module] = []
        self._wrapper: list[nn.Module] = []  # likewise what is around the policy
        self.packs = keeps_packed_apart(self.causal_lm, self.logits, options.model)
        self.window = install_layouts(self.causal_lm) if options.attention in (None, "sdpa") else 0
        self.train()  # transformers loads in eval mode, in which gradient checkpointing does nothing

    # ------------------------------------------------------------------ text to tokens and back
    def render(self, messages: Sequence[Message], think: bool | None = None) -> Tensor:
        """The prompt as the model reads it: (P,) int64, generation prompt included, no second BOS.

        Args:
            messages: chat turns, the last one the user's.
            think: True / False asks the template for think / no-think mode, None leaves its default.
        """
        mode = {} if think is None else {"enable_thinking": think}
        ids = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **mode
        )
        return torch.tensor(ids, dtype=torch.int64)

    def encode_completion(self, problem: Problem) -> Tensor:
        """The worked completion of a problem as tokens, (T,) int64, ending with the token that ends a turn.

        No-think examples carry an empty think block: in the prompt where the template writes it, else here.
        """
        if problem.completion is None:
            raise UserError(f"problem '{problem.id}' of task '{problem.task}' has no completion to learn from")
        text = problem.completion
        if problem.think is False:
            bare = text.removeprefix(EMPTY_THINK).lstrip()
            text = bare if self.template_knows_think else f"{EMPTY_THINK} {bare}"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([*ids, self.turn_end_id], dtype=torch.int64)

    def decode(self, completion_ids: Tensor) -> str:
        """The completion as text, without the token that ended it; think and answer tags stay, special or not."""
        ids = completion_ids.tolist()
        if ids and ids[-1] in self.eos_ids:
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    # ------------------------------------------------------------------ how likely
    def forward(self, batch: MicroBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """`logprobs` for a backward pass; where the policy is sharded, all ranks must call it equally often."""
        return self.logprobs(batch, temperature)

    def logprobs(self, batch: MicroBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the completion tokens, without ever holding all logits.

        Without a gradient alone, where the policy is sharded, and inside `whole`.

        Args:
            batch: R rows of input holding B completions of at most T tokens.
            temperature: the sampling temperature: logits are divided by it before the log-softmax, in float32.

        Returns:
            (B, T) float32 log-probabilities (with gradient when enabled) and (B, T) float32 entropies in nats
            (without), both 0 where `batch.present` is False.
        """
        lm = self.causal_lm
        # use_cache=False: with a cache transformers ignores the restarts of position_ids that mark packed sequences
        input_ids, position_ids = batch.input_ids, batch.position_ids
        if "flash" in (self.options.attention or ""):  # it tells sequences apart in an input of one row only
            input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
        options: dict[str, Any] = {}
        if batch.layout is not None:
            options = {"layout": batch.layout, "attention_mask": no_mask(input_ids.device)}
        hidden = lm.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **options
        ).last_hidden_state
        hidden_ND = hidden.flatten(0, 1)[batch.scored[batch.present]]  # noqa: N806 - shape suffix: N tokens, width D
        logp_N, entropy_N = self._score_tokens(hidden_ND, batch.targets[batch.present], temperature)  # noqa: N806
        logprobs = torch.zeros(batch.targets.shape, dtype=torch.float32, device=hidden.device)
        entropies = torch.zeros_like(logprobs)
        return logprobs.masked_scatter(batch.present, logp_N), entropies.masked_scatter(batch.present, entropy_N)

    def _score_tokens(self, hidden_ND: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:  # noqa: N803
        rows = max(1, LOGIT_CHUNK // self.causal_lm.config.get_text_config().vocab_size)
        parts = []
        for h, t in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
            if torch.is_grad_enabled() and len(hidden_ND) > rows:  # keep the hidden states, recompute the logits
                parts.append(checkpoint(self._score_chunk, h, t, temperature, use_reentrant=False))
            else:
                parts.append(self._score_chunk(h, t, temperature))
        if not parts:
            empty = hidden_ND.new_zeros(0, dtype=torch.float32)
            return empty, empty
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _score_chunk(self, hidden_ND: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:  # noqa: N803
        logits_NV = self.logits(hidden_ND).float()  # noqa: N806
        if temperature != 1.0:  # a copy of all logits, and another one backward
            logits_NV = logits_NV / temperature  # noqa: N806
        normaliser_N = logits_NV.logsumexp(-1)  # noqa: N806
        logp_N = logits_NV.gather(-1, targets_N[:, None]).squeeze(-1) - normaliser_N  # noqa: N806
        with torch.no_grad():
            log_p = logits_NV.detach() - normaliser_N.detach()[:, None]
            entropy_N = -log_p.exp().mul_(log_p).sum(-1)  # noqa: N806
        return logp_N, entropy_N

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own head on last hidden states (N, D) -> (N, V), scaled as Gemma, Granite and Cohere do."""
        lm = self.causal_lm
        config = lm.config.get_text_config()
        logits: Tensor = lm.get_output_embeddings()(hidden)
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if scaling := getattr(config, "logits_scaling", None):
            logits = logits / scaling
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    # ------------------------------------------------------------------ what it says, and said before
    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Tensor],
        *,
        logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
        **sampling: Any,  # noqa: ANN401 - GenerationConfig's options
    ) -> list[Tensor]:
        """Sample one completion for each prompt with transformers' `generate`.

        Args:
            prompts: (P_i,) int64 each.
            logits_processor: (input ids, logits) -> logits, as transformers wants them.
            sampling: options of transformers' GenerationConfig (do_sample, temperature, max_new_tokens, ...).

        Returns:
            (T_i,) int64 on the CPU for each prompt, the end-of-sequence token included where one was sampled.
        """
        from transformers import GenerationConfig

        lm = self.causal_lm
        longest = max(len(p) for p in prompts)
        ids = torch.full((len(prompts), longest), self.pad_id, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            attention[row, longest - len(prompt) :] = 1
        was_training = self.training
        self.eval()  # no dropout, and gradient checkpointing would switch the cache off
        try:
            output = self.model.generate(  # type: ignore[operator]  # PreTrainedModel or PeftModel, both have it
                input_ids=ids.to(lm.device),
                attention_mask=attention.to(lm.device),
                logits_processor=list(logits_processor),
                generation_config=GenerationConfig(
                    eos_token_id=self.eos_ids, pad_token_id=self.pad_id, disable_compile=True, **sampling
                ),
            )
        finally:
            self.train(was_training)
        new_tokens = output[:, longest:].cpu()
        ends = torch.isin(new_tokens, torch.tensor(self.eos_ids))
        # pad may equal an end-of-sequence id: cut by position of the first end, never by id of the filler
        lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, new_tokens.shape[1])
        return [row[:n].clone() for row, n in zip(new_tokens, lengths.tolist(), strict=True)]

    def keep_reference(self) -> None:
        """Remember the present weights as the reference policy; free with adapters, a frozen copy without."""
        if self.options.lora is None and not self._frozen_reference:
            frozen = copy.deepcopy(self.model).requires_grad_(False).eval()
            self._frozen_reference.append(frozen)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, `logprobs` are the reference policy's: the adapter switched off, or the frozen copy swapped in."""
        trained = self.model
        if self.options.lora is not None:
            # gathered first: the adapter's weights are switched off where they are whole
            with self.whole(), trained.disable_adapter():  # type: ignore[operator]  # a PeftModel when LoRA is on
                yield
            return
        if not self._frozen_reference:
            raise RuntimeError("no reference was kept: call keep_reference() before the first step")
        frozen, lm = self._frozen_reference[0], self.causal_lm
        if (frozen.device, frozen.dtype) != (lm.device, lm.dtype):  # Lightning moves and casts only what it can see
            frozen.to(lm.device, lm.dtype)
        self.model = frozen
        try:
            with whole(frozen):
                yield
        finally:
            self.model = trained

    # ------------------------------------------------------------------ on several ranks
    def shard(self, mesh: DeviceMesh, precision: str) -> None:
        """Divide the weights among the ranks of a mesh of one dimension, those of a frozen reference too.

        Args:
            mesh: the ranks.
            precision: the Trainer's; under bf16-mixed weights are gathered, and computed with, in bfloat16.
        """
        compute = torch.bfloat16 if precision == "bf16-mixed" else None
        for root, model in ((self, self.model), *((frozen, frozen) for frozen in self._frozen_reference)):
            shard(root, _layers(model), mesh, compute)

    def wrap(self, strategy: FSDPStrategy) -> nn.Module:
        """The same by FSDP's first generation; forward passes go through what is returned."""
        if strategy.precision_plugin.precision == "bf16-true":
            self.to(torch.bfloat16)
        self._frozen_reference = [wrap(frozen, _layers(frozen), strategy) for frozen in self._frozen_reference]
        self._wrapper.append(wrap(self, _layers(self.model), strategy))
        return self._wrapper[0]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every rank has all of the weights; all ranks must enter. Without sharding they always have."""
        with whole(self._root):
            yield

    @property
    def _root(self) -> nn.Module:
        return self._wrapper[0] if self._wrapper else self

    @contextmanager
    def plain_weights(self) -> Iterator[None]:
        """Inside, adapters are merged and weights dequantised where that changes nothing but the speed, to generate."""
        with plain_weights(self.model, self.causal_lm.get_output_embeddings().weight):
            yield

    def merged(self) -> Any:  # noqa: ANN401 - a transformers model
        """A plain transformers model on the CPU, adapters merged; of a quantised base, the dequantised weights.

        Where the policy is sharded, all ranks must ask for it.
        """
        with self.whole():
            plain = merged_copy(self.causal_lm)
        plain.generation_config = copy.deepcopy(self._generation_defaults)
        return plain

    # ------------------------------------------------------------------ the model underneath
    @property
    def causal_lm(self) -> Any:  # noqa: ANN401 - transformers' models are untyped
        """The transformers model itself, under PEFT too (adapters are injected in place and stay active)."""
        return self.model.get_base_model() if self.options.lora is not None else self.model  # type: ignore[operator]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that plain transformers (with adapters: PEFT) loads, tokenizer and chat template included.

        Rank 0 writes; where the policy is sharded, all ranks must ask for it.

        Raises:
            OSError: the folder cannot be written.
        """
        from safetensors import SafetensorError

        trained = {plain_name(name) for name, p in self.model.named_parameters() if p.requires_grad}
        state = whole_state(self._root, self.model, None if self.options.lora is None else trained)
        if dist.is_initialized() and dist.get_rank() != 0:
            return
        lm = self.causal_lm
        lm.generation_config, ours = self._generation_defaults, lm.generation_config
        written = (card := Path(folder) / "README.md").exists()
        try:
            self.model.save_pretrained(str(folder), state_dict=state)  # type: ignore[operator]  # PreTrainedModel or PeftModel
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from error
        finally:
            lm.generation_config = ours
        if not written:
            card.unlink(
                missing_ok=True
            )  # PEFT's, which says "More Information Needed" wherever it should say something
        self.tokenizer.save_pretrained(str(folder))

    def _find_turn_end(self) -> int:
        """The end-of-sequence id the chat template writes after an assistant turn (Gemma has one of its own)."""
        turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        tail = self.tokenizer(text[text.rindex("ANSWER") + 6 :], add_special_tokens=False)["input_ids"]
        ends = [i for i in tail if i in self.eos_ids]
        if ends:
            return int(ends[0])
        eos = self.tokenizer.eos_token_id
        return self.eos_ids[0] if eos is None else int(eos)

    def _renders(self, *, think: bool) -> str:
        turns = [{"role": "user", "content": "Q"}]
        text = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=think
        )
        return str(text)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformers model, which are never to be torn apart."""
    names = {name for m in model.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    return [m for m in model.modules() if type(m).__name__ in names]


def _eos_ids(lm: Any, tokenizer: Any) -> list[int]:  # noqa: ANN401 - transformers objects are untyped
    """Every id that ends a turn: the generation config's (one or several), the model's and the tokenizer's."""
    found: set[int] = set()
    for ids in (lm.generation_config.eos_token_id, lm.config.get_text_config().eos_token_id, tokenizer.eos_token_id):
        found.update([ids] if isinstance(ids, int) else ids or [])
    if not found:
        raise UserError(
            f"policy.model '{lm.config.name_or_path}' names no end-of-sequence token: set eos_token_id in its "
            "generation_config.json or tokenizer, otherwise no completion ever ends"
        )
    return sorted(found)
