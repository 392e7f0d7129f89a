import subprocess
import sys

import pytest

import lit_reason
from lit_reason.__main__ import INTERRUPTED, guarded, main
from lit_reason.types import UserError


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_subcommand_with_an_example(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "plugins"):
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
        == "error: no subcommand 'xyzzy': expected one of fit, validate, test, predict, plugins\n"
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


def test_an_error_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
    assert guarded(raising(KeyboardInterrupt())) == INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_pipe_that_closes_early_is_no_error():
    command = f"{sys.executable} -m lit_reason plugins list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
