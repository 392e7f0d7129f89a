"""The template distribution works as its README says: installed, found, tested, trained with."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TEMPLATE = Path(__file__).parent.parent / "plugins" / "template"
README = (TEMPLATE / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def environment(plugin_folders: dict[str, Path]) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(plugin_folders["template"]), "OMP_NUM_THREADS": "1"}


def run(*command: str, environment: dict[str, str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests_pass_on_the_installed_distribution(environment: dict[str, str], tmp_path: Path) -> None:
    tests = TEMPLATE / "tests"
    out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), environment=environment, cwd=tmp_path)
    assert "4 passed" in out


def test_its_plugins_are_found_and_conform(environment: dict[str, str]) -> None:
    for kind, name in (("task", "arithmetic_sequence"), ("reward", "phrases"), ("loss", "self_imitation")):
        assert f"{kind} `{name}`" in README
        shown = run("-m", "lit_reason", "plugins", "show", name, environment=environment)
        assert shown.startswith(f"{kind} '{name}'")
        assert run("-m", "lit_reason", "plugins", "check", name, environment=environment).startswith("ok ")


def test_the_readmes_configuration_trains(environment: dict[str, str], tiny_llama: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"5\. Use it:\n\n((?: {7}.*\n)+)", README)
    config = yaml.safe_load(block)
    config["model"]["init_args"] |= {
        "policy": {"model": tiny_llama},
        "sampling": {"max_new_tokens": 4},
        "group_size": 2,
        "validation_samples": 0,
    }
    config["data"] |= {"prompts_per_step": 2, "validation_problems": 2}
    config["trainer"] = {"max_steps": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run("-m", "lit_reason", "fit", "--config", "config.yaml", environment=environment, cwd=tmp_path)
