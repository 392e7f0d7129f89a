"""`lit-reason plugins`, run as a person runs it, on really installed distributions."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_reason.plugin_commands import main
from lit_reason.registry import plugins as installed_plugins

NO_TORCH = "import sys; sys.modules['torch'] = sys.modules['lightning'] = None; "  # importing either would fail


def plugins(*arguments: str, path: list[Path] | None = None, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}import sys; from lit_reason.plugin_commands import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path or [])), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def everything(plugin_folders: dict[str, Path]) -> list[Path]:
    return list(plugin_folders.values())


def test_list_names_what_to_write_who_brings_it_and_what_for(everything: list[Path]) -> None:
    start = time.perf_counter()
    run = plugins("list", path=everything, before=NO_TORCH)
    seconds = time.perf_counter() - start
    assert run.returncode == 0, run.stderr
    lines = {tuple(line.split()[:2]): " ".join(line.split()[2:]) for line in run.stdout.splitlines()}
    assert lines["task", "arithmetic_sequence"] == (
        "lit-reason-template 0.1.0 Name the next number of an arithmetic sequence."
    )
    assert lines["reward", "format"].startswith("lit-reason 0.1.0 Keeps completions in the form")
    assert lines["reward", "unfinished"].startswith("broken-plugin 0.3.1 Would reward")
    assert lines["reward", "shadowing-plugin/accuracy"].endswith("('accuracy' is the built-in one)")
    assert lines["reward", "clashing-plugin/phrases"].endswith("('phrases' is also offered by lit-reason-template)")
    assert ("reward", "lit-reason-template/phrases") in lines
    assert ("reward", "accuracy") in lines
    assert seconds < 5  # about 0.1 alone; the bound only has to be below what importing torch takes on a busy machine


def test_list_as_json_says_the_same(plugin_folders: dict[str, Path]) -> None:
    rows = json.loads(plugins("list", "--json", path=[plugin_folders["template"]], before=NO_TORCH).stdout)
    assert {
        "kind": "loss",
        "name": "self_imitation",
        "write": "self_imitation",
        "distribution": "lit-reason-template",
        "version": "0.1.0",
        "value": "lit_reason_template.loss:SelfImitation",
        "note": "",
    }.items() <= next(row for row in rows if row["name"] == "self_imitation").items()
    assert {row["distribution"] for row in rows} == {"lit-reason", "lit-reason-template"}


def test_show_prints_options_with_types_defaults_and_docs(plugin_folders: dict[str, Path]) -> None:
    run = plugins("show", "phrases", path=[plugin_folders["template"]], before=NO_TORCH)
    assert run.returncode == 0, run.stderr
    assert "reward 'phrases'" in run.stdout
    assert "from    lit-reason-template 0.1.0, lit_reason_template.reward:Phrases" in run.stdout
    assert "enough: int = 3\n        occurrences that give the full reward of 1." in run.stdout
    assert "phrases: Sequence[str] = ('wait', 'let me check')\n" in run.stdout
    assert "weight: float = 1.0" in run.stdout


def test_show_tells_source_and_weight_of_a_reward_that_only_measures() -> None:
    run = plugins("show", "reflection", before=NO_TORCH)
    assert "2503.20783" in run.stdout
    assert "weight: float = 0.0\n" in run.stdout
    assert "  limits  none\n" in run.stdout


def test_a_reward_that_asks_for_problems_of_its_own_is_not_broken() -> None:
    run = plugins("check", "lcpo_max")
    assert run.returncode == 0
    assert "imports, not run: reward 'lcpo_max': problem 'sum-0' has no length target; wrap the task" in run.stdout


def test_show_describes_losses_and_broken_plugins_without_importing_them(plugin_folders: dict[str, Path]) -> None:
    loss = plugins("show", "self_imitation", path=[plugin_folders["template"]], before=NO_TORCH)
    assert "beta: float = 0.0\n        weight of the KL term to the reference" in loss.stdout
    broken = plugins("show", "broken-plugin/unfinished", path=[plugin_folders["broken"]], before=NO_TORCH)
    assert "Would reward, if its module could be imported." in broken.stdout


def test_show_prints_everything_a_name_may_mean(everything: list[Path]) -> None:
    run = plugins("show", "phrases", path=everything)
    assert "clashing_plugin:OtherPhrases" in run.stdout
    assert "lit_reason_template.reward:Phrases" in run.stdout


@pytest.mark.parametrize(("command", "name"), [("show", "formet"), ("check", "lit-reason/formet")])
def test_an_unknown_name_is_one_line_with_a_suggestion_and_exit_2(command: str, name: str) -> None:
    run = plugins(command, name)
    assert (run.returncode, run.stdout) == (2, "")
    assert (
        run.stderr
        == f"error: no plugin named '{name}' is installed; did you mean '{name.replace('formet', 'format')}'?\n"
    )


def test_a_wrong_command_line_is_one_line_and_exit_2() -> None:
    run = plugins("lst")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "invalid choice: 'lst'" in run.stderr


def test_check_tells_the_broken_from_the_sound_and_goes_on(everything: list[Path]) -> None:
    names = ["arithmetic_sequence", "broken-plugin/unfinished", "shadowing-plugin/accuracy", "format", "self_imitation"]
    run = plugins("check", *names, path=everything)
    lines = run.stdout.splitlines()
    assert len(lines) == 5
    assert run.returncode == 1, run.stdout + run.stderr
    assert (
        "ok      loss 'self_imitation' of lit-reason-template 0.1.0 (lit_reason_template.loss:SelfImitation)" in lines
    )
    assert "ok      reward 'accuracy' of shadowing-plugin 1.0 (shadowing_plugin:Generous)" in lines
    assert any(line.startswith("ok      task 'arithmetic_sequence'") for line in lines)
    assert any(line.startswith("ok      reward 'format' of lit-reason 0.1.0") for line in lines)
    (unfinished,) = [line for line in lines if "unfinished" in line]
    assert unfinished == (
        "broken  reward 'unfinished' of broken-plugin 0.3.1 (broken_plugin:Unfinished): failed to import: "
        "ModuleNotFoundError: No module named 'a_module_that_nobody_has'. Install broken-plugin with all that it "
        "depends on"
    )


def test_a_distribution_with_damaged_entry_points_is_named_and_stops_no_list(tmp_path: Path) -> None:
    info = tmp_path / "damaged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: damaged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lit_reason.rewards]\nwithout an equals sign\n")
    listed = plugins("list", path=[tmp_path], before=NO_TORCH)
    assert listed.returncode == 0
    assert "reward  accuracy" in listed.stdout
    assert "unreadable: damaged 1.0: " in listed.stdout
    checked = plugins("check", path=[tmp_path])
    assert checked.returncode == 1
    assert checked.stdout.startswith("broken  damaged 1.0: its entry points cannot be read: ")


def test_check_of_two_sound_plugins_exits_0(plugin_folders: dict[str, Path]) -> None:
    run = plugins("check", "lit-reason-template/phrases", "format", path=list(plugin_folders.values()))
    assert (run.returncode, len(run.stdout.splitlines())) == (0, 2)


def test_check_without_names_checks_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = [plugin for plugin in installed_plugins() if plugin.full_name in ("lit-reason/format", "lit-reason/dapo")]
    monkeypatch.setattr("lit_reason.plugin_commands.plugins", lambda: iter(few))
    for arguments in (["check"], ["check", "--all"]):
        assert main(arguments) == 0
        assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["ok", "reward"], ["ok", "loss"]]


def test_check_takes_names_or_all_and_checks_nothing_when_one_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "accuracy", "formet"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: no plugin named 'formet' is installed; did you mean 'format'?\n")
    with pytest.raises(SystemExit):
        main(["check", "--all", "accuracy"])
    assert "give names or --all, not both" in capsys.readouterr().err


BAD = '''
from lit_reason.reward import Reward
from lit_reason.types import UserError

class Forgetful(Reward):
    """Never conforms."""
    def score(self, rollout): return float("nan") if rollout.text else 1 / 0

class Demanding(Reward):
    """Needs an option."""
    def __init__(self, path: str): ...
    def score(self, rollout): return 1.0
'''


def test_check_reports_what_does_not_conform_and_what_cannot_be_run_without_options(tmp_path: Path) -> None:
    info = tmp_path / "bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lit_reason.rewards]\nforgetful = bad_plugin:Forgetful\ndemanding = bad_plugin:Demanding\n"
    )
    (tmp_path / "bad_plugin.py").write_text(BAD)
    forgetful = plugins("check", "forgetful", path=[tmp_path])
    assert forgetful.returncode == 1
    assert "Forgetful does not conform:" in forgetful.stdout
    assert "returned nan for problem 'sum-0'; expected a finite number or None" in forgetful.stdout
    assert "ZeroDivisionError" in forgetful.stdout
    demanding = plugins("check", "demanding", path=[tmp_path])
    assert demanding.returncode == 0
    assert "imports, not run: reward 'bad/demanding' (bad 1.0) needs the option 'path'" in demanding.stdout
