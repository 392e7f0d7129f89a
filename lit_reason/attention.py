"""Attention that knows which tokens belong together, for any architecture on transformers' attention interface.

A model asks for the implementation `lit_reason`; without a layout that is transformers' own `sdpa`. A layout travels as
a keyword argument of the forward pass and decides what attends to what: `SharedPrompts` here for training, where the
completions of a group follow their prompt, which is there once; the rollout engine brings its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "lit_reason"

REFUSED = ("softcap", "s_aux", "position_bias", "head_mask")
"""Options of an attention layer that change its result and that no layout knows."""

ON_CPU = "cpu"
"""Where attention takes the road of `_TwoParts`, whose kernels are the CPU's."""

LIKE = 0.8
"""Sequences at least this share of the longest are padded to it; shorter ones are attended to apart."""


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


def attention(  # noqa: PLR0917 - transformers' signature
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
    known = value.shape[-1] == query.shape[-1] and all(options.get(name) is None for name in REFUSED)
    if not known or (window is not None and window < layout.reach):
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


@dataclass(kw_only=True, slots=True, frozen=True)
class Family:
    """A prompt and its completions in a row of input: the prompt's tokens, then those of each completion in turn.

    Attributes:
        start: place of the prompt's first token.
        prompt: tokens of the prompt.
        completions: tokens of each completion.
    """

    start: int
    prompt: int
    completions: tuple[int, ...]

    @property
    def end(self) -> int:
        """Place after the last token."""
        return self.start + self.prompt + sum(self.completions)


class SharedPrompts:
    """One row of input that holds prompts once and the completions of each; a completion sees its prompt and itself.

    Exactly what attention over prompt + completion of each sequence alone computes, while all that is done token by
    token (projections, MLP, norms: most of the work) is done once for the prompt's tokens.

    Args:
        families: what the row holds, in order, with nothing between.
    """

    def __init__(self, families: Sequence[Family]) -> None:
        self.families = families
        self.reach = max(f.prompt + max(f.completions) for f in families)
        self._padded: tuple[list[Tensor], Tensor] | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        # one type, as plain attention makes of them under autocast
        q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # (N, heads, D)
        repeats = q.shape[1] // k.shape[1]
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        if q.device.type == ON_CPU:
            attended: Tensor = _TwoParts.apply(q, k, v, self.families, scale)  # type: ignore[no-untyped-call]  # torch's
        else:
            attended = self._side_by_side(q, k, v, scale)
        return attended[None]

    def _side_by_side(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Through plain attention: the tokens of like-long sequences are copied side by side, prompts to each."""
        if self._padded is None:
            self._padded = self._pad(q.device)
        chunks, place = self._padded
        outputs = []
        for index in chunks:
            of_q, of_k, of_v = (x[index].transpose(1, 2) for x in (q, k, v))  # (b, H, L, D)
            out = F.scaled_dot_product_attention(of_q, of_k, of_v, is_causal=True, scale=scale)
            outputs.append(out.transpose(1, 2).flatten(0, 1))  # (b * L, H, D)
        return torch.cat(outputs)[place]

    def _pad(self, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Places in the row of the tokens of each sequence (b, L), in chunks; and places in all of those of each token.

        Padding stands on the right, where causal attention never looks.
        """
        sequences = []
        for family in self.families:
            prompt, start = torch.arange(family.start, family.start + family.prompt), family.start + family.prompt
            for length in family.completions:
                sequences.append(torch.cat([prompt, torch.arange(start, start + length)]))
                start += length
        chunks: list[list[Tensor]] = []
        for sequence in sorted(sequences, key=len, reverse=True):
            if not chunks or len(sequence) < LIKE * len(chunks[-1][0]):
                chunks.append([])
            chunks[-1].append(sequence)
        place = torch.zeros(self.families[-1].end, dtype=torch.int64)
        indices = []
        offset = 0
        for chunk in chunks:
            index = torch.zeros(len(chunk), len(chunk[0]), dtype=torch.int64)
            for row, sequence in enumerate(chunk):
                index[row, : len(sequence)] = sequence
                # a prompt's tokens come out the same in each of its sequences: the last one written is as good as any
                place[sequence] = offset + row * len(chunk[0]) + torch.arange(len(sequence))
            indices.append(index.to(device))
            offset += index.numel()
        return indices, place.to(device)


flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - gives the log-normaliser, too
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001


class _TwoParts(torch.autograd.Function):
    """Attention to the prompt and to the own tokens apart, joined by their log-normalisers: no copy, no padding.

    The backward pass of flash attention needs the joint output and log-normaliser only, whichever part it runs on.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch's signature
        ctx: Any,  # noqa: ANN401 - torch's context
        q: Tensor,
        k: Tensor,
        v: Tensor,
        families: Sequence[Family],
        scale: float,
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # (N, H, D)
        out = torch.empty_like(q)
        normaliser = q.new_empty(q.shape[:2], dtype=torch.float32)  # (N, H)
        for start, count, length in _runs(families):
            o, n = flash(*_heads_first((q, k, v), start, count, length), 0.0, True, scale=scale)
            _put(out, o, start, count, length)
            _put(normaliser, n, start, count, length)
        for family in families:
            middle = family.start + family.prompt
            prompt = _heads_first((k, v), family.start, 1, family.prompt)
            o, n = flash(*_heads_first((q,), middle, 1, family.end - middle), *prompt, 0.0, False, scale=scale)
            own_out, own_n = out[middle : family.end], normaliser[middle : family.end]
            other_out, other_n = o[0].transpose(0, 1), n[0].transpose(0, 1)
            own_out.lerp_(other_out, torch.sigmoid(other_n - own_n)[..., None].to(out.dtype))
            torch.logaddexp(own_n, other_n, out=own_n)
        ctx.save_for_backward(q, k, v, out, normaliser)
        ctx.families, ctx.scale = families, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # noqa: ANN401
        q, k, v, out, normaliser = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        gradient = gradient.contiguous()

        def part(queries: tuple[int, int, int], keys: tuple[int, int, int], *, causal: bool) -> tuple[Tensor, ...]:
            g, of_q, o, n = _heads_first((gradient, q, out, normaliser[..., None]), *queries)
            of_k, of_v = _heads_first((k, v), *keys)
            parts: tuple[Tensor, ...] = _flash_backward(
                g, of_q, of_k, of_v, o, n.squeeze(-1), 0.0, causal, scale=ctx.scale
            )
            return parts

        for run in _runs(ctx.families):
            for grad, own in zip(grads, part(run, run, causal=True), strict=True):
                _put(grad, own, *run)
        for family in ctx.families:
            prompt, rest = (family.start, 1, family.prompt), family.start + family.prompt
            completions = (rest, 1, family.end - rest)
            parts = part(completions, prompt, causal=False)
            for grad, more, where in zip(grads, parts, (completions, prompt, prompt), strict=True):
                grad[where[0] : where[0] + where[2]] += more[0].transpose(0, 1)
        return grads[0], grads[1], grads[2], None, None


def _runs(families: Sequence[Family]) -> Iterator[tuple[int, int, int]]:
    """(place, how many, length) of prompts, and of completions of the same length that follow each other."""
    for family in families:
        yield family.start, 1, family.prompt
        start = family.start + family.prompt
        for length, same in groupby(family.completions):
            count = len(list(same))
            yield start, count, length
            start += count * length


def _heads_first(tensors: Sequence[Tensor], start: int, count: int, length: int) -> list[Tensor]:
    """(N, H, D) -> (count, H, length, D), a view."""
    return [x[start : start + count * length].unflatten(0, (count, length)).transpose(1, 2) for x in tensors]


def _put(to: Tensor, values: Tensor, start: int, count: int, length: int) -> None:
    """(count, H, length, ...) into (N, H, ...)."""
    to[start : start + count * length].unflatten(0, (count, length)).copy_(values.transpose(1, 2))
