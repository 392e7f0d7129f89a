"""One decoding step of a Llama-like model written out in a straight line, for small models on slow dispatchers.

A step of a small model costs as much in Python as in arithmetic. This is transformers' forward pass for one token a
row, on the model's own weights, without its modules in between: the same operations, a third of the dispatches. The
engine compares its first step with the model's own and goes on with that where they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from lit_reason.attention import Layout

ARCHITECTURES = {"llama", "mistral", "qwen2", "qwen3"}
"""Model types whose decoder layer is the one below; Qwen3's norms of queries and keys included."""

Step = Callable[[Tensor, Tensor, "Layout"], Tensor]
"""(token ids (S, 1), positions (S, 1), layout) -> last hidden states (S, D)."""


def straight(lm: Any) -> Step | None:  # noqa: ANN401 - a transformers model
    """The step for a model, or None for an architecture it is not written for; bound to the weights as they are now."""
    if lm.config.model_type not in ARCHITECTURES:
        return None
    model = lm.base_model
    layers = [_Layer(number, layer) for number, layer in enumerate(model.layers)]
    final = _norm(model.norm)

    def step(ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        hidden: Tensor = model.embed_tokens(ids[:, 0])  # (S, D)
        cos, sin = model.rotary_emb(hidden[:, None], position_ids=positions)  # (S, 1, head)
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)  # rolling by half a head then needs no negation
        for layer in layers:
            hidden = layer(hidden, cos, sin, layout)
        return final(hidden)

    return step


class _Layer:
    """One decoder layer, its weights looked up once."""

    def __init__(self, number: int, layer: Any) -> None:  # noqa: ANN401 - a transformers decoder layer
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.width, self.scale = number, attention.head_dim, attention.scaling
        self.norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.head_norms = [_norm(getattr(attention, name, None)) for name in ("q_norm", "k_norm")]
        self.q, self.k, self.v, self.o = (_linear(getattr(attention, f"{name}_proj")) for name in "qkvo")
        self.gate, self.up, self.down = (_linear(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down"))
        self.activation = mlp.act_fn

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        x = self.norms[0](hidden)
        q, k, v = (project(x).view(len(x), -1, self.width) for project in (self.q, self.k, self.v))  # (S, heads, head)
        q, k = (norm(y) for norm, y in zip(self.head_norms, (q, k), strict=True))
        q, k = (torch.addcmul(y * cos, y.roll(self.width // 2, -1), sin) for y in (q, k))
        attended = layout.attend(self.number, q[:, :, None], k[:, :, None], v[:, :, None], self.scale)
        hidden = hidden + self.o(attended.flatten(1))
        x = self.norms[1](hidden)
        return hidden + self.down(self.activation(self.gate(x)) * self.up(x))


def _linear(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A projection without the module around it, where that does nothing more; a merged adapter is such a module."""
    base: Any = module.get_base_layer() if getattr(module, "merged", False) else module  # type: ignore[operator]  # PEFT's
    if type(base) is not nn.Linear:
        return module
    weight, bias = base.weight, base.bias
    return lambda x: F.linear(x, weight, bias)


def _norm(module: Any) -> Callable[[Tensor], Tensor]:  # noqa: ANN401 - one of transformers' many RMSNorms
    if module is None:
        return lambda x: x
    weight, epsilon = module.weight, module.variance_epsilon

    def norm(x: Tensor) -> Tensor:
        # in float32 as the module does, whatever the weights are
        normed: Tensor = weight * F.rms_norm(x.float(), x.shape[-1:], None, epsilon).to(x.dtype)
        return normed

    return norm
