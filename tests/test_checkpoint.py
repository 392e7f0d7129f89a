"""Checkpoint files: whole or not there, verified when read, and every kind of damage."""

import errno
import json
import os
import resource
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_reason import checkpoint, checkpoint_shards
from lit_reason.checkpoint import AtomicCheckpointIO, DamagedCheckpointError, examine, newest, verify
from lit_reason.checkpoint_state import between_steps, random_states, restore_random_states
from lit_reason.types import UserError


def state(step=1, size=1000):
    return {
        "state_dict": {"weight": torch.arange(float(size)) + step},
        "optimizer_states": [{"state": {}}],
        "loops": {"fit_loop": {}},
        "pytorch-lightning_version": "2.6.6",
        "step": step,
    }


def save(folder, *steps):
    """Checkpoints of some steps, `last` pointing to the newest."""
    for step in steps:
        path = folder / f"step-{step}.ckpt"
        AtomicCheckpointIO().save_checkpoint(state(step), path)
        os.utime(path, (step, step))
    checkpoint.point(folder / "last.ckpt", f"step-{steps[-1]}.ckpt")
    return folder / f"step-{steps[-1]}.ckpt"


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_what_is_written_is_read_by_lightning_and_torch_and_nothing_is_left_beside_it(tmp_path):
    path = save(tmp_path, 3)
    for found in (
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False),
        torch.load(path, weights_only=True),
        torch.load(path, weights_only=True, mmap=True),
    ):
        assert torch.equal(found["state_dict"]["weight"], state(3)["state_dict"]["weight"])
    assert examine(path)["step"] == 3
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last.ckpt", "step-3.ckpt"]


def test_every_flipped_bit_and_every_length_is_found(tmp_path):
    path = save(tmp_path, 1)
    whole = path.read_bytes()
    weights = torch.load(path, weights_only=True)["state_dict"]["weight"]
    seal = len(whole) - 90  # damage to it leaves the archive's own checksums, which vouch for the content
    for place in range(0, seal, max(1, seal // 150)):
        for damaged in (whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :], whole[:place]):
            path.write_bytes(damaged)
            with pytest.raises(DamagedCheckpointError, match=r"step-1\.ckpt'.*") as error:
                AtomicCheckpointIO().load_checkpoint(path)
            assert "\n" not in str(error.value)
    path.write_bytes(whole[: seal + 20])
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["weight"], weights)


def test_resuming_takes_the_newest_that_is_whole_and_says_so(tmp_path):
    path = save(tmp_path, 1, 2, 3)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.warns(UserWarning, match=r"step-3\.ckpt.*It is left out") as said:
        assert newest(tmp_path) == tmp_path / "step-2.ckpt"
    assert "going on from" in str(said[-1].message)
    assert (tmp_path / "step-3.ckpt").exists()


def test_resuming_a_copied_folder_takes_what_last_points_to(tmp_path):
    save(tmp_path, 1, 2)
    os.utime(tmp_path / "step-1.ckpt", (9, 9))
    assert newest(tmp_path) == tmp_path / "step-2.ckpt"


def test_a_folder_without_a_checkpoint_holds_none_and_one_of_damaged_ones_is_an_error(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None
    save(tmp_path, 1).write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"no checkpoint .* is whole.*step-1\.ckpt"):
        newest(tmp_path)


