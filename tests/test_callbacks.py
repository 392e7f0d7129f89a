import io
import json
import resource
import signal
from datetime import timedelta
from types import SimpleNamespace

import pytest
import rich
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from rich.console import Console
from torch.utils.data import DataLoader
from two_ranks import on_two_ranks

from lit_reason import GRPO, SFT, PolicyOptions, Problem, Rollout, Sampling
from lit_reason.callbacks import (
    Curve,
    FinalValidation,
    OptimizerOptions,
    Predictions,
    Report,
    Rewind,
    Samples,
    SavedModel,
    Summary,
    append_rows,
    closing_lines,
    sample_row,
)
from lit_reason.checkpoint_callback import CheckpointOptions, RunCheckpoints
from lit_reason.console import sample_table
from lit_reason.plugins import RewardRef
from lit_reason.run_log import RunLogger, read_metrics
from lit_reason.types import UserError


@pytest.fixture
def shown(monkeypatch):
    """What the callbacks print."""
    out = io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=out, width=100))
    return out


PROBLEMS = [
    Problem(
        prompt=[{"role": "user", "content": f"{i} + 1"}],
        answer=str(i + 1),
        completion=f"<think>one more</think> <answer>{i + 1}</answer>",
        id=str(i),
    )
    for i in range(8)
]


def loader(problems=PROBLEMS, size=2):
    return DataLoader(problems, batch_size=size, collate_fn=list)


def odd_length(rollout):
    return float(rollout.length % 2)


def grpo(model, lr=1e-6, **options):
    return GRPO(
        [RewardRef(odd_length)],
        policy=PolicyOptions(model=model),
        sampling=Sampling(max_new_tokens=6),
        group_size=2,
        validation_samples=0,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0),
        **options,
    )


def trainer(folder, *callbacks, **options):
    defaults = {
        "max_steps": 3,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": -1,
        "logger": [RunLogger(folder)],
        "log_every_n_steps": 1,
    }
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**defaults, **options},
    )


def rollout(
    text="<think>x</think> <answer>4</answer>", *, reward=1.0, rewards=None, advantage=0.5, finish="stop", group=0
):
    ids = torch.zeros(7, dtype=torch.int64)
    problem = Problem(prompt=[{"role": "user", "content": "2 + [b]2[/b]"}], answer="4")
    return Rollout(
        problem=problem,
        prompt_ids=ids,
        completion_ids=ids,
        text=text,
        finish_reason=finish,
        rewards=rewards or {"accuracy": reward, "format": None},
        statuses={"accuracy": "ok", "format": "cut_off"},
        reward=reward,
        advantage=advantage,
        group=group,
    )


# ---------------------------------------------------------------------- samples
def test_a_sample_is_written_in_words_and_numbers_a_person_can_read():
    assert sample_row(rollout(advantage=torch.tensor([0.5, 0.25]))) == {
        "prompt": "2 + [b]2[/b]",
        "completion": "<think>x</think> <answer>4</answer>",
        "answer": "4",
        "gold": "4",
        "rewards": {"accuracy": 1.0, "format": None},
        "statuses": {"accuracy": "ok", "format": "cut_off"},
        "reward": 1.0,
        "advantage": [0.5, 0.25],
        "length": 7,
        "finish_reason": "stop",
    }


def test_every_row_is_json_whatever_the_model_wrote(tmp_path):
    path = tmp_path / "new" / "samples.jsonl"
    texts = ["\udc80", "\x1b[2J", "caf\u00e9", 'a "quote"\n']
    append_rows(path, [{"completion": text} for text in texts])
    assert [json.loads(line)["completion"] for line in path.read_text().splitlines()] == texts


def test_the_table_shows_the_best_first_and_neither_markup_nor_control_characters_act():
    out = io.StringIO()
    group = [rollout("[red]no[/red]\x1b[2J", reward=0.0, finish="length"), rollout(reward=1.0), rollout(reward=None)]
    table = sample_table(group, "step 1", width=140)
    Console(file=out, width=140, force_terminal=True, color_system=None).print(table)
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    assert lines[0].split("  ")[0].strip().endswith("step 1: 2 + [b]2[/b]")
    assert "\x1b[2J" not in out.getvalue()
    assert [line.split()[-3:] for line in lines[2:]] == [["-", "+0.50", "7"], ["-", "+0.50", "7+"], ["-", "+0.50", "7"]]
    assert r"[red]no[/red]\x1b[2J" in lines[3]


