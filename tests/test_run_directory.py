import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from lit_reason.run_directory import Hold, check_same_run, config_name, resolve_checkpoint, resolve_run_directory
from lit_reason.types import UserError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_REASON_RUN_DIR", "")  # so that what a test chooses is forgotten after it


def choose(run_dir=None, ckpt_path=None, subcommand="fit"):
    return str(resolve_run_directory(run_dir, ckpt_path, model="grpo", subcommand=subcommand))


def hold_a_run(folder, file="config.yaml"):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / file).touch()
    (folder / "checkpoints" / "last.ckpt").touch()


def test_a_directory_that_holds_a_run_is_numbered(tmp_path):
    assert choose() == "runs/grpo"
    hold_a_run(tmp_path / "runs/grpo")
    assert choose() == "runs/grpo-2"
    hold_a_run(tmp_path / "runs/grpo-2")
    assert choose() == "runs/grpo-3"
    assert choose(run_dir="mine") == "mine"
    hold_a_run(tmp_path / "mine")
    assert choose(run_dir="mine") == "mine-2"


def test_an_empty_directory_is_used_as_it_is(tmp_path):
    (tmp_path / "mine").mkdir()
    assert choose(run_dir="mine") == "mine"


def test_a_checkpoint_of_the_run_continues_in_its_directory(tmp_path):
    hold_a_run(tmp_path / "runs/grpo")
    hold_a_run(tmp_path / "runs/grpo-2")
    assert choose(ckpt_path="runs/grpo/checkpoints/last.ckpt") == "runs/grpo"
    assert choose(ckpt_path="runs/grpo-2/checkpoints/last.ckpt") == "runs/grpo-2"
    assert choose(run_dir="runs/grpo-2", ckpt_path="runs/grpo-2/checkpoints/last.ckpt") == "runs/grpo-2"
    assert choose(ckpt_path="last") == "runs/grpo"


def test_a_checkpoint_from_elsewhere_leaves_that_run_alone(tmp_path):
    hold_a_run(tmp_path / "runs/grpo")
    (tmp_path / "other.ckpt").touch()
    assert choose(ckpt_path="other.ckpt") == "runs/grpo-2"
    assert choose(run_dir="mine", ckpt_path="runs/grpo/checkpoints/last.ckpt") == "mine"


def test_measuring_has_its_own_directory_and_config_unless_a_run_is_measured(tmp_path):
    assert choose(subcommand="validate") == "runs/grpo-validate"
    hold_a_run(tmp_path / "runs/grpo")
    assert choose(ckpt_path="runs/grpo/checkpoints/last.ckpt", subcommand="validate") == "runs/grpo"
    assert config_name("fit") == "config.yaml"
    assert config_name("validate") == "validate.yaml"


def test_a_process_started_by_another_takes_its_directory(tmp_path, monkeypatch):
    chosen = choose()
    hold_a_run(tmp_path / chosen)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose() == chosen


def test_last_and_best_are_those_of_the_run(tmp_path):
    hold_a_run(tmp_path / "runs/grpo")
    assert resolve_checkpoint("last", tmp_path / "runs/grpo") == str(tmp_path / "runs/grpo/checkpoints/last.ckpt")
    assert resolve_checkpoint(None, tmp_path) is None
    assert resolve_checkpoint("s3://bucket/x.ckpt", tmp_path) == "s3://bucket/x.ckpt"


@pytest.mark.parametrize("path", ["best", "nowhere/x.ckpt"])
def test_a_missing_checkpoint_is_named(tmp_path, path):
    with pytest.raises(UserError, match=r"ckpt_path: no checkpoint at '.*(best|x)\.ckpt'"):
        resolve_checkpoint(path, tmp_path)


HOLDER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from lit_reason.run_directory import Hold
hold = Hold(Path(sys.argv[1]))
hold.on_fit_start(SimpleNamespace(is_global_zero=True), None)
print("held", flush=True)
time.sleep(60)
"""


def test_a_directory_is_one_runs_until_its_process_ends(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    rank = SimpleNamespace(is_global_zero=True)
    with pytest.raises(UserError, match="another process is training in"):
        Hold(tmp_path).on_fit_start(rank, None)
    holder.kill()
    holder.wait()
    Hold(tmp_path).on_fit_start(rank, None)


@pytest.mark.parametrize(
    ("option", "now", "said"),
    [
        ("loss", {"dr_grpo": {"beta": 0.0}}, "model.init_args.loss was grpo, now dr_grpo"),
        ("loss", {"grpo": {"beta": 0.1}}, "model.init_args.loss.grpo.beta was 0.0, now 0.1"),
        ("group_size", 4, "model.init_args.group_size was 8, now 4"),
    ],
)
def test_what_a_run_is_resumed_with_is_compared_with_what_it_was_begun_with(tmp_path, option, now, said):
    options = {"policy": {"model": "nano", "lora": None}, "loss": {"grpo": {"beta": 0.0}}, "group_size": 8}
    config = {"model": {"class_path": "GRPO", "init_args": options}, "trainer": {"max_steps": 5}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    options[option] = now
    config["trainer"]["max_steps"] = 9  # which may change
    with pytest.warns(UserWarning, match=said) as found:
        check_same_run(tmp_path, config)
    assert len(found) == 1
    options["policy"]["lora"] = {"rank": 8}
    with pytest.raises(UserError, match=r"policy\.lora was none, now rank: the run"):
        check_same_run(tmp_path, config)


@pytest.mark.parametrize("text", [b"", b"- a list", b"a: [", b"\xff\xfe\x00"])
def test_a_configuration_that_is_none_any_more_is_compared_with_nothing(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.warns(UserWarning, match="is no configuration any more"):
        check_same_run(tmp_path, {"model": {}})
