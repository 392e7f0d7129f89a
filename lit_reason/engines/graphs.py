"""Decoding steps of fixed shape, which an accelerator can record once and replay: CUDA graphs.

A small model's step is hundreds of kernels, each quicker than its launch. Recorded, they are launched together. That
needs the same shapes and the same memory at every replay, so rows, groups and columns are rounded up to powers of two,
what is too much is masked, and all that changes from step to step lives in tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from lit_reason.engines.cache import Decode

DEVICES = {"cuda"}
"""Where steps have fixed shapes."""


class FixedDecode(Decode):
    """`Decode` whose shapes change only when a power of two is passed, and whose column is a tensor."""

    def arrange(self, group_of_row: Sequence[int], prompt_lengths: Sequence[int], device: torch.device) -> None:
        super().arrange(group_of_row, prompt_lengths, device)
        place, groups, most = self.place, self.groups, self.most
        self.rows = min(_power_of_two(self.rows), self.own.shape[0])
        self.groups = min(_power_of_two(groups), self.prompts.shape[0])
        self.most = _power_of_two(most)
        self.prompt_width = self.prompts.shape[1]
        self.in_order = False
        row_at, places, hidden = self._tables(device)
        where = place // most * self.most + place % most  # as if every group had more rows
        places.zero_()[: len(place)] = where
        row_at.zero_()[where] = torch.arange(len(place), device=device)
        lengths = torch.zeros(self.groups, dtype=torch.int64)
        lengths[:groups] = torch.tensor(prompt_lengths)
        hidden.copy_((torch.arange(self.prompt_width) >= lengths[:, None])[:, None, None])
        self.row_at, self.place, self.prompt_hidden = row_at, places, hidden

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The same memory whenever the same shapes come back."""
        if not hasattr(self, "kept"):
            self.kept: dict[Hashable, tuple[Tensor, Tensor, Tensor]] = {}
        if self.shapes not in self.kept:
            self.kept[self.shapes] = (
                torch.zeros(self.groups * self.most, dtype=torch.int64, device=device),
                torch.zeros(self.rows, dtype=torch.int64, device=device),
                torch.zeros(self.groups, 1, 1, self.prompt_width, dtype=torch.bool, device=device),
            )
        return self.kept[self.shapes]

    @property
    def shapes(self) -> tuple[int, ...]:
        """All that the shapes of a step depend on."""
        return (self.rows, self.groups, self.most, self.prompt_width, *self.own.shape, *self.prompts.shape)

    def write(self, stored: Tensor, new: Tensor) -> None:
        stored[: self.rows].index_copy_(2, self.at, new)

    def step_at(self, clock: Tensor, born: Tensor, turn: int) -> None:
        """As `step`, from tensors: the present step (1,), the step each row joined at (S,), columns of the ring."""
        width = self.own.shape[1]
        self.at = clock % turn
        columns = torch.arange(width, device=clock.device)
        written = clock - (self.at - columns) % turn  # the step that wrote each column last
        self.first, self.last = 0, width
        self.own_hidden = (written < born[:, None])[:, None, None]


class Recorder:
    """Runs steps; on CUDA, records one the second time its key comes, and replays it from then on."""

    def __init__(self) -> None:
        self.met: set[Hashable] = set()
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def __call__(self, key: Hashable, step: Callable[[], None]) -> None:
        if key not in self.graphs:
            if key not in self.met or not torch.cuda.is_available():
                self.met.add(key)  # kernels choose and allocate what they need the first time
                step()
                return
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()  # only recorded
            self.graphs[key] = graph
        self.graphs[key].replay()


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