def test_the_table_is_no_wider_than_the_terminal():
    out = io.StringIO()
    Console(file=out, width=60).print(sample_table([rollout("very long " * 40)], "step 1"))
    assert max(len(line) for line in out.getvalue().splitlines()) <= 60


def test_with_many_rewards_half_of_the_table_is_the_completion_and_a_line_names_what_is_left_out():
    out = io.StringIO()
    rewards = dict.fromkeys(["accuracy", "format", *(f"reward_number_{n}" for n in range(8))], 1.0)
    group = [rollout("long " * 40, rewards=rewards), rollout(rewards=rewards)]
    Console(file=out, width=120).print(sample_table(group, "step 1", width=120))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[1].split() == ["completion", "answer", "reward", "accuracy", "format", "advantage", "tokens"]
    assert lines[1].index("answer") >= 60
    assert lines[4].startswith("also in samples.jsonl: reward_number_0, reward_number_1,")


def test_samples_are_those_of_all_ranks(tmp_path):
    def rows(rank, _):
        return Samples._rows(SimpleNamespace(world_size=2), [rollout(f"of rank {rank}")], 1, "train")

    for found in on_two_ranks(rows, tmp_path):
        assert [row["completion"] for row in found] == ["of rank 0", "of rank 1"]


def test_samples_of_the_first_and_of_every_nth_step_are_kept(tmp_path, tiny_llama, shown):
    trainer(tmp_path, Samples(tmp_path, every_n_steps=3), max_steps=4, enable_checkpointing=False).fit(
        grpo(tiny_llama), loader()
    )
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(1, "train")] * 4 + [(3, "train")] * 4
    assert {"odd_length"} == set(rows[0]["rewards"])
    assert "step 1: " in shown.getvalue()
    assert "step 3: " in shown.getvalue()


def test_a_module_that_samples_nothing_shows_its_held_out_answers(tmp_path, tiny_llama, shown):
    module = SFT(policy=PolicyOptions(model=tiny_llama), sampling=Sampling(max_new_tokens=4))
    trainer(tmp_path, Samples(tmp_path), max_steps=2, enable_checkpointing=False).fit(module, loader(), loader(size=8))
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(2, "validation")] * 8
    assert "step 2, held out: 0 + 1" in shown.getvalue()


# ---------------------------------------------------------------------- validation, summary, curve
def test_a_fit_ends_in_a_validation_and_begins_with_the_base_policy_as_step_0(tmp_path, tiny_llama, shown):
    callbacks = [FinalValidation(), Summary(tmp_path), Curve(tmp_path)]
    trainer(tmp_path, *callbacks, enable_checkpointing=False).fit(grpo(tiny_llama), loader(), loader(size=8))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [step for step, row in rows.items() if "val/accuracy" in row] == [0, 2, 3]
    assert [step for step, row in rows.items() if "train/reward" in row] == [1, 2, 3]
    assert (tmp_path / "curve.png").stat().st_size > 0
    assert shown.getvalue().startswith("finished after 3 steps, ")


def test_the_last_epoch_ends_in_a_validation_too_and_only_in_one(tmp_path, tiny_llama, shown):
    options = {"max_steps": -1, "max_epochs": 1, "val_check_interval": 4, "enable_checkpointing": False}
    trainer(tmp_path, FinalValidation(), Summary(tmp_path), **options).fit(
        grpo(tiny_llama), loader(PROBLEMS[:6]), loader(size=8)
    )
    assert [step for step, row in read_metrics(tmp_path / "metrics.csv").items() if "val/accuracy" in row] == [0, 3]


def test_the_closing_lines_say_what_was_gained(tmp_path):
    logger = RunLogger(tmp_path)
    rates = {"val/problems": 200.0, "val/accuracy_low": 0.0, "val/accuracy_high": 1.0}
    logger.write(0, {"val/accuracy": 0.05, "val/length": 20.0, **rates})
    logger.write(2, {"val/accuracy": 0.5, "val/length": 44.0, **rates})
    logger.write(3, {"val/accuracy": 0.43, "val/length": 45.5, **rates})
    (tmp_path / "config.yaml").touch()
    assert closing_lines(tmp_path, how="finished", minutes=1.25) == [
        "finished after 3 steps, 1.2 minutes",
        "accuracy  base 5.0 % (0.0-100.0) -> step 3 43.0 % (0.0-100.0): +38.0 points on 200 held-out problems",
        "best      50.0 % (0.0-100.0) at step 2",
        "length    20.0 -> 45.5 tokens",
        f"run       {tmp_path}: config.yaml, metrics.csv",
    ]


