"""Attention that knows which tokens belong together, for any architecture on transformers' attention interface.

A model asks for the implementation `lit_reason`; without a layout that is transformers' own `sdpa`. A layout travels as
a keyword argument of the forward pass and decides what attends to what: `SharedPrompts` here for training, where the
completions of a group follow their prompt, which is there once; the rollout engine brings its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

NAME = "lit_reason"

REFUSED = ("softcap", "s_aux", "position_bias", "head_mask")
"""Options of an attention layer that change its result and that no layout knows."""


class Layout(Protocol):
    """What attends to what.

    Attributes:
        reach: length of the longest sequence; layers that see less far than this cannot use the layout.
    """

    reach: int

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one layer.

        Args:
            layer: its number.
            query: (R, H, L, D), positions already rotated in.
            key: (R, K, L, D), K key-value heads, a divisor of H.
            value: (R, K, L, D).
            scale: the scores are multiplied by it.

        Returns:
            (R, L, H, D).
        """
        ...


class UnknownAttentionError(Exception):
    """A layer computes attention in a way that layouts do not; the caller takes the plain road."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    layout: Layout | None = None,
    **options: Any,  # noqa: ANN401 - whatever an architecture passes on
) -> tuple[Tensor, None]:
    """The implementation registered with transformers; see `Layout.attend` for shapes."""
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    window = options.get("sliding_window")
    if any(options.get(name) is not None for name in REFUSED) or (window is not None and window < layout.reach):
        raise UnknownAttentionError
    layer = module.layer_idx
    assert isinstance(layer, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(layer, query, key, value, scale), None


def install(lm: Any) -> bool:  # noqa: ANN401 - a transformers model
    """Make a model that attends by `sdpa` attend by this module; False, and nothing done, where it cannot."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if lm.config._attn_implementation != "sdpa":  # noqa: SLF001 - there is no public name for it
        return False
    lm.set_attn_implementation(NAME)
    return bool(lm.config._attn_implementation == NAME)  # noqa: SLF001


def no_mask(device: torch.device) -> Tensor:
    """An `attention_mask` that keeps transformers from building one: 4-dimensional masks are passed on as they are."""
    return torch.zeros(1, 1, 1, 1, device=device)


class SharedPrompts:
    """One row of input that holds prompts once and the completions of each; a completion sees its prompt and itself.

    Exactly what attention over prompt + completion of each sequence alone computes, while all that is done token by
    token (projections, MLP, norms: most of the work) is done once for the prompt's tokens.

    Args:
        sequences: for every completion, the places in the row of its prompt's and its own tokens, (P_b + T_b,) int64,
            longest first; sequences side by side in a chunk are padded to the longest of it.
        tokens: length of the row.
        chunk: sequences attended to at once.
    """

    def __init__(self, sequences: Sequence[Tensor], tokens: int, chunk: int = 8) -> None:
        self.reach = max(len(s) for s in sequences)
        self.chunks: list[Tensor] = []
        self.place = torch.zeros(tokens, dtype=torch.int64)
        offset = 0
        for start in range(0, len(sequences), chunk):
            side_by_side = sequences[start : start + chunk]
            width = max(len(s) for s in side_by_side)
            index = torch.zeros(len(side_by_side), width, dtype=torch.int64)
            for row, sequence in enumerate(side_by_side):
                index[row, : len(sequence)] = sequence
                # a prompt's tokens come out the same in each of its sequences: the last one written is as good as any
                self.place[sequence] = offset + row * width + torch.arange(len(sequence))
            self.chunks.append(index)
            offset += index.numel()

    def to(self, device: torch.device) -> SharedPrompts:
        """Move to a device, in place."""
        self.chunks = [c.to(device, non_blocking=True) for c in self.chunks]
        self.place = self.place.to(device, non_blocking=True)
        return self

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:  # noqa: ARG002
        heads = query.shape[1]
        rows = [x[0].transpose(0, 1) for x in (query, key, value)]  # (N, heads, D)
        outputs = []
        for index in self.chunks:
            q, k, v = (x[index].transpose(1, 2) for x in rows)  # (b, heads, L, D)
            repeats = heads // k.shape[1]
            if repeats > 1:
                k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
            outputs.append(out.transpose(1, 2).flatten(0, 1))  # (b * L, H, D)
        return torch.cat(outputs)[self.place][None]