def test_a_checkpoint_that_carries_code_or_is_something_else_is_named_and_left_out_unexecuted(tmp_path):
    save(tmp_path, 1)
    torch.save({**state(2), "more": Evil(tmp_path / "executed")}, tmp_path / "evil.ckpt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name, reason in (("evil", "plain data"), ("other", "no state_dict"), ("list", "no state_dict")):
        with pytest.raises(DamagedCheckpointError, match=rf"{name}\.ckpt'.*{reason}"):
            examine(tmp_path / f"{name}.ckpt")
    with pytest.raises(DamagedCheckpointError, match="plain data"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    (tmp_path / "step-1.ckpt").unlink()
    with pytest.raises(UserError, match=r"no checkpoint .* is whole"):
        newest(tmp_path)
    assert not (tmp_path / "executed").exists()


def reseal(shards):
    """A manifest that is right about what the folder holds now."""
    (shards / "manifest.json").unlink()
    again = shards.with_name(".again.part")
    shutil.move(shards, again)
    checkpoint_shards.seal(again, shards)


@pytest.mark.parametrize("tensor", [True, False])
@pytest.mark.parametrize("name", ["state_dict.weight", "state_dict.bias"])
def test_a_shard_that_carries_code_is_refused_unexecuted_though_index_and_manifest_agree(
    shards, tmp_path, name, tensor
):
    """torch unpickles whatever an index says is no tensor."""
    import dataclasses
    import pickle

    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    index = pickle.loads((shards / ".metadata").read_bytes())
    torch.save(Evil(tmp_path / "executed"), shards / "evil.distcp")
    size = (shards / "evil.distcp").stat().st_size
    for entry, place in list(index.storage_data.items()):
        if entry.fqn == name:
            moved = dataclasses.replace(place, relative_path="evil.distcp", offset=0, length=size)
            index.storage_data[entry] = moved
    if not tensor:
        index.state_dict_metadata[name] = BytesStorageMetadata()
    (shards / ".metadata").write_bytes(pickle.dumps(index))
    reseal(shards)
    with pytest.raises(DamagedCheckpointError, match="plain data"):
        verify(shards)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_that_lightning_wrote_is_read_and_held_to_its_checksums(tmp_path):
    path = tmp_path / "plain.ckpt"
    torch.save(state(5), path)
    assert AtomicCheckpointIO().load_checkpoint(path)["step"] == 5
    content = bytearray(path.read_bytes())
    content[content.index(state(5)["state_dict"]["weight"].numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="checksum of its part"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before_as_it_was(tmp_path):
    path = save(tmp_path, 1)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # more than this, and writing fails
    try:
        with pytest.raises(UserError, match=rf"checkpoint '{path}' could not be written: {os.strerror(errno.EFBIG)}"):
            AtomicCheckpointIO().save_checkpoint(state(2, size=100_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last.ckpt", "step-1.ckpt"]


@pytest.mark.parametrize("strange", [Path("a"), {1: frozenset()}, lambda: 0, open])
def test_what_could_not_be_read_again_is_not_written(tmp_path, strange):
    path = save(tmp_path, 1)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"was not written: .* more than plain data .*state_dict\(\) of the task"):
        AtomicCheckpointIO().save_checkpoint({**state(2), "task": strange}, path)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last.ckpt", "step-1.ckpt"]


def test_links_to_nothing_to_themselves_and_out_of_the_folder(tmp_path):
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    save(folder, 1, 2)
    last = folder / "last.ckpt"
    for target in ("last.ckpt", "nothing.ckpt"):
        last.unlink()
        last.symlink_to(target)
        assert newest(folder) == folder / "step-2.ckpt"
    last.unlink()
    last.symlink_to(save(elsewhere, 2))
    (folder / "step-2.ckpt").write_bytes(b"junk")  # of the same name as what `last` points to
    assert examine(newest(folder))["step"] == 2


def test_drafts_of_killed_processes_are_removed_and_never_taken_for_checkpoints(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-2.ckpt.part").write_bytes(b"half")
    (tmp_path / ".step-3.ckpt.part").mkdir()
    assert newest(tmp_path) == tmp_path / "step-1.ckpt"
    checkpoint.remove_drafts(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last.ckpt", "step-1.ckpt"]


# ---------------------------------------------------------------------- shards
@pytest.fixture
def shards(tmp_path):
    """A folder of shards, as torch.distributed.checkpoint writes them, sealed."""
    from torch.distributed.checkpoint import save as save_shards

    draft, path = tmp_path / ".step-4.ckpt.part", tmp_path / "step-4.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is but one process
        save_shards({"state_dict": nn.Linear(4, 4).state_dict()}, checkpoint_id=draft, no_dist=True)
    torch.save({**state(4), "state_dict": None}, draft / "meta.pt")
    checkpoint_shards.seal(draft, path)
    return path


def test_a_sealed_folder_of_shards_is_a_checkpoint(shards):
    assert examine(shards)["step"] == 4
    assert newest(shards.parent) == shards
    with pytest.raises(DamagedCheckpointError, match="only strategy fsdp2"):
        AtomicCheckpointIO().load_checkpoint(shards)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("manifest.json", Path.unlink, "incomplete: it has no manifest"),
        ("manifest.json", cut, "its manifest.json cannot be read"),
        ("__0_0.distcp", Path.unlink, "'__0_0.distcp' is missing"),
        ("__0_0.distcp", cut, "'__0_0.distcp' is not what was written"),
        ("__0_0.distcp", flip, "'__0_0.distcp' is not what was written"),
        ("meta.pt", flip, "'meta.pt' is not what was written"),
        (".metadata", flip, "'.metadata' is not what was written"),
    ],
)
def test_a_folder_with_a_damaged_or_missing_part_is_left_out(shards, name, damage, reason):
    damage(shards / name)
    with pytest.raises(DamagedCheckpointError, match=rf"step-4\.ckpt.*{reason}"):
        verify(shards)
    AtomicCheckpointIO().save_checkpoint(state(1), shards.parent / "step-1.ckpt")
    os.utime(shards.parent / "step-1.ckpt", (1, 1))
    with pytest.warns(UserWarning, match="It is left out|going on from"):
        assert newest(shards.parent) == shards.parent / "step-1.ckpt"


def test_an_index_of_shards_that_carries_code_is_refused_unexecuted_though_its_manifest_is_right(shards, tmp_path):
    import pickle

    (shards / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    reseal(shards)
    assert ".metadata" in json.loads((shards / "manifest.json").read_text())["files"]
    with pytest.raises(DamagedCheckpointError, match="plain data"):
        verify(shards)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("rest", [{}, [1]])
def test_shards_without_the_rest_of_a_run_are_no_checkpoint(shards, rest):
    torch.save(rest, shards / "meta.pt")
    reseal(shards)
    with pytest.raises(DamagedCheckpointError, match="is no checkpoint of a run: it has no loops"):
        examine(shards)


@pytest.mark.parametrize("text", ['{"files": {"a": {"bytes": 1e999, "sha256": ""}}}', "[" * 200_000])
def test_a_manifest_that_no_reader_can_take_is_damage(shards, text):
    (shards / "manifest.json").write_text(text)
    with pytest.raises(DamagedCheckpointError, match="manifest"):
        verify(shards)


def test_a_file_and_a_folder_of_shards_take_each_others_place(shards, tmp_path):
    AtomicCheckpointIO().save_checkpoint(state(4), shards)
    assert examine(shards)["step"] == 4
    draft = tmp_path / ".draft.part"
    draft.mkdir()
    checkpoint_shards.seal(draft, shards)
    assert shards.is_dir()


def test_the_step_in_its_name_says_which_checkpoint_is_newer(tmp_path):
    save(tmp_path, 1, 2, 10)
    (tmp_path / "step-10.ckpt").write_bytes(b"junk")
    os.utime(tmp_path / "step-1.ckpt", (99, 99))  # as a copied folder may have it
    with pytest.warns(UserWarning, match="left out|going on from"):
        assert newest(tmp_path) == tmp_path / "step-2.ckpt"


# ---------------------------------------------------------------------- state
def test_random_states_come_back_through_a_file_of_plain_data(tmp_path):
    import random

    import numpy as np

    def draw():
        return random.random(), float(torch.rand(())), float(np.random.rand())  # noqa: NPY002

    path = tmp_path / "states.ckpt"
    AtomicCheckpointIO().save_checkpoint({**state(), "random": random_states()}, path)
    expected = draw()
    draw()
    restore_random_states(AtomicCheckpointIO().load_checkpoint(path)["random"])
    assert draw() == expected


@pytest.mark.parametrize(
    ("ready", "processed", "epochs", "expected"),
    [
        (3, 3, 1, (3, 0)),  # in the midst of an epoch
        (4, 3, 1, (3, 0)),  # the next batch has been fetched
        (5, 5, 1, (0, 1)),  # the epoch's last batch
        (1, 0, 2, (0, 1)),  # the first batch of the next epoch has been fetched
    ],
)
def test_a_checkpoint_lies_between_two_steps_wherever_it_was_written(ready, processed, epochs, expected):
    counts = {"ready": ready, "started": processed, "processed": processed, "completed": processed - 1}
    epoch = {"ready": epochs, "started": epochs, "processed": epochs - 1, "completed": epochs - 1}
    total = {name: value + 5 * (epochs - 1) for name, value in counts.items()}
    fit = {
        "epoch_loop.batch_progress": {"total": total, "current": counts, "is_last_batch": True},
        "epoch_progress": {"total": dict(epoch), "current": epoch},
        "epoch_loop.state_dict": {"_batches_that_stepped": 0},
    }
    between_steps({"fit_loop": fit}, batches=5)
    place, number = expected
    assert counts == dict.fromkeys(("ready", "started", "processed", "completed"), place)
    assert (epoch["processed"], epoch["ready"]) == (number, number + 1)
    assert total["ready"] == total["completed"] == processed + 5 * (epochs - 1)
