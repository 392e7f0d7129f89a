"""How rewards, tasks and groups travel to the processes that score: tensors as bytes, tasks once and then by number."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_reason.task import Task

_TASKS: list[Task] = []
"""In a worker, the tasks that have arrived; what is pickled names them by their place."""


class _Pickler(pickle.Pickler):
    """Pickles tensors as bytes, without files or shared memory, and tasks by number.

    Args:
        file: where to.
        number: the place of a task among those sent; None pickles tasks too.
    """

    def __init__(self, file: io.BytesIO, number: Callable[[Task], int] | None) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.number = number

    def reducer_override(self, thing: Any) -> Any:  # noqa: ANN401 - pickle's protocol
        if isinstance(thing, Tensor):
            plain = thing.detach().cpu().reshape(-1).contiguous()
            return _tensor, (plain.view(torch.uint8).numpy().tobytes(), thing.dtype, tuple(thing.shape))
        if self.number is not None and isinstance(thing, Task):
            return _task, (self.number(thing),)
        return NotImplemented


def pickled(thing: Any, number: Callable[[Task], int] | None) -> bytes:  # noqa: ANN401 - anything
    """A thing as bytes; tasks in it become numbers if `number` says which, and are pickled too if it is None."""
    file = io.BytesIO()
    _Pickler(file, number).dump(thing)
    return file.getvalue()


def unpickled(tasks: list[bytes], payload: bytes) -> Any:  # noqa: ANN401 - anything
    """What `pickled` made bytes of, in the process that gets it, and first the tasks that it is the first to name."""
    _TASKS.extend(pickle.loads(task) for task in tasks)  # noqa: S301 - the parent wrote it
    return pickle.loads(payload)  # noqa: S301 - likewise


def forget_tasks() -> None:
    """Let all tasks go: some end processes of their own then."""
    _TASKS.clear()


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


def _task(number: int) -> Task:
    return _TASKS[number]