def test_a_run_without_validation_has_only_its_place_to_tell(tmp_path):
    RunLogger(tmp_path).write(1, {"train/loss": 1.0})
    assert closing_lines(tmp_path, how="interrupted", minutes=0.0) == [
        "interrupted after 1 steps, 0.0 minutes",
        f"run       {tmp_path}: metrics.csv",
    ]


# ---------------------------------------------------------------------- checkpoints
def test_the_newest_and_the_best_are_kept_as_plain_data(tmp_path, tiny_llama):
    (tmp_path / "step-9.ckpt").touch()  # of a run that went on from an earlier one
    callbacks = [FinalValidation(), RunCheckpoints(tmp_path, CheckpointOptions(every_n_steps=1, keep_last=2))]
    trainer(tmp_path, *callbacks, max_steps=5).fit(grpo(tiny_llama), loader(), loader(size=8))
    kept = ["best.ckpt", "last.ckpt", "step-2.ckpt", "step-4.ckpt", "step-5.ckpt", "step-9.ckpt"]
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == kept
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 2


def test_a_resumed_run_records_nothing_twice(tmp_path, tiny_llama, shown):
    def fit(steps, **options):
        callbacks = [Samples(tmp_path, every_n_steps=1), Rewind(tmp_path), Summary(tmp_path)]
        callbacks.append(RunCheckpoints(tmp_path, CheckpointOptions(every_n_steps=1, keep_last=9)))
        trainer(tmp_path, *callbacks, max_steps=steps).fit(grpo(tiny_llama), loader(), loader(size=8), **options)
        rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_bytes().splitlines()]
        return [row["step"] for row in rows], sorted(read_metrics(tmp_path / "metrics.csv"))

    assert fit(3) == ([1] * 4 + [2] * 4 + [3] * 4, [0, 1, 2, 3])
    for name in ("samples.jsonl", "metrics.csv"):
        with (tmp_path / name).open("a") as file:
            file.write("4,0.1")  # a line that was being written when the process was killed
    assert fit(4, ckpt_path=tmp_path / "step-1.ckpt") == ([1] * 4 + [2] * 4 + [3] * 4 + [4] * 4, [0, 1, 2, 3, 4])


def test_without_any_validation_the_last_step_is_still_kept(tmp_path, tiny_llama):
    trainer(tmp_path, FinalValidation(), RunCheckpoints(tmp_path)).fit(grpo(tiny_llama), loader())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_long_stretches_without_validation_are_saved_by_the_clock(tmp_path, tiny_llama):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path, RunCheckpoints(tmp_path, CheckpointOptions(minutes=0.0)), Stop()).fit(
            grpo(tiny_llama), loader()
        )
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


def test_an_interrupted_run_keeps_its_last_checkpoint_its_curve_and_its_closing_lines(tmp_path, tiny_llama, shown):
    class PressCtrlC(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                signal.raise_signal(signal.SIGINT)

    callbacks = [RunCheckpoints(tmp_path), Curve(tmp_path), Summary(tmp_path), PressCtrlC()]
    # whatever started the tests may ignore it, as shells do for what runs in the background
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit):
            trainer(tmp_path, *callbacks).fit(grpo(tiny_llama), loader(), loader(size=8))
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert (tmp_path / "curve.png").exists()
    assert shown.getvalue().startswith("interrupted after 2 steps, ")


