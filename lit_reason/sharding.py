"""Fully sharded data parallelism (FSDP2): who holds which part of the weights, and how to see them whole for a while.

A sharded model is trained layer by layer: each layer's weights are gathered for its forward and backward pass alone,
which all ranks must run together. Without a gradient they are gathered once, and no rank waits for another (`whole`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def shard(root: nn.Module, layers: list[nn.Module], mesh: DeviceMesh, compute: torch.dtype | None) -> None:
    """Shard each layer, and what is left of the root together.

    Args:
        root: the module whose forward pass contains all of it.
        layers: the repeated parts, each of which is gathered alone.
        mesh: of one dimension, the ranks to shard over.
        compute: what the gathered weights are; None leaves them as they are stored. Gradients are summed in float32.
    """
    # inputs stay as they are: some are no plain tensors, and autocast casts the others
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in (*layers, root):
        fully_shard(module, mesh=mesh, mp_policy=policy)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Inside, weights are whole and plain on every rank, and a forward pass (no backward) needs no other rank.

    All ranks must enter; each may leave when it likes. A module that is not sharded is left alone.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if not parts:
        yield
        return
    hooks = [(part, part._forward_pre_hooks, part._forward_hooks) for part in parts]  # noqa: SLF001 - torch has no switch
    try:
        # gathered under inference mode, the weights' memory could never be trained again
        with torch.inference_mode(mode=False), torch.no_grad():
            for part in parts:
                part.unshard()
                # the hooks gather and remember the order of layers for the backward pass, of which there is none
                part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()  # noqa: SLF001
            yield
    finally:
        for part, before, after in hooks:
            part._forward_pre_hooks, part._forward_hooks = before, after  # noqa: SLF001
            part.reshard()


def whole_tensor(value: Tensor) -> Tensor:
    """All of a tensor that may be sharded; all ranks must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value
