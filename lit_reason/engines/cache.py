"""The key-value cache of the in-process engine: prompts once per group, completions in rows that come and go.

Rows are the sequences being generated, side by side. All of them write the same column at a step, whenever they joined,
and the columns form a ring: a row never outlives a full turn, so nothing is ever moved to make room. A row that ends is
replaced by the last row. Keys are rotated before they are stored, so the order of columns means nothing to attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_reason import attention

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_COLUMNS = 64
"""Columns allocated at first; doubled as completions grow."""


class Store:
    """Keys and values of every layer, (capacity, heads, width, D) each, allocated when first written."""

    def __init__(self, rows: int, width: int, most_rows: int, most_width: int) -> None:
        self.shape = (min(rows, most_rows), min(width, most_width))
        self.most = (most_rows, most_width)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer; `like` (_, heads, _, D) says of what kind."""
        if number not in self.layers:
            rows, width = self.shape
            shape = (rows, like.shape[1], width, like.shape[3])
            self.layers[number] = (like.new_zeros(shape), like.new_zeros(shape))
        return self.layers[number]

    def reserve(self, rows: int, width: int) -> None:
        """Make room for this many, at least doubling what grows; what is stored stays."""
        old = self.shape
        self.shape = (_grown(old[0], rows, self.most[0]), _grown(old[1], width, self.most[1]))
        if self.shape == old:
            return
        for number, pair in self.layers.items():
            grown = []
            for x in pair:
                y = x.new_zeros(self.shape[0], x.shape[1], self.shape[1], x.shape[3])
                y[: old[0], :, : old[1]] = x
                grown.append(y)
            self.layers[number] = (grown[0], grown[1])

    def move(self, source: int, to: int) -> None:
        """Copy one row over another."""
        for pair in self.layers.values():
            for x in pair:
                x[to] = x[source]


def _grown(size: int, wanted: int, most: int) -> int:
    return size if wanted <= size else min(max(wanted, 2 * size), most)


class Prefill:
    """A layout in which prompts, padded on the right, attend to themselves, and are remembered.

    Args:
        prompts: where they are stored, at rows first, first + 1, ...
        first: see above.
        width: length of the longest.
    """

    def __init__(self, prompts: Store, first: int, width: int) -> None:
        self.prompts, self.first, self.reach = prompts, first, width

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows = slice(self.first, self.first + len(key))
        for stored, new in zip(self.prompts.layer(layer, key), (key, value), strict=True):
            stored[rows, :, : self.reach] = new
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale).transpose(1, 2)


class Decode:
    """A layout in which each row attends to its group's prompt and to its own columns.

    A group's rows read its prompt together, one matrix product for all of them.

    Args:
        prompts: keys and values of the live groups' prompts, rows 0 to G - 1.
        own: keys and values of the rows, 0 to S - 1.
        reach: longest possible sequence.
    """

    def __init__(self, prompts: Store, own: Store, reach: int) -> None:
        self.prompts, self.own, self.reach = prompts, own, reach

    def arrange(self, group_of_row: Sequence[int], prompt_lengths: Sequence[int], device: torch.device) -> None:
        """Say which rows there are: row i belongs to group group_of_row[i]; to be called when that changes."""
        rank: list[int] = []
        counts = [0] * len(prompt_lengths)
        for group in group_of_row:
            rank.append(counts[group])
            counts[group] += 1
        self.rows, self.groups, self.most = len(rank), len(counts), max(counts)
        self.prompt_width = max(prompt_lengths)
        place = [group * self.most + r for group, r in zip(group_of_row, rank, strict=True)]
        self.in_order = place == list(range(self.groups * self.most))
        table = torch.zeros(self.groups * self.most, dtype=torch.int64)
        table[place] = torch.arange(self.rows)
        self.row_at = table.to(device)  # (G * most,) the row that stands there, row 0 where none does
        self.place = torch.tensor(place, device=device)  # (S,) and back
        self.prompt_hidden: Tensor | None = None
        if min(prompt_lengths) < self.prompt_width:
            lengths = torch.tensor(prompt_lengths, device=device)
            columns = torch.arange(self.prompt_width, device=device)
            self.prompt_hidden = (columns >= lengths[:, None])[:, None, None]  # (G, 1, 1, P)

    def step(self, column: int, first: int, last: int, own_hidden: Tensor | None) -> None:
        """Say where this step writes, and which columns first <= c < last it reads, less those hidden (S, 1, 1, _)."""
        self.column, self.first, self.last, self.own_hidden = column, first, last, own_hidden

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows, heads, _, width = query.shape
        kv_heads = key.shape[1]
        own_k, own_v = self.own.layer(layer, key)
        self.write(own_k, key)
        self.write(own_v, value)
        own_k, own_v = (x[:rows, :, self.first : self.last] for x in (own_k, own_v))
        prompt_k, prompt_v = (x[: self.groups, :, : self.prompt_width] for x in self.prompts.layer(layer, key))
        repeats = heads // kv_heads
        q = query.view(rows, kv_heads, repeats, width)
        if q.device.type == attention.ON_CPU:
            # each part by itself, joined by their log-normalisers
            prompt_out, prompt_n = attention.flash(
                self._by_group(q), prompt_k, prompt_v, attn_mask=_additive(self.prompt_hidden, q), scale=scale
            )
            own_out, own_n = attention.flash(q, own_k, own_v, attn_mask=_additive(self.own_hidden, q), scale=scale)
            weight = torch.sigmoid(self._by_row(prompt_n[..., None], repeats) - own_n[..., None])
            out = own_out.lerp_(self._by_row(prompt_out, repeats), weight.to(own_out.dtype))
        else:
            on_prompt = self._by_group(q * scale) @ prompt_k.transpose(2, 3)
            on_own = (q * scale) @ own_k.transpose(2, 3)
            if self.prompt_hidden is not None:
                on_prompt = on_prompt.masked_fill(self.prompt_hidden, -torch.inf)
            if self.own_hidden is not None:
                on_own = on_own.masked_fill(self.own_hidden, -torch.inf)
            weights = torch.cat([self._by_row(on_prompt, repeats), on_own], -1).softmax(-1)
            of_prompt, of_own = weights.split([self.prompt_width, self.last - self.first], -1)
            out = self._by_row(self._by_group(of_prompt) @ prompt_v, repeats) + of_own @ own_v
        attended: Tensor = out.reshape(rows, 1, heads, width)
        return attended

    def write(self, stored: Tensor, new: Tensor) -> None:
        """Put the rows' new keys or values (S, K, 1, D) into this step's column."""
        stored[: self.rows, :, self.column] = new[:, :, 0]

    def _by_group(self, x: Tensor) -> Tensor:
        """(S, K, r, D) -> (G, K, most * r, D)."""
        if not self.in_order:
            x = x[self.row_at]
        return x.view(self.groups, self.most, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _by_row(self, x: Tensor, repeats: int) -> Tensor:
        """(G, K, most * r, D) -> (S, K, r, D)."""
        x = x.unflatten(2, (self.most, repeats)).transpose(1, 2).flatten(0, 1)
        return x if self.in_order else x[self.place]


def _additive(hidden: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask to be added to scores."""
    return None if hidden is None else like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
