import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lit_reason
from lit_reason.__main__ import INTERRUPTED, guarded, main
from lit_reason.types import UserError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_subcommand_with_an_example(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "export", "merge", "plugins"):
        assert f"lit-reason {command} " in out


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from lit_reason.__main__ import main; main(['--help']); main(['-V']); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"lit-reason {lit_reason.__version__}" in done.stdout
    modules = done.stdout.rpartition("\n[")[2]
    for heavy in ("torch", "lightning", "transformers", "numpy", "jsonargparse", "yaml"):
        assert f"'{heavy}'" not in modules


def test_plugins_are_listed_without_torch():
    code = "import sys; from lit_reason.__main__ import main; main(['plugins', 'list']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "accuracy" in done.stdout
    assert done.stdout.endswith("False\n")


def test_an_unknown_subcommand_is_answered_with_a_near_one(capsys):
    assert main(["ft"]) == 2
    assert capsys.readouterr().err == "error: no subcommand 'ft': did you mean 'fit'?\n"
    assert main(["xyzzy"]) == 2
    assert (
        capsys.readouterr().err
        == "error: no subcommand 'xyzzy': expected one of fit, validate, test, predict, export, merge, plugins\n"
    )


def raising(error):
    def run():
        raise error

    return run


def test_an_error_for_the_user_is_one_line_and_exit_code_1(capsys, monkeypatch):
    monkeypatch.delenv("LIT_REASON_DEBUG", raising=False)
    assert guarded(raising(UserError("one\n  two"))) == 1
    assert capsys.readouterr().err == "error: one two\n"


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("LIT_REASON_DEBUG", "1")
    with pytest.raises(UserError):
        guarded(raising(UserError("one")))


def test_the_debug_option_may_stand_anywhere(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_REASON_DEBUG", "0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        main(["fit", "--config", "nowhere.yaml", "--debug"])


def test_the_flag_that_allows_unsafe_code_is_taken_out_and_told_to_child_processes(monkeypatch, capsys):
    monkeypatch.setenv("LIT_REASON_UNSAFE_CODE", "0")
    assert main(["plugins", "show", "format", "--unsafe-code"]) == 0
    assert os.environ["LIT_REASON_UNSAFE_CODE"] == "1"


def test_a_full_disk_is_named_as_such_with_the_way_on(capsys):
    assert guarded(raising(OSError(errno.ENOSPC, "No space left on device", "metrics.csv"))) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: a file 'metrics.csv' could not be written: No space left on device.")
    assert "--resume" in said


def test_an_error_nobody_foresaw_is_one_line_that_says_where_and_debug_shows_its_traceback(capsys, monkeypatch):
    assert guarded(lambda: 1 // 0) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in ("ZeroDivisionError", "test_main.py, line", "--debug"))
    monkeypatch.setenv("LIT_REASON_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_a_terminated_run_exits_143_and_keeps_its_checkpoint(tmp_path):
    command = [sys.executable, "-m", "lit_reason", "fit", "--config", str(ROOT / "configs" / "grpo.yaml")]
    options = ["--run_dir", "run", "--data.validation_problems", "4", "--data.prompts_per_step", "1"]
    options += ["--trainer.val_check_interval", "1", "--trainer.max_steps", "1000"]
    with subprocess.Popen([*command, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        run.terminate()
        assert run.wait(60) == 143
        assert "Traceback" not in run.stderr.read()
    assert torch.load(checkpoint, weights_only=True)["global_step"] >= 1


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_one_line(tmp_path, capsys, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.ckpt").write_bytes(content)
    assert main(["fit", "--config", str(ROOT / "configs" / "grpo.yaml"), "--ckpt_path", "bad.ckpt"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ckpt_path: checkpoint 'bad.ckpt' ")
    assert error.count("\n") == 1


def test_a_checkpoint_that_carries_code_is_refused_unexecuted(tmp_path, capsys, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    assert main(["fit", "--config", str(ROOT / "configs" / "grpo.yaml"), "--ckpt_path", "evil.ckpt"]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
    assert guarded(raising(KeyboardInterrupt())) == INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_pipe_that_closes_early_is_no_error():
    command = f"{sys.executable} -m lit_reason plugins list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
