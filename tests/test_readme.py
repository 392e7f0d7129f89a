"""What the README says works: its Python runs, its commands parse, its tree is the tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_embedding_example_runs_as_it_stands(tmp_path: Path) -> None:
    first, sharded = [block for block in blocks("python") if "Trainer(" in block]
    (tmp_path / "example.py").write_text(f"{first}\n{sharded}")
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tmp_path / "my_model")


def test_the_plugin_example_runs_from_a_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = [block for block in blocks("python") if "class Politeness" in block]
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rewards.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    from lit_reason.plugins import RewardRef
    from lit_reason.testing import check_reward

    (text,) = re.findall(r"`rewards: (\[accuracy, my_package.*?\])`", README)
    references = [RewardRef.read(item) for item in yaml.safe_load(text)]
    assert [(r.name, r.weight) for r in references] == [("accuracy", 1.0), ("my_package.rewards.Politeness", 0.1)]
    check_reward(references[1].build())


@pytest.mark.parametrize(
    "command", [line for block in blocks("bash") for line in block.splitlines() if line.startswith("lit-reason fit")]
)
def test_fit_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lit_reason.__main__ import main

    monkeypatch.chdir(ROOT)
    arguments = command.split()[1:]
    if "--print_config" not in arguments:
        arguments.append("--print_config")
    assert main(arguments) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"].endswith("GRPO")


def test_the_two_commands_are_the_documented_ones() -> None:
    setup = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("python3 -m venv")]
    assert len(setup) == 2
    assert setup[0].endswith("lit-reason fit --config configs/grpo.yaml")
    assert setup[1].endswith("pytest")
    assert (ROOT / "tools" / "constraints.txt").is_file()


def test_the_annotated_tree_names_every_module() -> None:
    tree = README.split("## Architecture")[1]
    for path in sorted((ROOT / "lit_reason").glob("*.py")):
        if path.name != "__init__.py":
            assert path.name in tree, path.name


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_built_in_plugins_are_all_listed() -> None:
    from lit_reason.registry import plugins

    (rewards,) = re.findall(r"\| reward \| what .*?\n\n", README, re.DOTALL)
    (others,) = re.findall(r"Built in: (.*?)\n\n", README, re.DOTALL)
    for plugin in plugins():
        if plugin.built_in:
            assert f"`{plugin.name}`" in (rewards if plugin.kind == "reward" else others), plugin
