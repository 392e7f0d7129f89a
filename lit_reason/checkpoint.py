"""Checkpoint files that are whole or not there, and that say themselves whether they still are what was written.

A checkpoint is written beside its place, in the same folder and so on the same file system, reaches the disk, and only
then takes its place by a rename: whenever a process dies, the file of that name is the old one or the new one. The last
bytes written are the SHA-256 of all others. They stand in the comment a zip archive may end with, so that the manifest
cannot be separated from its file, and `torch.load` reads the file as any other. Reading never runs code: a file that
needs more than plain data to be rebuilt is refused. A folder of shards is kept the same way, see
`checkpoint_shards.py`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_reason.types import UserError

SUFFIX = ".ckpt"
_MARK = b"lit-reason sha256 "
_COMMENT = len(_MARK) + 64
KEYS = ("state_dict", "optimizer_states", "loops", "pytorch-lightning_version")
"""What every checkpoint of a run holds, whoever wrote it."""
_BLOCK = 2**20


class DamagedCheckpointError(UserError):
    """A checkpoint that is not what was written, or never was one."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes and reads checkpoints as this module's docstring says; `lit-reason` uses it always.

    In a Trainer of one's own: `Trainer(plugins=[AtomicCheckpointIO()])`. Paths with a scheme, such as s3://, are left
    to Lightning, but for the plain data.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the disk is full, or the file cannot be written for another reason; what was there still is.
        """
        if _remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Verify and read a checkpoint as plain data into the CPU's memory; `weights_only` is always on.

        Raises:
            DamagedCheckpointError: it is not what was written, or holds more than plain data.
        """
        if _remote(path):
            remote: dict[str, Any] = super().load_checkpoint(path, weights_only=True)
            return remote
        verify(Path(path))
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; a link goes, and not what it points to."""
        if Path(path).is_symlink():
            Path(path).unlink()
        else:
            super().remove_checkpoint(path)


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Put a checkpoint at a path, all of it or nothing.

    Raises:
        UserError: it cannot be written; one line says why.
    """
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            sealed = _Sealed(file)
            torch.save(checkpoint, sealed)  # type: ignore[arg-type]  # it asks for no more than `write` and `flush`
            sealed.close()
            os.fsync(file.fileno())
        check_readable(draft, path)
        make_way(path)
        draft.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritten(path, error) from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # what pickle raises for code and handles
        raise _not_plain(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def check_readable(draft: Path, path: Path) -> None:
    """Make sure that a checkpoint can be read again, which is better known now than when it is needed.

    Args:
        draft: the file.
        path: where it is to stand.

    Raises:
        UserError: it cannot.
    """
    try:
        torch.load(draft, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise _not_plain(path, error) from error


def _not_plain(path: Path, error: Exception) -> UserError:
    found = re.search(r"GLOBAL (\S+)|Unsupported (?:class|global|operand)[^\n]*", str(error))
    reason = (found[1] or found[0]) if found else _reason(error)
    return UserError(
        f"checkpoint '{path}' was not written: it would hold more than plain data ({reason}), and nothing could go on "
        "from it. Have state_dict() of the task, or of the callback, return numbers, texts, lists, dicts and tensors"
    )


def draft_of(path: Path) -> Path:
    """Where a checkpoint is put together before it takes its place."""
    return path.with_name(f".{path.name}.part")


def remove_drafts(folder: Path) -> None:
    """Remove what processes that were killed while they saved have left."""
    import shutil

    for draft in folder.glob(f".*{SUFFIX}.part"):
        if draft.is_dir() and not draft.is_symlink():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def make_way(path: Path) -> None:
    """Remove a folder of shards where a checkpoint is to stand."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)


def sync(folder: Path) -> None:
    """Have a folder's entries reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def point(link: Path, target: str) -> None:
    """Let a name in a folder stand for another one there, from one moment to the next."""
    draft = draft_of(link)
    try:
        draft.unlink(missing_ok=True)
        draft.symlink_to(target)
        draft.replace(link)
        sync(link.parent)
    except OSError as error:
        raise unwritten(link, error) from error
    finally:
        draft.unlink(missing_ok=True)


def unwritten(path: Path, error: BaseException) -> UserError:
    """What to say of a checkpoint that could not be written."""
    reason = _reason(error)
    if "unexpected pos" in reason:  # torch's zip writer, when it finds out later that a write has failed
        reason = f"a write failed, as on a full disk ({reason})"
    return UserError(
        f"checkpoint '{path}' could not be written: {reason}. Those written before are as they were: "
        "make room, and go on with --resume"
    )


# ---------------------------------------------------------------------- reading
def verify(path: Path) -> None:
    """Check that a checkpoint is what was written.

    A file without a digest, of another program or an earlier version, is held to the checksums of its zip archive.

    Raises:
        DamagedCheckpointError: it is not, or there is none; one line says why.
    """
    if path.is_dir():
        from lit_reason.checkpoint_shards import verify_shards

        verify_shards(path)
        return
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _COMMENT))
            comment = file.read()
            if comment.startswith(_MARK):
                if sha256(file, size - _COMMENT) != comment.removeprefix(_MARK).decode("ascii", "replace"):
                    raise DamagedCheckpointError(
                        f"checkpoint '{path}' is damaged: its SHA-256 is not the one it was written with"
                    )
            elif zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    broken = archive.testzip()
                if broken is not None:
                    raise DamagedCheckpointError(
                        f"checkpoint '{path}' is damaged: the checksum of its part '{broken}' is wrong"
                    )
            elif size == 0:
                raise DamagedCheckpointError(f"checkpoint '{path}' is empty")
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # zipfile raises all of them
        raise DamagedCheckpointError(f"checkpoint '{path}' cannot be read: {_reason(error)}") from error


