"""Checkpoints: a run goes on where it stopped, to the bit; and a checkpoint rebuilds its module, plugins and all."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CONFIG = """
seed_everything: 3
model:
  class_path: {module}
  init_args:
    policy: {{model: {model}}}
    {rewards}
    sampling: {{max_new_tokens: 12}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-3}}}}
data:
  task: {{nano_traces: {{size: 60}}}}
  prompts_per_step: 4
  validation_problems: 4
trainer: {{max_steps: 6, val_check_interval: 3, num_sanity_val_steps: 0}}
"""
GRPO = "rewards: [{format: {strict: false, weight: 0.5}}, {length: {target: 4, span: 8}}]\n    group_size: 3"
REJECTION = "rewards: [format: {strict: false}]\n    group_size: 4\n    threshold: 0.0\n    minibatches: 1"


def fit(folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "lit_reason", "fit", "--config", "config.yaml", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def losses(run: Path) -> dict[str, str]:
    with (run / "metrics.csv").open() as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


@pytest.mark.parametrize(
    ("module", "rewards"), [("GRPO", GRPO), ("SFT", "packing: false"), ("RejectionSampling", REJECTION)]
)
def test_a_run_resumed_from_its_checkpoint_repeats_the_uninterrupted_one(
    tiny_llama: str, tmp_path: Path, module: str, rewards: str
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(module=module, model=tiny_llama, rewards=rewards))
    fit(tmp_path, "--run_dir", "whole")
    fit(tmp_path, "--run_dir", "half", "--trainer.max_steps", "3")
    fit(tmp_path, "--run_dir", "half", "--ckpt_path", "half/checkpoints/last.ckpt")
    whole, half = losses(tmp_path / "whole"), losses(tmp_path / "half")
    assert len(whole) == 6
    assert half == whole


def test_a_checkpoint_holds_plain_data_and_rebuilds_its_module(tiny_llama: str, tmp_path: Path) -> None:
    import lit_reason

    (tmp_path / "config.yaml").write_text(CONFIG.format(module="GRPO", model=tiny_llama, rewards=GRPO))
    fit(tmp_path, "--run_dir", "run", "--trainer.max_steps", "1")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    module = lit_reason.GRPO.load_from_checkpoint(path, weights_only=True)
    assert [(w.name, w.weight) for w in module.rewards] == [("format", 0.5), ("length", 1.0)]
    assert module.sampling.max_new_tokens == 12
    assert module.phase == 1
    for name, value in module.state_dict().items():
        assert torch.equal(value, state["state_dict"][name])
