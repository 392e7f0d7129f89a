"""Plugins are found by metadata alone, and one that misbehaves disturbs nobody else."""

import subprocess
import sys
from pathlib import Path

import pytest

from lit_reason.registry import BUILT_IN, PluginError, find, installed, load, plugins, unreadable
from lit_reason.reward import Reward


def metadata(root: Path, name: str, entry_points: str, *, version: str = "1.0", folder: str | None = None) -> Path:
    """What an installation leaves behind of a distribution's metadata."""
    info = root / f"{(folder or name).replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n\nName: not this one\n")
    (info / "entry_points.txt").write_text(entry_points)
    return root


def test_built_in_plugins_come_through_entry_points() -> None:
    found = {(p.kind, p.name): p for p in plugins() if p.built_in}
    assert found["reward", "format"].value == "lit_reason.rewards.format:Format"
    assert found["loss", "dapo"].distribution == BUILT_IN
    assert found["loss", "dapo"].full_name == "lit-reason/dapo"
    assert ("task", "reasoning_gym") in found


def test_a_name_loads_its_class() -> None:
    assert load("reward", "format").__name__ == "Format"
    assert load("reward", "lit-reason/format") is load("reward", "Lit_Reason/format") is load("reward", "format")


def test_two_distributions_with_one_name_are_told_apart_by_theirs(
    plugin_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("template", "clashing"):
        monkeypatch.syspath_prepend(plugin_folders[name])
    with pytest.raises(PluginError) as error:
        load("reward", "phrases")
    assert str(error.value) == (
        "reward 'phrases' is offered by clashing-plugin 2.0 and lit-reason-template 0.1.0: "
        "write 'clashing-plugin/phrases' or 'lit-reason-template/phrases'"
    )
    assert load("reward", "Clashing_Plugin/phrases").__name__ == "OtherPhrases"
    assert load("reward", "lit-reason-template/phrases").__name__ == "Phrases"


def test_a_built_in_name_cannot_be_taken(plugin_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin_folders["shadowing"])
    assert load("reward", "accuracy").__module__ == "lit_reason.rewards.accuracy"
    assert load("reward", "shadowing-plugin/accuracy").__name__ == "Generous"


def test_a_broken_plugin_is_an_error_only_for_who_names_it(
    plugin_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(plugin_folders["broken"])
    assert load("reward", "accuracy").__name__ == "Accuracy"
    assert "broken_plugin" not in sys.modules
    with pytest.raises(PluginError) as error:
        load("reward", "unfinished")
    assert str(error.value) == (
        "reward 'unfinished' of broken-plugin 0.3.1 (broken_plugin:Unfinished) failed to import: ModuleNotFoundError: "
        "No module named 'a_module_that_nobody_has'. Install broken-plugin with all that it depends on"
    )


def test_finding_and_naming_plugins_imports_neither_torch_nor_plugins(plugin_folders: dict[str, Path]) -> None:
    code = (
        "import sys; from lit_reason.plugins import LossRef; from lit_reason.registry import find, load; "
        "LossRef('dapo'); find('loss', 'dapo'); load('reward', 'accuracy'); "
        "print([m for m in ('torch', 'lightning', 'broken_plugin', 'lit_reason.losses.dapo') if m in sys.modules])"
    )
    environment = {"PYTHONPATH": str(plugin_folders["broken"])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "acuracy",
            [
                "no reward named 'acuracy' is installed",
                "did you mean 'accuracy'?",
                "installed: accuracy, cosine, format",
            ],
        ),
        ("Accuracy", ["did you mean 'accuracy'?"]),
        ("lit-reason/acuracy", ["did you mean 'lit-reason/accuracy'?"]),
        ("grpo", ["'grpo' is a loss"]),
        ("", ["no reward named ''"]),
        ("/", ["no reward named '/'"]),
    ],
)
def test_an_unknown_name_gets_suggestions(name: str, words: list[str]) -> None:
    with pytest.raises(PluginError) as error:
        find("reward", name)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_the_same_distribution_twice_on_the_path_is_no_clash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = "[lit_reason.rewards]\ntwice = some_module:Thing\n"
    for place, name in (("a", "twice-installed"), ("b", "Twice_Installed")):
        monkeypatch.syspath_prepend(metadata(tmp_path / place, name, entry))
    assert find("reward", "twice").distribution == "twice-installed"