def read(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint file as plain data.

    Args:
        path: the file.
        mapped: leave tensors on disk until they are looked at.

    Raises:
        DamagedCheckpointError: that is impossible, or it is no checkpoint of a run.
    """
    if path.is_dir():
        raise DamagedCheckpointError(
            f"checkpoint '{path}' is a folder of shards: only strategy fsdp2 continues from it; `lit-reason export` "
            "makes a plain model of it"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except Exception as error:  # whatever a damaged or malicious file provokes
        raise DamagedCheckpointError(f"checkpoint '{path}' cannot be read as plain data: {_reason(error)}") from error
    check_keys(found, path, KEYS)
    checkpoint: dict[str, Any] = found
    return checkpoint


def check_keys(found: object, path: Path, keys: Sequence[str]) -> None:
    """Make sure that what was read is a checkpoint's.

    Raises:
        DamagedCheckpointError: it has not all of the keys.
    """
    missing = [key for key in keys if key not in found] if isinstance(found, dict) else list(keys)
    if missing:
        raise DamagedCheckpointError(f"'{path}' is no checkpoint of a run: it has no {missing[0]}")


def examine(path: Path) -> dict[str, Any]:
    """Verify a checkpoint and return what it holds beside weights and optimizer states.

    Raises:
        DamagedCheckpointError: it is damaged, holds more than plain data, or is no checkpoint of a run.
    """
    verify(path)
    if path.is_dir():
        from lit_reason.checkpoint_shards import read_metadata

        return read_metadata(path)
    found = read(path, mapped=True)
    return {name: value for name, value in found.items() if name not in ("state_dict", "optimizer_states")}


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that is whole; each newer one that is not is warned of.

    Raises:
        UserError: there are some, and none is whole.
    """
    paths: dict[str, Path] = {}  # by what they stand for, which a link out of the folder does too
    for path in sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: not path.is_symlink()):
        if path.exists():  # a link to itself or to nothing does not
            paths[os.path.realpath(path)] = path
    last = os.path.realpath(folder / f"last{SUFFIX}")
    # a copied folder has lost the order of its times, but not what `last` points to, nor its names
    ordered = sorted(paths.values(), key=lambda path: (os.path.realpath(path) == last, age(path)), reverse=True)
    damaged: list[str] = []
    for path in ordered:
        try:
            examine(path)
        except DamagedCheckpointError as error:
            damaged.append(str(error))
        else:
            for reason in damaged:
                warnings.warn(f"{reason}. It is left out", stacklevel=2)
            if damaged:
                warnings.warn(f"going on from '{path}', the newest checkpoint that is whole", stacklevel=2)
            return path
    if damaged:
        raise UserError(f"resume: no checkpoint in '{folder}' is whole. {'; '.join(damaged)}")
    return None


def age(path: Path) -> tuple[int, int]:
    """What checkpoints are ordered by: the step in the name, and the time for others."""
    named = re.fullmatch(rf"step-(\d+){re.escape(SUFFIX)}", Path(os.path.realpath(path)).name)
    return int(named[1]) if named else -1, path.stat().st_mtime_ns


def sha256(file: BinaryIO, size: int) -> str:
    """The digest of a file's first bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(_BLOCK, size))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


class _Sealed:
    """A file that `torch.save` writes a zip archive into, and whose digest becomes the archive's comment.

    An archive without a comment ends with its length, two bytes of zero. An error is kept until `close`, for torch
    would make another one of it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.held = b""
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        ready = self.held + bytes(data)
        ready, self.held = ready[:-2], ready[-2:]
        self._put(ready)
        return len(data)

    def flush(self) -> None:
        """Nothing: `close` does it."""

    def close(self) -> None:
        if self.error is None:
            assert self.held == b"\0\0", "the archive has a comment"
            self._put(_COMMENT.to_bytes(2, "little"))
        self._put(_MARK + self.digest.hexdigest().encode())
        try:
            self.file.flush()
        except OSError as error:
            self.error = self.error or error
        if self.error is not None:
            raise self.error

    def _put(self, data: bytes) -> None:
        if self.error is None:
            self.digest.update(data)
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error


def _remote(path: str | Path) -> bool:
    return "://" in str(path)


def _reason(error: BaseException) -> str:
    """The first line of an error."""
    text = getattr(error, "strerror", None) or str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:200]
