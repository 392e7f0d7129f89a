"""One decoding step of a Llama-like model written out in a straight line, for small models on slow dispatchers.

A step of a small model costs as much in Python as in arithmetic. This is transformers' forward pass for one token a
row, without its modules in between: the same operations, a quarter of the dispatches. On a CPU it does not multiply a
few dozen rows by weights as they are stored, which takes two to four times as long there as the other ways around:
small weights are copied and transposed once for a rollout, large ones are multiplied by the transposed rows. Under
autocast, weights are cast once for a rollout instead of at each step. The engine compares its first step with the
model's own and goes on with that where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from lit_reason.attention import Layout

ARCHITECTURES = {"llama", "mistral", "qwen2", "qwen3"}
"""Model types whose decoder layer is the one below; Qwen3's norms of queries and keys included."""

SMALL = 2**18
"""Numbers in the largest weight that is copied; above it the copy gains nothing over transposing the rows."""

Project = Callable[[Tensor], Tensor]
"""(S, in) -> (S, out)."""


class Straight:
    """The step of a model, bound to its weights as they are now.

    Args:
        lm: a transformers model of a known architecture.
        longest: the longest sequence it will meet.
    """

    def __init__(self, lm: Any, longest: int) -> None:  # noqa: ANN401 - a transformers model
        model = lm.base_model
        turn = lm.device.type == "cpu" and lm.dtype == torch.float32
        self.embed = model.embed_tokens
        self.layers = [_Layer(number, layer, turn) for number, layer in enumerate(model.layers)]
        self.final = _norm(model.norm)
        head = lm.get_output_embeddings()
        copied = turn or _autocast(model.embed_tokens.weight) is not None
        self.head: Project | None = _joined([head], turn) if copied and type(head) is nn.Linear else None
        """The language-modelling head on what a step gives; None where the policy's own will do."""
        like = model.embed_tokens.weight.new_zeros(1, 1, 1)
        cos, sin = model.rotary_emb(like, position_ids=torch.arange(longest, device=like.device)[None])
        half = sin.shape[-1] // 2
        # rolling by half a head then needs no negation
        self.angles = torch.stack([cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)], 1)  # (L, 2, head)

    def __call__(self, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Last hidden states (S, D) of the tokens (S, 1) at positions (S, 1)."""
        hidden: Tensor = self.embed(ids[:, 0])
        cos, sin = self.angles.index_select(0, positions[:, 0]).split(1, 1)  # (S, 1, head) each
        for layer in self.layers:
            hidden = layer(hidden, cos, sin, layout)
        return self.final(hidden)


def straight(lm: Any, longest: int) -> Straight | None:  # noqa: ANN401 - a transformers model
    """The step for a model, or None for an architecture it is not written for."""
    return Straight(lm, longest) if lm.config.model_type in ARCHITECTURES else None


class _Layer:
    """One decoder layer."""

    def __init__(self, number: int, layer: Any, turn: bool) -> None:  # noqa: ANN401 - a transformers decoder layer
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.width, self.scale = number, attention.head_dim, attention.scaling
        self.head_norms = [_norm(norm) if (norm := getattr(attention, n, None)) else None for n in ("q_norm", "k_norm")]
        config = attention.config
        self.heads = config.num_attention_heads, config.num_key_value_heads
        self.qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj], turn, layer.input_layernorm)
        self.out = _joined([attention.o_proj], turn)
        self.gate_up = _joined([mlp.gate_proj, mlp.up_proj], turn, layer.post_attention_layernorm)
        self.down = _joined([mlp.down_proj], turn)
        self.activation = mlp.act_fn

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        queries, keys = self.heads
        heads = self.qkv(hidden).view(len(hidden), -1, self.width)  # (S, queries + 2 keys, head)
        turned, v = heads.split([queries + keys, keys], 1)
        if self.head_norms[0] is not None and self.head_norms[1] is not None:
            q, k = turned.split([queries, keys], 1)
            turned = torch.cat([self.head_norms[0](q), self.head_norms[1](k)], 1)
        turned = torch.addcmul(turned * cos, turned.roll(self.width // 2, -1), sin)
        q, k = turned.split([queries, keys], 1)
        attended = layout.attend(self.number, q[:, :, None], k[:, :, None], v[:, :, None], self.scale)
        hidden = hidden + self.out(attended.flatten(1))
        gate, up = self.gate_up(hidden).chunk(2, -1)
        return hidden + self.down(self.activation(gate) * up)


def _joined(modules: Sequence[Any], turn: bool, norm: Any = None) -> Project:  # noqa: ANN401 - transformers' modules
    """Projections of the same input, normalised first where there is a norm, as one: their outputs side by side.

    With `turn`, weights are not multiplied as they are stored.
    """
    linears = [linear for module in modules if (linear := _plain(module)) is not None]
    biased = [linear.bias is not None for linear in linears]
    alike = len(linears) == len(modules) and all(biased) == any(biased)
    cast = _autocast(linears[0].weight) if linears else None
    if alike and (cast is not None or (turn and all(linear.weight.numel() <= SMALL for linear in linears))):
        weight = torch.cat([linear.weight for linear in linears])
        fold = norm is not None and cast is None
        if fold:
            weight = weight * norm.weight  # what the norm would multiply with at each step
        if cast is not None:
            weight = weight.to(cast)  # once, where autocast does it at each step
        bias = torch.cat([linear.bias for linear in linears]) if all(biased) else None
        first = None if norm is None else _norm(norm, weighted=not fold)
        if turn:
            weight = weight.t().contiguous()
            last: Project = (
                partial(torch.mm, mat2=weight) if bias is None else partial(_affine, weight=weight, bias=bias)
            )
        else:
            last = partial(F.linear, weight=weight, bias=bias)
    else:
        first = None if norm is None else _norm(norm)
        projects = [_bare(module, turn) for module in modules]
        last = projects[0] if len(projects) == 1 else lambda x: torch.cat([project(x) for project in projects], -1)
    return last if first is None else lambda x: last(first(x))


def _autocast(weight: Tensor) -> torch.dtype | None:
    """The type that autocast multiplies a weight in; None where it is the weight's own."""
    device = weight.device.type
    if weight.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight)


def _plain(module: Any) -> nn.Linear | None:  # noqa: ANN401 - a projection of any kind
    """The linear layer that a projection is, also below a merged adapter; None where it does more."""
    base = module.get_base_layer() if getattr(module, "merged", False) else module
    return base if type(base) is nn.Linear else None


def _bare(module: Any, turn: bool) -> Project:  # noqa: ANN401 - as above
    """A projection without the module around it, where that does nothing more."""
    linear = _plain(module)
    if linear is None:
        return module  # type: ignore[no-any-return]  # modules are callable
    return partial(_turned if turn else F.linear, weight=linear.weight, bias=linear.bias)


def _turned(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = torch.mm(weight, x.t()).t().contiguous()
    return product if bias is None else product.add_(bias)


def _norm(module: Any, *, weighted: bool = True) -> Project:  # noqa: ANN401 - one of transformers' many RMSNorms
    weight = module.weight
    if weight.device.type != "cpu":  # where a launch costs more than what it computes
        return partial(F.rms_norm, normalized_shape=weight.shape, weight=weight, eps=module.variance_epsilon)
    least = weight.new_full((1,), module.variance_epsilon, dtype=torch.float32)

    def norm(x: Tensor) -> Tensor:
        # in float32 as the module does, whatever the weights are
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.addcmul(least, length, length, value=1 / x.shape[-1]).rsqrt_()
        normed = (wide * scale).to(x.dtype)
        return normed * weight if weighted else normed

    return norm
