"""Checkpoints of which every rank writes a shard: a folder, with a manifest of its files as the mark of completion.

The shards are written into a folder beside their place. When all ranks have done so rank 0 writes down the size and the
SHA-256 of every file, has them reach the disk, and renames the folder. A folder without a manifest, or with a file that
is not as it says, is never taken for a checkpoint.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.api import CheckpointException

from lit_reason.checkpoint import (
    KEYS,
    DamagedCheckpointError,
    check_keys,
    check_readable,
    draft_of,
    make_way,
    sha256,
    sync,
    unwritten,
)
from lit_reason.types import UserError

if TYPE_CHECKING:
    from lightning.pytorch.strategies import ModelParallelStrategy as _Strategy
else:
    _Strategy = object

MANIFEST = "manifest.json"
_PLAIN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("collections", "OrderedDict"),
}
"""What torch's index of shards is made of, beside its own classes of metadata."""


class ShardedCheckpoints(_Strategy):
    """For a ModelParallelStrategy: its checkpoints, of one file or of shards, are whole or not there.

    Name it before ModelParallelStrategy among the bases.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint; every rank calls this.

        Raises:
            UserError: a rank could not write its part; what was there still is.
        """
        path = Path(self.broadcast(str(filepath)))
        if not self._save_distributed_checkpoint:  # one file, which the CheckpointIO writes
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        draft = draft_of(path)
        if self.is_global_zero:
            shutil.rmtree(draft, ignore_errors=True)
        self.barrier()
        error: BaseException | None = None
        try:
            super().save_checkpoint(checkpoint, draft, storage_options)
        except CheckpointException as failure:  # no Exception; it holds those of all ranks
            error = next(iter(failure.failures.values()), (failure, None))[0]
        except Exception as failure:  # noqa: BLE001 - whatever storage raises
            error = failure
        failed = self.reduce(torch.tensor(float(error is not None), device=self.root_device), reduce_op="sum")
        if not failed and self.is_global_zero:
            try:
                check_readable(draft / _METADATA_FILENAME, path)
                seal(draft, path)
            except (OSError, UserError) as failure:
                error = failure
        if self.broadcast(bool(failed) or error is not None):
            if self.is_global_zero:
                shutil.rmtree(draft, ignore_errors=True)
            if isinstance(error, UserError):
                raise error
            raise unwritten(path, error or OSError("another rank failed")) from error

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Verify and read a checkpoint as plain data; every rank calls this."""
        from lit_reason.checkpoint import examine

        path = Path(self.broadcast(str(checkpoint_path)))
        error = None
        if self.is_global_zero:
            try:
                examine(path)
            except UserError as found:
                error = str(found)
        error = self.broadcast(error)
        if error:
            raise DamagedCheckpointError(error)
        try:
            return super().load_checkpoint(path, weights_only=True)
        except CheckpointException as failure:  # no Exception
            raise unreadable(path, failure) from failure


def unreadable(path: Path, failure: CheckpointException) -> DamagedCheckpointError:
    """What to say of shards that a rank could not read."""
    error: BaseException = next(iter(failure.failures.values()), (failure, None))[0]
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return DamagedCheckpointError(f"checkpoint '{path}' cannot be read as plain data: {reason[:200]}")


def seal(draft: Path, path: Path) -> None:
    """Write the manifest of a folder in which every rank has finished, and let it take its place."""
    files = {}
    for file in sorted(entry for entry in draft.rglob("*") if entry.is_file()):
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            files[file.relative_to(draft).as_posix()] = {"bytes": size, "sha256": sha256(opened, size)}
            os.fsync(opened.fileno())
    with (draft / MANIFEST).open("w", encoding="utf-8") as opened:
        json.dump({"files": files}, opened, indent=1)
        opened.flush()
        os.fsync(opened.fileno())
    sync(draft)
    make_way(path)
    if path.is_file() or path.is_symlink():
        path.unlink()
    draft.replace(path)
    sync(path.parent)


def verify_shards(folder: Path) -> None:
    """Check a folder against its manifest.

    Raises:
        DamagedCheckpointError: it has none, or a file is missing or another than was written.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        items = [(name, int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()]
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"checkpoint '{folder}' is incomplete: it has no {MANIFEST}, which is written last"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpointError(f"checkpoint '{folder}' is damaged: its {MANIFEST} cannot be read") from error
    for name, size, digest in items:
        file = folder / name
        if not file.is_file():
            raise DamagedCheckpointError(f"checkpoint '{folder}' is incomplete: '{name}' is missing")
        with file.open("rb") as opened:
            if file.stat().st_size != size or sha256(opened, size) != digest:
                raise DamagedCheckpointError(f"checkpoint '{folder}' is damaged: '{name}' is not what was written")
    if not {_METADATA_FILENAME, ".metadata"} <= {name for name, _, _ in items}:
        raise DamagedCheckpointError(
            f"'{folder}' is no checkpoint of a run: it has no '{_METADATA_FILENAME}' or '.metadata'"
        )
    _check_index(folder, {name for name, _, _ in items})


def read_metadata(folder: Path) -> dict[str, Any]:
    """What a folder of shards holds beside weights and optimizer states.

    Raises:
        DamagedCheckpointError: it cannot be read as plain data.
    """
    try:
        found: dict[str, Any] = torch.load(folder / _METADATA_FILENAME, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a malicious file provokes
        raise DamagedCheckpointError(f"checkpoint '{folder}' cannot be read as plain data") from error
    check_keys(found, folder, KEYS[2:])  # weights and optimizer states are in the shards
    return found


class _Index(pickle.Unpickler):
    """Rebuilds what torch writes into a `.metadata`, and nothing else; torch itself would run whatever is in it."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - pickle's signature
        plain = (module, name) in _PLAIN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
        record = getattr(metadata, name, None) if module == metadata.__name__ else None
        # no class that torch's module has only imported
        if plain or (isinstance(record, type) and record.__module__ == module):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds code: {module}.{name}")


def read_index(folder: Path) -> metadata.Metadata:
    """The index that torch keeps of a folder of shards.

    Raises:
        pickle.UnpicklingError: it holds anything but torch's own records.
    """
    found: metadata.Metadata = _Index(io.BytesIO((folder / ".metadata").read_bytes())).load()
    return found


def _check_index(folder: Path, files: set[str]) -> None:
    """Whether torch can read shards without running anything: it unpickles whatever is no tensor, code included."""
    try:
        strange = _strange(folder, files)
    except Exception as error:  # likewise
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise DamagedCheckpointError(f"checkpoint '{folder}' cannot be read as plain data: {reason}") from error
    if strange is not None:
        raise DamagedCheckpointError(f"checkpoint '{folder}': {strange} lies elsewhere, or is not as torch writes it")


def _strange(folder: Path, files: set[str]) -> str | None:
    """The first entry of the index that is in none of the files; raises where one is more than plain data."""
    index = read_index(folder)
    for entry, place in index.storage_data.items():
        if place.relative_path not in files or getattr(place, "transform_descriptors", None):
            return str(entry.fqn)
        with (folder / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            torch.load(io.BytesIO(file.read(place.length)), map_location="cpu", weights_only=True)
    return None
