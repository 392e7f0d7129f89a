"""Low-rank adapters and quantised weights: put on, made plain for a while, merged for good."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_reason.policy_options import LoRA
from lit_reason.sharding import plain_name
from lit_reason.types import UserError

FREE_SHARE = 0.5
"""Most of an accelerator's free memory that dequantised weights may take during a rollout; its caches need the rest."""


def add_adapter(lm: Any, lora: LoRA) -> nn.Module:  # noqa: ANN401 - transformers' models are untyped
    """The model with adapters, all else frozen.

    Raises:
        UserError: PEFT refuses the options.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        task_type="CAUSAL_LM",
    )
    try:
        adapted: nn.Module = get_peft_model(lm, config)
    except ValueError as error:
        raise UserError(f"policy.lora: {str(error).splitlines()[0]}") from error
    return adapted


def quantised(model: nn.Module) -> bool:
    """Whether some layer still multiplies by weights of 4 or 8 bits."""
    return any(_bits(m) < 16 for m in model.modules())


@contextmanager
def plain_weights(model: nn.Module, head: Tensor) -> Iterator[None]:
    """Inside, weights are what a model without adapters and quantisation would have; then all is as before.

    Adapters stay apart where merging would change what the policy says: weights of less than float32, in which small
    updates vanish, and tied embeddings, of which one end is adapted and the other is not. Quantised weights are
    dequantised unless memory is short; those of 8 bits on a CPU alone, for elsewhere their products round the inputs.

    Args:
        model: a transformers or PEFT model.
        head: weight of its language-modelling head.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    if any(_may_dequantise(m) for m in model.modules()) and _room(model):
        with _dequantised(model, head.dtype):
            yield
        return
    bases = [layer.get_base_layer() for layer in layers]
    if any(_bits(base) < 16 or base.weight.dtype != torch.float32 or base.weight is head for base in bases):
        yield
        return
    kept: list[tuple[Any, Tensor]] = []
    try:
        for layer in layers:
            base = layer.get_base_layer().weight
            kept.append((base, base.data))
            layer.merge(safe_merge=True)  # writes to a copy, so the weight can be put back to the bit
        yield
    finally:
        for layer, (base, weight) in zip(layers, kept, strict=False):
            base.data = weight
            layer.merged_adapters.clear()


@torch.no_grad()
def merged_copy(lm: Any) -> Any:  # noqa: ANN401 - a transformers model
    """A plain transformers model on the CPU: adapters merged, quantised weights dequantised.

    The base is what was trained on, so a quantised base stays as coarse as it was: the original weights would be finer,
    but the adapters have learnt around the coarse ones, and would no longer say what they said in training.

    Args:
        lm: the causal LM, adapters injected; its weights whole.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoModelForCausalLM

    state: dict[str, Tensor] = {}
    inside: tuple[str, ...] = ()  # tuner layers, whose parts are not the plain model's
    for wrapped, module in lm.named_modules():
        path = plain_name(f"{wrapped}.").removesuffix(".")
        if path.startswith(inside):
            continue
        layer = module if isinstance(module, BaseTunerLayer) else None
        base: Any = module if layer is None else layer.get_base_layer()
        if layer is not None:
            inside = (*inside, f"{path}.")
        own = dict(base.named_parameters(recurse=False)) | dict(base.named_buffers(recurse=False))
        for name, value in own.items():
            found = value.detach()
            if name == "weight" and (layer is not None or _bits(base) < 16):
                dtype = lm.dtype if _bits(base) < 16 else found.dtype
                found = _merged(layer, _dense(base).float()).to(dtype)
            state[f"{path}.{name}".removeprefix(".")] = found.cpu()
    config = lm.config.to_dict()
    config.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(type(lm.config).from_dict(config), dtype=lm.dtype)
    found = plain.load_state_dict(state, strict=False)
    tied = set(getattr(plain, "_tied_weights_keys", None) or ())
    absent = [name for name in found.missing_keys if name not in tied]
    assert not absent, absent
    plain.generation_config = copy.deepcopy(lm.generation_config)
    return plain.eval()


@contextmanager
def _dequantised(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, quantised layers are plain ones, with the adapters merged where nothing is lost by it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent, name, child in _children(model):
            layer: Any = child if isinstance(child, BaseTunerLayer) else None
            base: Any = child if layer is None else layer.get_base_layer()
            if not _may_dequantise(base) or isinstance(parent, BaseTunerLayer):
                continue
            weight = _dense(base).to(base.compute_dtype if _bits(base) == 4 else dtype)
            simple = weight.dtype == dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)
            holder, place = parent, name
            if layer is not None and not simple:
                holder, place = layer, "base_layer"
            elif layer is not None:
                weight = _merged(layer, weight)
            swapped.append((holder, place, getattr(holder, place)))
            setattr(holder, place, _plain(base, weight, nn.Linear if simple else _Dense))
        yield
    finally:
        for holder, place, was in swapped:
            setattr(holder, place, was)


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]


class _Dense(nn.Linear):
    """A quantised layer with the weight it stands for: computes in the weight's type, answers in the input's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