def test_a_picture_that_cannot_be_drawn_is_a_warning_and_a_model_that_cannot_be_written_an_error(tmp_path, tiny_llama):
    (tmp_path / "curve.png").mkdir()

    class FullDisk(Callback):
        def on_fit_end(self, *_):
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # more than this, and writing fails

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fitting = trainer(tmp_path, Curve(tmp_path), FullDisk(), SavedModel(tmp_path), max_steps=1)
    try:
        with (
            pytest.warns(UserWarning, match="curve.png could not be drawn"),
            pytest.raises(UserError, match=rf"'{tmp_path}/model': .*File too large.*export {tmp_path} --to hf"),
        ):
            fitting.fit(grpo(tiny_llama), loader())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_max_time_is_of_a_session_and_a_run_it_stopped_says_how_to_go_on(tmp_path, tiny_llama, shown):
    module = grpo(tiny_llama)
    for session in (1, 2):  # each takes a step before it looks at the clock
        callbacks = [RunCheckpoints(tmp_path), Summary(tmp_path), Timer(timedelta(microseconds=1))]
        fitting = trainer(tmp_path, *callbacks, max_steps=9)
        fitting.fit(module, loader(), ckpt_path=tmp_path / "last.ckpt" if session > 1 else None)
        assert fitting.global_step == session
    said = shown.getvalue()
    assert said.count("stopped by max_time") == 2
    assert f"go on     lit-reason fit --config {tmp_path / 'config.yaml'} --resume" in said


def test_a_resumed_run_trains_with_the_learning_rate_it_was_asked_for(tmp_path, tiny_llama):
    first = trainer(tmp_path, OptimizerOptions(), RunCheckpoints(tmp_path), max_steps=1)
    first.fit(grpo(tiny_llama, lr=0.25), loader())
    again = trainer(tmp_path, OptimizerOptions(), max_steps=2, enable_checkpointing=False)
    again.fit(grpo(tiny_llama, lr=0.5), loader(), ckpt_path=tmp_path / "last.ckpt")
    (group,) = again.optimizers[0].param_groups
    assert group["lr"] == 0.5
    assert again.optimizers[0].state[group["params"][0]]["step"] == 2  # the moments are the checkpoint's


def test_a_scheduled_learning_rate_keeps_its_place_when_a_resumed_run_asks_for_another(tmp_path, tiny_llama):
    def halving(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    first = trainer(tmp_path, OptimizerOptions(), RunCheckpoints(tmp_path), max_steps=2)
    first.fit(grpo(tiny_llama, lr=0.5, lr_scheduler=halving), loader())
    again = trainer(tmp_path, OptimizerOptions(), max_steps=3, enable_checkpointing=False)
    again.fit(grpo(tiny_llama, lr=2.0, lr_scheduler=halving), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert again.optimizers[0].param_groups[0]["lr"] == 2.0 / 8  # halved three times in all


def test_a_scheduler_that_starts_below_the_asked_rate_is_left_alone_on_fresh_and_resumed_runs(tmp_path, tiny_llama):
    def warming_up(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=8, cycle_momentum=False)

    def rates(steps, **options):
        run = trainer(tmp_path, OptimizerOptions(), RunCheckpoints(tmp_path), max_steps=steps)
        run.fit(grpo(tiny_llama, lr=1.0, lr_scheduler=warming_up), loader(), **options)
        return run.optimizers[0].param_groups[0]["lr"]

    alone = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warming_up(alone)
    expected = []
    for _ in range(4):
        alone.step()
        schedule.step()
        expected.append(alone.param_groups[0]["lr"])
    assert rates(2) == expected[1]
    assert rates(4, ckpt_path=tmp_path / "last.ckpt") == expected[3]


# ---------------------------------------------------------------------- validate and predict
def test_validate_prints_a_table_and_writes_it_down(tmp_path, tiny_llama, shown):
    trainer(tmp_path, Report(tmp_path), logger=False).validate(grpo(tiny_llama), loader(size=8), verbose=False)
    written = json.loads((tmp_path / "validate.json").read_text())
    assert written["problems"] == 8
    assert written["accuracy_low"] == 0
    assert "accuracy" in shown.getvalue()
    assert f"written to {tmp_path / 'validate.json'}" in shown.getvalue()


def test_predictions_are_written_with_the_tasks_score_and_replace_older_ones(tmp_path, tiny_llama, shown):
    for _ in range(2):
        trainer(tmp_path, Predictions(tmp_path), logger=False).predict(
            grpo(tiny_llama), loader(), return_predictions=False
        )
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"{i} + 1" for i in range(8)]
    assert set(rows[0]) == {"prompt", "completion", "answer", "gold", "length", "finish_reason", "score"}
    assert shown.getvalue().count("written to") == 2
