import io
from types import SimpleNamespace

import pytest
from lightning.pytorch import Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from lit_reason import GRPO, PolicyOptions, Problem, Sampling
from lit_reason.plugins import RewardRef
from lit_reason.progress import RunProgress, steps_done, steps_planned, summary_line


def fit(tmp_path, model, console, *, max_steps=3, minibatches=1, validate=True):
    problems = [Problem(prompt=[{"role": "user", "content": f"{i} + 1"}], answer=str(i + 1)) for i in range(12)]
    module = GRPO(
        [RewardRef(lambda rollout: float(rollout.length % 2))],
        policy=PolicyOptions(model=model),
        sampling=Sampling(max_new_tokens=6),
        group_size=2,
        minibatches=minibatches,
        validation_samples=0,
    )
    progress = RunProgress(every_n_steps=2)
    progress.console = console
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=max_steps,
        accelerator="cpu",
        callbacks=[progress],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=-1,
        check_val_every_n_epoch=None,
        val_check_interval=2,
    )
    loader = DataLoader(problems, batch_size=2, collate_fn=list)
    trainer.fit(module, loader, DataLoader(problems[:4], batch_size=4, collate_fn=list) if validate else None)
    return trainer


def test_where_there_is_no_terminal_every_few_steps_are_a_plain_line(tmp_path, tiny_llama):
    out = io.StringIO()
    fit(tmp_path, tiny_llama, Console(file=out, width=40), max_steps=5)
    text = out.getvalue()
    assert "\x1b" not in text
    starts = [line.split("  ")[0] for line in text.splitlines()]
    assert starts == [
        "validating the base policy ...",
        "step 1/5",
        "step 2/5",
        "step 2/5",
        "step 4/5",
        "step 4/5",
        "step 5/5",
    ]
    first, validated = text.splitlines()[1], text.splitlines()[3]
    assert [word for word in first.split() if word.isalpha()] == ["step", "reward", "accuracy", "length", "loss"]
    assert validated.startswith("step 2/5  held-out accuracy 0.0 % (0.0-49.0), length ")


def test_on_a_terminal_there_is_one_bar_and_it_is_taken_away_at_the_end(tmp_path, tiny_llama):
    out = io.StringIO()
    fit(tmp_path, tiny_llama, Console(file=out, width=120, force_terminal=True))
    text = out.getvalue()
    assert "base validation" in text
    assert "training" in text
    assert "3/3" in text
    assert "reward" in text
    assert "s/step" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor that was hidden is shown again


def test_steps_are_rollout_phases_however_many_optimizer_steps_each_holds(tmp_path, tiny_llama):
    out = io.StringIO()
    trainer = fit(tmp_path, tiny_llama, Console(file=out, width=80), max_steps=6, minibatches=2, validate=False)
    assert (trainer.global_step, steps_done(trainer), steps_planned(trainer)) == (6, 3, 3)
    assert "step 3/3" in out.getvalue()


def trainer_like(**limits):
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=-1))
    unset = {"max_epochs": -1, "max_steps": -1, "num_training_batches": 10, "global_step": 0}
    return SimpleNamespace(**{**unset, **limits}, fit_loop=loop)


@pytest.mark.parametrize(
    ("limits", "planned"),
    [
        ({"max_epochs": 3}, 30),
        ({"max_steps": 50}, 50),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": 1, "num_training_batches": float("inf")}, None),
        ({}, None),
    ],
)
def test_the_planned_steps_are_the_first_limit_to_be_reached(limits, planned):
    assert steps_planned(trainer_like(**limits)) == planned


def test_only_what_a_module_logs_is_shown():
    assert summary_line({"train/loss": 2.0, "train/length": 31.25}) == "length 31.2  loss 2.000"
