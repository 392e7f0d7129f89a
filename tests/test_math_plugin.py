"""The distribution lit-reason-math works when installed: found, conforming, trained with; its own tests run beside."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def environment(plugin_folders: dict[str, Path]) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(plugin_folders["lit-reason-math"]), "OMP_NUM_THREADS": "1"}


def run(*command: str, environment: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lit_reason", *command],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_plugins_are_found_and_conform(environment: dict[str, str], tmp_path: Path) -> None:
    listed = run("plugins", "list", environment=environment, cwd=tmp_path)
    for name in ("gsm8k", "math_dataset", "deepmath", "math"):
        assert f" {name} " in listed
    assert run("plugins", "check", "math", environment=environment, cwd=tmp_path).startswith("ok ")
    shown = run("plugins", "show", "gsm8k", environment=environment, cwd=tmp_path)
    assert "instruction: str" in shown
    assert "validation_fraction: float | None" in shown


def test_its_recipe_trains(environment: dict[str, str], tmp_path: Path) -> None:
    options = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.validation_problems", "8"]
    options += ["--data.prompts_per_step", "4", "--run_dir", "run"]
    recipe = str(ROOT / "configs" / "grpo-math.yaml")
    run("fit", "--config", recipe, *options, environment=environment, cwd=tmp_path)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    rewards = [float(row["train/reward/math"]) for row in rows if row.get("train/reward/math")]
    assert len(rewards) == 2
    assert all(0 <= reward <= 1 for reward in rewards)


def test_its_tasks_train_on_local_files(environment: dict[str, str], tiny_llama: str, tmp_path: Path) -> None:
    rows = [{"question": f"{n} + {n}?", "answer": f"It is <<{n}+{n}={2 * n}>>.\n#### {2 * n}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = json.dumps({"gsm8k": {"path": "rows.jsonl", "validation_fraction": 0.2, "instruction": ""}})
    options = ["--model.init_args.policy.model", tiny_llama, "--model.init_args.sampling.max_new_tokens", "4"]
    options += ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--data.validation_problems", "2"]
    options += ["--data.prompts_per_step", "2", "--run_dir", "run", "--data.task", task]
    recipe = str(ROOT / "configs" / "grpo-math.yaml")
    run("fit", "--config", recipe, *options, environment=environment, cwd=tmp_path)
    assert (tmp_path / "run" / "model").is_dir()
