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
        self._views: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._unused: Tensor | None = None

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
        self._views.clear()

    def step(self, column: int, first: int, last: int, own_hidden: Tensor | None) -> None:
        """Say where this step writes, and which columns first <= c < last it reads, less those hidden (S, 1, 1, _)."""
        self.column, self.first, self.last, self.own_hidden = column, first, last, own_hidden

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows, heads, _, width = query.shape
        kv_heads = key.shape[1]
        own_k, own_v = self.own.layer(layer, key)
        self.write(own_k, key)
        self.write(own_v, value)
        pairs, columns = rows * kv_heads, self.last - self.first
        read = (pairs, columns, width), (width * own_k.shape[2], width, 1), self.first * width
        own_k, own_v = own_k.as_strided(*read), own_v.as_strided(*read)
        prompt_k, prompt_v, prompt_mask = self._prompt(layer, key)
        repeats = heads // kv_heads
        q = query.contiguous().view(rows, kv_heads, repeats, width)
        if self._unused is None:
            self._unused = q.new_zeros(1, 1, 1)  # baddbmm wants something to multiply by zero
        on_own = torch.baddbmm(self._unused, q.view(pairs, repeats, width), own_k.transpose(1, 2), beta=0, alpha=scale)
        if self.own_hidden is not None:
            on_own.view(rows, kv_heads, repeats, columns).masked_fill_(self.own_hidden, -torch.inf)
        if q.device.type == attention.ON_CPU:
            # the prompt joins by its log-normaliser, as if it were one more column
            of_prompt, normaliser = attention.flash(
                self._by_group(q), prompt_k, prompt_v, attn_mask=prompt_mask, scale=scale
            )
            of_prompt = self._by_row(of_prompt, repeats).reshape(pairs, repeats, width)
            normaliser = self._by_row(normaliser[..., None], repeats).reshape(pairs, repeats, 1)
            weights = torch.cat([on_own, normaliser], -1).softmax(-1).to(own_v.dtype)
            of_own, rest = weights.split([columns, 1], -1)
            out = torch.baddbmm(of_prompt * rest, of_own, own_v)
        else:
            on_prompt = self._by_group(q * scale) @ prompt_k.transpose(2, 3)
            if self.prompt_hidden is not None:
                on_prompt = on_prompt.masked_fill(self.prompt_hidden, -torch.inf)
            weights = torch.cat([self._by_row(on_prompt, repeats).flatten(0, 1), on_own], -1).softmax(-1)
            of_prompt, of_own = weights.split([self.prompt_width, columns], -1)
            of_prompt = self._by_group(of_prompt.unflatten(0, (rows, kv_heads))) @ prompt_v
            out = torch.baddbmm(self._by_row(of_prompt, repeats).flatten(0, 1), of_own, own_v)
        return out.view(rows, 1, heads, width)

    def _prompt(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (G, K, P, D) of the live groups' prompts, and what the CPU's kernel adds to their scores."""
        if layer not in self._views:
            keys, values = (x[: self.groups, :, : self.prompt_width] for x in self.prompts.layer(layer, like))
            mask = None
            if self.prompt_hidden is not None and like.device.type == attention.ON_CPU:
                mask = like.new_zeros(self.prompt_hidden.shape).masked_fill_(self.prompt_hidden, -torch.inf)
            self._views[layer] = keys, values, mask
        return self._views[layer]

    def write(self, stored: Tensor, new: Tensor) -> None:
        """Put the rows' new keys or values (S, K, 1, D) into this step's column."""
        stored[: self.rows, :, self.column] = new.squeeze(2)

    def _by_group(self, x: Tensor) -> Tensor:
        """(S, K, r, D) -> (G, K, most * r, D)."""
        if not self.in_order:
            x = x.index_select(0, self.row_at)
        return x.view(self.groups, self.most, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _by_row(self, x: Tensor, repeats: int) -> Tensor:
        """(G, K, most * r, D) -> (S, K, r, D)."""
        x = x.unflatten(2, (self.most, repeats)).transpose(1, 2).flatten(0, 1)
        return x if self.in_order else x.index_select(0, self.place)
