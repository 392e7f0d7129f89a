"""The policy a checkpoint holds, rebuilt from the checkpoint alone: no trainer, no plugins, no code run."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from lit_reason.checkpoint import verify
from lit_reason.checkpoint_shards import MANIFEST, read_index
from lit_reason.loading import same_base
from lit_reason.policy import Policy
from lit_reason.policy_options import PolicyOptions
from lit_reason.run_directory import CHECKPOINTS
from lit_reason.types import UserError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

PREFIX = "policy."
"""What names of the policy's weights begin with in a module's state."""

SHARDED = ".metadata"
"""The file that tells a folder of shards, as torch.distributed.checkpoint writes it."""


@dataclass(kw_only=True, slots=True)
class Trained:
    """A policy as a checkpoint holds it.

    Attributes:
        policy: with the checkpoint's weights, on the CPU, in eval mode.
        step: training steps done.
        module: name of the class that trained it.
        config: what the checkpoint keeps of the module's configuration.
    """

    policy: Policy
    step: int
    module: str
    config: dict[str, Any]


def find_checkpoint(run: Path, which: str | None) -> tuple[Path, Path]:
    """The run directory and the checkpoint meant.

    Args:
        run: a run directory, a checkpoint file or a folder of shards.
        which: `last` or `best` of a run directory, or a path; None is `last`.

    Raises:
        UserError: there is none.
    """
    if not run.exists():
        raise UserError(f"there is no '{run}': give a run directory, a .ckpt file or a folder of shards")
    if run.is_file() or is_sharded(run):
        if which is not None:
            raise UserError(f"--checkpoint chooses within a run directory, but '{run}' is a checkpoint: leave it out")
        checkpoint = run.resolve()
        return (checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent), run
    named = (which or "last") if which in (None, "last", "best") else None
    checkpoint = run / CHECKPOINTS / f"{named}.ckpt" if named else Path(str(which))
    if not checkpoint.exists():
        there = sorted(p.name for p in (run / CHECKPOINTS).glob("*.ckpt"))
        hint = f"there are {', '.join(there)}" if there else f"'{run}' has no checkpoints"
        raise UserError(f"--checkpoint: no checkpoint at '{checkpoint}': {hint}")
    return run, checkpoint


def is_sharded(path: Path) -> bool:
    """Whether a path is a folder of shards."""
    return (path / SHARDED).is_file()


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The policy's weights by name, and all else but optimizers; plain data only, nothing in it can run.

    Raises:
        UserError: it is damaged, holds code, or is something else than a checkpoint of a run.
    """
    path = path.resolve()  # once: a run that goes on lets `last` stand for another one at any time
    if path.is_file() or (path / MANIFEST).exists():
        verify(path)
    else:
        warnings.warn(f"'{path}' has no {MANIFEST}, so nobody knows whether it is complete", stacklevel=2)
    try:
        if is_sharded(path):
            rest = torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
            state = _gather(path)
        else:
            rest = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            state = rest.pop("state_dict")
    except (Exception, CheckpointException) as error:  # whatever a damaged file makes of the readers
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"'{path}' cannot be read as a checkpoint: {reason[:200]}") from error
    return {name.removeprefix(PREFIX): x for name, x in state.items() if name.startswith(PREFIX)}, rest


def load_trained(path: Path, base: str | None = None) -> Trained:
    """Rebuild the policy of a checkpoint.

    Args:
        path: a checkpoint file, or a folder of shards.
        base: where the model that was trained lies now, when not where the run found it.

    Raises:
        UserError: the checkpoint is unusable, or its model cannot be found.
    """
    state, rest = read_checkpoint(path)
    config = rest.get("hyper_parameters", {})
    if "policy" not in config or not state:
        raise UserError(
            f"'{path}' does not say which policy it holds: only checkpoints of `lit-reason fit` do. "
            "In a program of your own, call module.policy.save_pretrained(folder)"
        )
    options = _options(config["policy"])
    policy = Policy(options if base is None else replace(options, model=base, revision=None))
    ours = rest.get("lit_reason", {})
    if ours.get("base") is not None and not same_base(ours["base"], policy.base):
        raise UserError(
            f"the weights of '{policy.options.model}' are not those that the adapters in '{path}' were trained on: "
            "name with --base where these are"
        )
    _load(policy, state, path)
    return Trained(
        policy=policy.eval(),
        step=int(ours.get("phase", rest.get("global_step", 0))),
        module=str(ours.get("module", "")),
        config={name: value for name, value in config.items() if not name.startswith("_")},
    )


def _options(config: dict[str, Any]) -> PolicyOptions:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--policy", type=PolicyOptions)
    options: PolicyOptions = parser.instantiate(parser.parse_object({"policy": config})).policy
    return options


@torch.no_grad()
def _load(policy: Policy, state: dict[str, Tensor], path: Path) -> None:
    """Put a state into a policy, in the state's own precision; a base that checkpoints leave out stays as it is."""
    own = policy.state_dict()
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    wanted = set(own) if policy.base is None else trained
    foreign = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if strange := sorted({*foreign, *(wanted - set(state)), *(set(state) - set(own))}):
        raise UserError(f"the weights in '{path}' are not those of '{policy.options.model}': such as {strange[0]}")
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        if name in state:
            parameter.data = state[name].clone()
    for name, buffer in policy.named_buffers():
        if name in state:
            buffer.copy_(state[name])


# ------------------------------------------------------------------ shards
def _gather(folder: Path) -> dict[str, Tensor]:
    """The policy's weights from a folder of shards, whatever the number of processes that wrote it."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ANN401 - torch's signature
            metadata = read_index(folder)
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    prefix = f"state_dict.{PREFIX}"
    state = {
        name: torch.empty(found.size, dtype=found.properties.dtype)
        for name, found in read_index(folder).state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(found, TensorStorageMetadata)  # of other things none is unpickled
    }
    load(state, storage_reader=Reader(folder), no_dist=True)
    return {name.removeprefix("state_dict."): x for name, x in state.items()}
