"""The command line as people run it: real processes, on nano."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

CONFIG = """\
model:
  class_path: GRPO
  init_args:
    policy: {model: nano}
    rewards:
      - accuracy
      - format: {strict: false, weight: 0.25}
    group_size: 4
    sampling: {max_new_tokens: 24}
    validation_samples: 2
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-4}}
data:
  task: {nano_traces: {size: 60}}
  prompts_per_step: 4
  validation_problems: 8
trainer: {max_steps: 3, val_check_interval: 2, accelerator: cpu}
"""


def lit_reason(folder, *arguments):
    command = [sys.executable, "-m", "lit_reason", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def rows(run):
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def fitted(folder):
    """One run of three steps; what it printed, and its directory."""
    done = lit_reason(folder, "fit", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    return done, folder / "runs" / "grpo"


def test_a_run_directory_holds_everything(fitted):
    _, run = fitted
    there = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    names = {
        "config.yaml",
        "metrics.csv",
        "samples.jsonl",
        "curve.png",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    }
    assert names <= there


def test_metrics_begin_with_the_base_policy_and_end_in_a_validation(fitted):
    _, run = fitted
    table = rows(run)
    assert [step for step, row in table.items() if row["val/accuracy"]] == [0, 2, 3]
    assert [step for step, row in table.items() if row["train/reward"]] == [1, 2, 3]
    assert table[0]["val/pass@2"]
    assert table[1]["train/reward/format"]


def test_the_output_shows_the_steps_a_table_of_samples_and_the_gain(fitted):
    done, run = fitted
    lines = done.stdout.splitlines()
    assert any(line.startswith("step 3/3  reward ") for line in lines)
    assert any(line.startswith("step 3/3  held-out accuracy ") for line in lines)
    assert any(line.split()[:3] == ["completion", "answer", "reward"] for line in lines)
    assert lines[-5].startswith("finished after 3 steps")
    assert " -> step 3 " in lines[-4]
    assert lines[-1].startswith(f"run       runs/{run.name}: config.yaml, ")


def test_nothing_is_said_that_the_user_could_not_use(fitted):
    done, _ = fitted
    for noise in (
        "Tip:",
        "num_workers",
        "Warning",
        "is deprecated",
        "litlogger",
        "GPU available",
        "UserWarning",
        "\x1b",
    ):
        assert noise not in done.stdout + done.stderr


def test_the_saved_config_repeats_the_run_in_a_directory_of_its_own(folder, fitted):
    _, run = fitted
    done = lit_reason(folder, "fit", "--config", "runs/grpo/config.yaml")
    assert done.returncode == 0, done.stderr
    again = rows(folder / "runs" / "grpo-2")
    for step, row in rows(run).items():
        measured = {name: value for name, value in row.items() if "second" not in name}
        assert {name: again[step][name] for name in measured} == measured
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["rewards"] == [
        {"accuracy": {"weight": 1.0}},
        {"format": {"strict": False, "weight": 0.25}},
    ]


def test_checkpoints_hold_plain_data_and_rebuild_the_module_with_its_plugins(fitted):
    from lit_reason import GRPO

    _, run = fitted
    path = run / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["hyper_parameters"]["group_size"] == 4
    module = GRPO.load_from_checkpoint(path)
    assert [(reward.name, reward.weight) for reward in module.rewards] == [("accuracy", 1.0), ("format", 0.25)]


def test_a_resumed_run_continues_in_its_directory_under_the_command_lines_options(folder, tmp_path):
    options = ["--config", str(folder / "config.yaml"), "--data.validation_problems", "0"]
    assert lit_reason(tmp_path, "fit", *options, "--trainer.max_steps", "1").returncode == 0
    resumed = [*options, "--trainer.max_steps", "2", "--ckpt_path", "last", "--model.optimizer.lr", "0.5"]
    done = lit_reason(tmp_path, "fit", *resumed)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["grpo"]
    table = rows(tmp_path / "runs" / "grpo")
    assert sorted(table) == [1, 2]
    assert float(table[2]["train/learning_rate"]) == 0.5
    saved = yaml.safe_load((tmp_path / "runs/grpo/config.yaml").read_text())
    assert saved["ckpt_path"] is None
    assert saved["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5


def test_validate_prints_intervals_and_writes_into_the_run_it_measures(folder, fitted):
    _, run = fitted
    done = lit_reason(folder, "validate", "--config", "config.yaml", "--ckpt_path", "runs/grpo/checkpoints/last.ckpt")
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in done.stdout
    written = json.loads((run / "validate.json").read_text())
    assert written["problems"] == 8
    assert written["accuracy"] == pytest.approx(float(rows(run)[3]["val/accuracy"]))
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 3


def test_predict_writes_completions_and_says_where(folder):
    done = lit_reason(folder, "predict", "--config", "config.yaml", "--run_dir", "answers")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "written to answers/predictions.jsonl"
    predictions = (folder / "answers" / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 8
    assert json.loads(predictions[0])["completion"]


def test_ctrl_c_is_one_line_and_130_and_keeps_what_there_is(folder, tmp_path):
    options = ["--config", str(folder / "config.yaml"), "--trainer.max_steps", "100000", "--run_dir", "run"]
    command = [sys.executable, "-u", "-m", "lit_reason", "fit", *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not process.stdout.readline().startswith("step 2/100000  held-out"):
            assert process.poll() is None, process.stderr.read()
        while not (tmp_path / "run/checkpoints/last.ckpt").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("SIGINT: saved run/checkpoints/step-")
    assert err.splitlines()[-1].endswith("go on with: lit-reason fit --config run/config.yaml --resume")
    assert "Traceback" not in err
    assert "interrupted after" in out
    assert (tmp_path / "run" / "curve.png").exists()


def test_a_reward_that_fails_while_training_is_one_line(folder, tmp_path):
    (tmp_path / "broken_reward.py").write_text("def always_nan(rollout):\n    return float('nan')\n")
    options = ["--config", str(folder / "config.yaml"), "--data.validation_problems", "0"]
    done = lit_reason(tmp_path, "fit", *options, "--model.rewards+=broken_reward.always_nan")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: reward 'broken_reward.always_nan' returned nan")
    assert "Traceback" not in done.stderr


def test_a_users_own_logger_and_callbacks_join_ours(folder, tmp_path):
    (tmp_path / "more.yaml").write_text(
        "trainer:\n"
        "  max_steps: 1\n"
        "  logger: {class_path: CSVLogger, init_args: {save_dir: theirs}}\n"
        "  callbacks:\n"
        "    - {class_path: LearningRateMonitor}\n"
        "    - {class_path: lit_reason.progress.RunProgress, init_args: {every_n_steps: 1}}\n"
        "data: {validation_problems: 0}\n"
    )
    done = lit_reason(tmp_path, "fit", "--config", str(folder / "config.yaml"), "--config", "more.yaml")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/grpo/metrics.csv").exists()
    assert list((tmp_path / "theirs").rglob("metrics.csv"))
    assert done.stdout.count("step 1/1  ") == 1
