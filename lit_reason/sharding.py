"""Fully sharded data parallelism (FSDP2): who holds which part of the weights, and how to see them whole for a while.

A sharded model is trained layer by layer: each layer's weights are gathered for its forward and backward pass alone,
which all ranks must run together. Without a gradient they are gathered once, and no rank waits for another (`whole`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
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
    if dist.get_world_size() > 1:
        for value in (*root.parameters(), *root.buffers()):  # what was drawn at random differs between ranks
            here = value.detach().to(mesh.device_type)
            dist.broadcast(here, src=0)
            value.data.copy_(here)
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in (*layers, root):
        fully_shard(module, mesh=mesh, mp_policy=policy)


def wrap(root: nn.Module, layers: list[nn.Module], strategy: FSDPStrategy) -> FullyShardedDataParallel:
    """The same by FSDP's first generation, as a Lightning strategy says; forward passes go through what is returned."""
    return FullyShardedDataParallel(
        root,
        auto_wrap_policy=ModuleWrapPolicy({type(layer) for layer in layers}),
        sharding_strategy=strategy.sharding_strategy,
        mixed_precision=strategy.mixed_precision_config,
        cpu_offload=strategy.cpu_offload,
        device_id=strategy.root_device.index,
        sync_module_states=True,
        use_orig_params=True,
    )


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Inside, weights are whole and plain on every rank, and a forward pass (no backward) needs no other rank.

    All ranks must enter; each may leave when it likes. A module that is not sharded is left alone.
    """
    wrappers = [part for part in module.modules() if isinstance(part, FullyShardedDataParallel)]
    if wrappers:
        with _unwrapped(module, wrappers):
            yield
        return
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


@contextmanager
def _unwrapped(module: nn.Module, wrappers: list[FullyShardedDataParallel]) -> Iterator[None]:
    """`whole` for FSDP's first generation, whose wrappers would gather and let go in their forward passes."""
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        FullyShardedDataParallel.summon_full_params(module, writeback=False),
    ):
        try:
            for wrapper in wrappers:
                vars(wrapper)["forward"] = wrapper.module.__call__
            yield
        finally:
            for wrapper in wrappers:
                vars(wrapper).pop("forward", None)


def plain_name(name: str) -> str:
    """A parameter's name without the wrappers around its module."""
    return name.replace("_fsdp_wrapped_module.", "")


def whole_tensor(value: Tensor) -> Tensor:
    """All of a tensor that may be sharded; all ranks must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(root: nn.Module, module: nn.Module, names: set[str] | None) -> dict[str, Tensor] | None:
    """All of the state of a module in a sharded root, or of the parameters named, on the CPU; all ranks must ask.

    None where nothing is sharded, and the module's own `state_dict` says the same.
    """
    if isinstance(root, FullyShardedDataParallel):
        with whole(root):
            every = {plain_name(name): p for name, p in module.named_parameters(remove_duplicate=False)}
            kept = {id(p): p.detach().cpu() for name, p in every.items() if names is None or name in names}
            return {name: kept[id(p)] for name, p in every.items() if id(p) in kept}
    state = module.state_dict(keep_vars=True)  # so that tied weights are one object
    if not any(isinstance(value, DTensor) for value in state.values()):
        return None
    found: dict[int, Tensor] = {}
    for name, value in state.items():
        if id(value) not in found and (names is None or name in names):
            found[id(value)] = whole_tensor(value.detach()).cpu()
    return {name: found[id(value)] for name, value in state.items() if id(value) in found}
