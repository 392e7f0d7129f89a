"""Checkpoints: a run goes on where it stopped, to the bit; and a checkpoint rebuilds its module, plugins and all."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

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
  task: {{nano_traces: {{size: {size}}}}}
  prompts_per_step: 4
  validation_problems: 4
trainer: {{max_steps: 6, val_check_interval: 3, num_sanity_val_steps: 0}}
"""
GRPO = "rewards: [{format: {strict: false, weight: 0.5}}, {length: {target: 4, span: 8}}]\n    group_size: 3"


def fit(folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "lit_reason", "fit", "--config", "config.yaml", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def losses(run: Path) -> dict[str, str]:
    with (run / "metrics.csv").open() as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def test_a_run_resumed_from_a_checkpoint_that_is_named_repeats_the_uninterrupted_one(
    tiny_llama: str, tmp_path: Path
) -> None:
    config = CONFIG.format(module="GRPO", model=tiny_llama, rewards=GRPO, size=12)  # three phases an epoch
    (tmp_path / "config.yaml").write_text(config)
    fit(tmp_path, "--run_dir", "whole")
    fit(tmp_path, "--run_dir", "half", "--trainer.max_steps", "4")  # in the midst of the second epoch
    fit(tmp_path, "--run_dir", "half", "--ckpt_path", "half/checkpoints/last.ckpt")
    whole, half = losses(tmp_path / "whole"), losses(tmp_path / "half")
    assert len(whole) == 6
    assert half == whole


def test_killed_runs_of_every_module_become_the_untouched_ones_to_the_bit(tmp_path: Path) -> None:
    """One kill each; `tools/kill_test.py` alone has more, and two ranks."""
    tool = Path(__file__).parent.parent / "tools" / "kill_test.py"
    command = [sys.executable, str(tool), "--kills", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("identical\n") == 4  # three modules, and the last line


def test_a_checkpoint_holds_plain_data_and_rebuilds_its_module(tiny_llama: str, tmp_path: Path) -> None:
    import lit_reason

    (tmp_path / "config.yaml").write_text(CONFIG.format(module="GRPO", model=tiny_llama, rewards=GRPO, size=60))
    fit(tmp_path, "--run_dir", "run", "--trainer.max_steps", "1")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    module = lit_reason.GRPO.load_from_checkpoint(path, weights_only=True)
    assert [(w.name, w.weight) for w in module.rewards] == [("format", 0.5), ("length", 1.0)]
    assert module.sampling.max_new_tokens == 12
    assert module.phase == 1
    for name, value in module.state_dict().items():
        assert torch.equal(value, state["state_dict"][name])


@pytest.mark.parametrize(
    ("size", "limit", "at"),
    [(4, 1.0, 2), (60, 1.0, 2), (60, 2, 3)],
    ids=["at the end of an epoch", "in its midst", "in the midst of a limited one"],
)
def test_a_checkpoint_at_the_end_of_a_batch_counts_its_phase(
    tiny_llama: str, tmp_path: Path, size: int, limit: float, at: int
) -> None:
    """Whoever writes it: here a user's own ModelCheckpoint. Dropout of adapters goes on where it was, too."""
    import lit_reason

    def letters(rollout: lit_reason.Rollout) -> float:
        return sum(map(ord, rollout.text)) % 7 / 7

    def fit(folder: Path, ckpt_path: Path | None = None) -> dict[str, Any]:
        module = lit_reason.GRPO(
            [letters],  # all completions are of one length, and nothing would be learnt of that
            policy=lit_reason.PolicyOptions(model=tiny_llama, lora=lit_reason.LoRA(rank=2, dropout=0.5)),
            sampling=lit_reason.Sampling(max_new_tokens=8),
            group_size=4,
            optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        )
        data = lit_reason.ReasoningData({"nano_traces": {"size": size}}, prompts_per_step=2, validation_problems=0)
        every = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        options["limit_train_batches"] = limit
        Trainer(max_steps=at + 1, callbacks=[every], **options).fit(module, data, ckpt_path=ckpt_path)
        return torch.load(folder / f"step={at + 1}.ckpt", weights_only=True)

    whole = fit(tmp_path / "whole")
    half = fit(tmp_path / "half", tmp_path / "whole" / f"step={at}.ckpt")
    assert whole["lit_reason"]["phase"] == half["lit_reason"]["phase"] == at + 1
    assert whole["ReasoningData"]["phases_done"] == half["ReasoningData"]["phases_done"] == at + 1
    for name, value in whole["state_dict"].items():
        assert torch.equal(half["state_dict"][name], value), name