def test_damaged_metadata_is_reported_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(metadata(tmp_path, "damaged", "[lit_reason.rewards]\nwithout an equals sign\n"))
    nameless = tmp_path / "nameless-1.0.dist-info"
    nameless.mkdir()
    (nameless / "entry_points.txt").write_text("[lit_reason.rewards]\norphan = some_module:Thing\n")
    binary = tmp_path / "binary-1.0.dist-info"
    binary.mkdir()
    (binary / "entry_points.txt").write_bytes(b"[lit_reason.rewards]\n\xff\xfe = x:Y\n")
    assert load("reward", "accuracy").__name__ == "Accuracy"
    assert [(u.distribution, u.version) for u in unreadable()] == [("damaged", "1.0")]
    assert (find("reward", "orphan").distribution, find("reward", "orphan").version) == ("unknown", "unknown")
    with pytest.raises(PluginError, match=r"unreadable: damaged 1\.0 \("):
        find("reward", "without")


MODULE = """
import abc
from lit_reason.reward import Reward
from lit_reason.task import Task
class Fine(Reward):
    def score(self, rollout): return 1.0
class Unrelated: ...
class Abstract(Task): ...
thing = Fine()
def function(rollout): return 1.0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of somebody's own, not installed; a name per test, because modules are imported once."""
    name = f"own_module_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_fails.py").write_text("raise RuntimeError('two\\nlines')")
    (tmp_path / f"{name}_leaves.py").write_text("import sys; sys.exit(3)")
    (tmp_path / f"{name}_needs.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_dotted_path_names_a_class_or_a_function(module: str) -> None:
    assert issubclass(load("reward", f"{module}.Fine"), Reward)
    assert load("reward", f"{module}.function")(None) == 1.0


@pytest.mark.parametrize(
    ("kind", "suffix", "words"),
    [
        ("reward", ".Fin", ["has no 'Fin'", "did you mean 'own_module", ".Fine'?"]),
        ("reward", ".Unrelated", ["is not a subclass of lit_reason.reward.Reward"]),
        ("reward", ".thing", ["is a Fine, expected a subclass of lit_reason.reward.Reward"]),
        ("loss", ".Fine", ["is not a subclass of lit_reason.loss.Loss"]),
        ("task", ".Abstract", ["does not implement 'problems' of lit_reason.task.Task"]),
        ("task", ".function", ["is a function, expected a subclass of lit_reason.task.Task"]),
        ("reward", "_missing.Fine", ["there is no module 'own_module", "_missing'"]),
        ("reward", ".Fine.deeper", ["there is no module"]),
        ("reward", "_fails.Fine", ["failed to import: RuntimeError: two lines"]),
        ("reward", "_leaves.Fine", ["failed to import: SystemExit: 3"]),
        ("reward", "_needs.Fine", ["failed to import", "a_module_that_nobody_has"]),
        ("reward", ".not an identifier", ["expected a dotted import path"]),
    ],
)
def test_a_dotted_path_that_leads_nowhere_is_one_clear_line(module: str, kind, suffix: str, words: list[str]) -> None:
    with pytest.raises(PluginError) as error:
        load(kind, module + suffix)
    assert all(word in str(error.value) for word in words), error.value
    assert str(error.value).startswith(f"{kind} '{module}{suffix}'")
    assert "\n" not in str(error.value)


def test_an_installed_class_of_the_wrong_kind_is_refused(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = f"[lit_reason.rewards]\nwrong = {module}:Unrelated\ngone = {module}:Nothing\n"
    monkeypatch.syspath_prepend(metadata(tmp_path / "meta", "wrong-kind", entry, version="2.1"))
    with pytest.raises(PluginError, match=r"reward 'wrong' of wrong-kind 2\.1 .* is not a subclass of"):
        load("reward", "wrong")
    with pytest.raises(PluginError, match=r"reward 'gone' of wrong-kind 2\.1 .* AttributeError"):
        load("reward", "gone")
    assert [p.distribution for p in installed("reward")["wrong"]] == ["wrong-kind"]