def _plain(base: Any, weight: Tensor, kind: type[nn.Linear]) -> nn.Linear:  # noqa: ANN401 - a layer of bitsandbytes
    """A layer with another weight; `nn.Linear` itself is what engines know how to make fast."""
    with torch.device("meta"):
        plain = kind(base.in_features, base.out_features, bias=False)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if base.bias is not None:
        plain.bias = nn.Parameter(base.bias.detach().to(weight.dtype), requires_grad=False)
    return plain.train(base.training)


def _bits(module: nn.Module) -> int:
    """Bits of a layer's weights, 16 standing for any that are no integers; by name, so that nothing is imported."""
    kinds = {cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("bitsandbytes.")}
    return 4 if "Linear4bit" in kinds else 8 if "Linear8bitLt" in kinds else 16


def _may_dequantise(module: Any) -> bool:  # noqa: ANN401 - a module of any kind
    """Whether a quantised layer's training forward multiplies by its dequantised weight."""
    return _bits(module) == 4 or (_bits(module) == 8 and module.weight.device.type == "cpu")


def _dense(base: Any) -> Tensor:  # noqa: ANN401 - a linear layer of any kind
    """A layer's weight, dequantised."""
    if _bits(base) == 16:
        weight: Tensor = base.weight.detach()
        return weight
    import bitsandbytes as bnb

    if _bits(base) == 4:  # sharding keeps the weight's numbers, but not the state beside them
        state = getattr(base.weight, "quant_state", None) or base.quant_state
        dense: Tensor = bnb.functional.dequantize_4bit(base.weight.data, state)
        return dense
    numbers, scale = base.weight.data, base.weight.SCB
    if scale is None:  # the first forward pass has taken them over
        numbers, scale = base.state.CB, base.state.SCB
    dense = numbers * (scale / 127).unsqueeze(1)
    return dense.to(torch.float32)


def _merged(layer: Any, weight: Tensor) -> Tensor:  # noqa: ANN401 - a tuner layer of PEFT, or None
    """A weight with what a layer's adapters add to it."""
    for name in () if layer is None else layer.active_adapters:
        weight = weight + layer.get_delta_weight(name).to(weight.dtype)
        if name in layer.lora_magnitude_vector:  # DoRA: the direction is learnt, and the length of each row beside it
            across = 0 if layer.fan_in_fan_out else 1
            length = torch.linalg.vector_norm(weight, dim=across, keepdim=True)
            weight = weight * (layer.lora_magnitude_vector[name].weight.view(length.shape) / length)
    return weight


def _room(model: nn.Module) -> bool:
    """Whether dequantised weights fit into memory."""
    layers: list[Any] = [m for m in model.modules() if _bits(m) == 4]
    device = layers[0].weight.device if layers else torch.device("cpu")
    if device.type != "cuda":
        return True
    needed = sum(m.in_features * m.out_features * m.compute_dtype.itemsize for m in layers)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return bool(needed <= FREE_SHARE * free)
