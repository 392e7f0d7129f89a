"""The run's own code on tensors that have shapes and no data: how much memory it would hold at most.

Nothing is loaded and nothing computed. Each operation only says what it would allocate, and a tensor counts for as long
as something, autograd included, holds on to it: whatever an architecture saves for the backward pass is seen, not
guessed.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_reason.adapters import add_adapter
from lit_reason.attention import UnknownAttentionError, install, no_mask
from lit_reason.batching import collate
from lit_reason.engines.cache import FIRST_COLUMNS, Decode
from lit_reason.engines.in_process import _Batch
from lit_reason.loading import load_chat_template, load_model, load_tokenizer, resolve
from lit_reason.policy import Policy, _eos_ids
from lit_reason.policy_options import PolicyOptions
from lit_reason.rollout import Request, Sampling
from lit_reason.types import MicroBatch, Rollout


class Ledger(TorchDispatchMode):
    """Counts the bytes of living tensors while operations run under it.

    Attributes:
        live: bytes held now.
        peak: most bytes held at once since `mark`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's signature
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def mark(self) -> int:
        """Start a new peak; the bytes held now."""
        gc.collect()
        self.peak = self.live
        return self.live

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001 - two objects may stand for one storage
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class Hollow(Policy):
    """A policy of which only the tokenizer is real; its weights are on the meta device.

    Args:
        options: which model, and how it is held.
        dtype: what the Trainer's precision makes of all weights; None leaves them as they are.
    """

    def __init__(self, options: PolicyOptions, dtype: torch.dtype | None) -> None:
        nn.Module.__init__(self)
        self.options = options
        self.tokenizer = load_tokenizer(options.model, options.revision)
        load_chat_template(self.tokenizer, options.chat_template, options.model)
        with torch.device("meta"):
            lm = load_model(
                _base_of(options.model),
                revision=options.revision,
                dtype=options.dtype,
                attention=options.attention,
                random_weights=True,
            )
            model = lm if options.lora is None else add_adapter(lm, options.lora)
        self.eos_ids = _eos_ids(lm, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        self.pad_id = self.eos_ids[0] if pad is None else pad
        self.context = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
        self.turn_end_id = self._find_turn_end()
        self.template_knows_think = self._renders(think=True) != self._renders(think=False)
        if options.gradient_checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model = model if dtype is None else model.to(dtype)
        self.packs = True
        self.base = None
        self.window = 10**9 if options.attention in (None, "sdpa") and install(self.causal_lm) else 0
        self._frozen_reference = []


class Simulation:
    """A policy's memory in the phases of a run.

    Args:
        options: which model, and how it is held.
        precision: the Trainer's.

    Attributes:
        policy: the hollow one.
        weights: its bytes.
    """

    def __init__(self, options: PolicyOptions, precision: str = "32-true") -> None:
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.ledger = Ledger()
        kind = {"bf": torch.bfloat16, "16": torch.float16}.get(precision[:2])
        self.compute = kind if precision.endswith("mixed") else None
        self.policy = Hollow(options, kind if precision.endswith("true") else None)
        with self.running():
            _take_shape(self.policy)
        self.weights = self.ledger.mark()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, tensors are hollow and counted."""
        mixed = nullcontext() if self.compute is None else torch.autocast("cpu", self.compute)
        with self.fake, self.ledger, mixed:
            yield

    def update(self, rollouts: Sequence[Rollout], *, sharing: bool, packing: bool, again: bool) -> tuple[int, int]:
        """A micro-batch forward and backward.

        Args:
            rollouts: of the micro-batch.
            sharing: as `collate` takes it.
            packing: likewise.
            again: whether gradients of another micro-batch are there already.

        Returns:
            Bytes that the backward pass waits for when the head begins, and the most at any time; gradients that were
            there before are in neither.
        """
        batch = collate(rollouts, sharing=sharing, packing=packing)
        self.policy.train()
        try:
            for _ in range(1 + again):
                held, peak = self._backward(batch, sum(r.length for r in rollouts))
        except (UnknownAttentionError, TypeError):  # the architecture's attention knows no layouts
            if not sharing:
                raise
            self.policy.window = 0
            self.policy.causal_lm.set_attn_implementation("sdpa")
            return self.update(rollouts, sharing=False, packing=packing, again=again)
        self.policy.zero_grad()
        return held, peak

    def _backward(self, batch: MicroBatch, scored: int) -> tuple[int, int]:
        before = self.ledger.mark()
        with self.running():
            ids = torch.zeros(batch.input_ids.shape, dtype=torch.int64)
            extra = {} if batch.layout is None else {"layout": batch.layout, "attention_mask": no_mask(ids.device)}
            lm = self.policy.causal_lm
            hidden = lm.base_model(input_ids=ids, position_ids=ids.clone(), use_cache=False, **extra).last_hidden_state
            held = self.ledger.live - before
            tokens = torch.zeros(scored, dtype=torch.int64)
            logprobs, _ = self.policy._score_tokens(hidden.flatten(0, 1)[tokens], tokens, 1.0)  # noqa: SLF001 - the policy's own, less what looks at data
            del hidden
            logprobs.sum().backward()
        return held, self.ledger.peak - before

    def rollout(self, prompts: Sequence[Tensor], completions: int, sampling: Sampling) -> tuple[int, int]:
        """Completions by the in-process engine, each as long as it may be.

        Args:
            prompts: (P_i,) int64 each.
            completions: of each prompt.
            sampling: how they are drawn.

        Returns:
            Bytes of the key-value cache in the end, and the most held at any time, the cache included.
        """
        reach = max(map(len, prompts)) + sampling.max_new_tokens
        samples = range(min(completions, sampling.concurrent))  # there are never more at once
        requests = [Request(prompt_ids=p, streams=tuple(samples)) for p in prompts]
        before = self.ledger.mark()
        layers = self._adapted()
        self.policy.eval()
        with self.running(), torch.no_grad():
            for layer in layers if self.merges() else []:
                layer.merged_adapters.extend(layer.active_adapters)  # the caller counts the merged weights
            batch = _Batch(self.policy, requests, sampling, reach)
            batch.layout = Decode(batch.prompts, batch.own, reach)
            batch.checked = True  # nothing is computed that could be compared
            batch.waiting.reverse()  # the longest are together in the end
            while batch.waiting and len(batch.rows) < batch.capacity:
                batch._admit(batch.capacity - len(batch.rows))  # noqa: SLF001 - its steps, less those that look at data
            columns = FIRST_COLUMNS
            while columns < sampling.max_new_tokens:
                batch.now = columns
                batch._prepare()  # noqa: SLF001
                columns *= 2
            if sampling.max_new_tokens > 1:
                batch.now = sampling.max_new_tokens - 1
                batch._prepare()  # noqa: SLF001
                batch._step()  # noqa: SLF001
            for layer in layers:
                layer.merged_adapters.clear()
        stores = (batch.own, batch.prompts)
        cache = sum(x.nbytes for store in stores for pair in store.layers.values() for x in pair)
        return cache, self.ledger.peak - before

    def merges(self) -> bool:
        """Whether a rollout has merged weights beside those they are made of, see `adapters.plain_weights`."""
        head = self.policy.causal_lm.get_output_embeddings().weight
        weights = [layer.get_base_layer().weight for layer in self._adapted()]
        if self.policy.options.quantization is not None:
            return False
        return bool(weights) and all(w.dtype == torch.float32 and w is not head for w in weights)

    def adapted(self) -> int:
        """Bytes of the weights that have adapters."""
        return sum(layer.get_base_layer().weight.nbytes for layer in self._adapted())

    def _adapted(self) -> list[Any]:
        return [m for m in self.policy.modules() if isinstance(m, BaseTunerLayer)]


def _take_shape(module: nn.Module) -> None:
    """Put hollow tensors of the CPU in the place of the meta device's; tied ones stay tied."""
    made: dict[int, Any] = {}
    for part in module.modules():
        for own in (part._parameters, part._buffers):  # noqa: SLF001 - `to_empty` would untie
            for name, value in own.items():
                if value is not None and id(value) not in made:
                    new = torch.empty_like(value, device="cpu")
                    made[id(value)] = nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new
                own[name] = None if value is None else made[id(value)]


def _base_of(model: str) -> str:
    """The model that an adapter folder adapts; any other model itself."""
    where = Path(resolve(model))
    if not (where / "adapter_config.json").is_file():
        return model
    from peft import PeftConfig

    return _base_of(str(PeftConfig.from_pretrained(str(where)).base_model_name_or_path))
