"""The three modules: on a real Trainer, on real tiny models; golden runs on nano guard every refactor."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from lit_reason import GRPO, SFT, LoRA, PolicyOptions, Problem, RejectionSampling, Rollout, Sampling
from lit_reason.types import UserError

GOLDEN = Path(__file__).parent / "golden"
SHORT = Sampling(max_new_tokens=8)


class Losses(Callback):
    """A user's own callback: what was logged at each step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def __getitem__(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]


def sums(count: int, **kw: Any) -> list[Problem]:
    return [
        Problem(
            prompt=[
                {"role": "user", "content": f"State the final answer to the following arithmetic problem: {a} + 7 ="}
            ],
            answer=str(a + 7),
            completion=f"<think> {a} + 7 is {a + 7} </think> <answer> {a + 7} </answer>",
            id=str(a),
            **kw,
        )
        for a in range(10, 10 + count)
    ]


def fit(module: LightningModule, problems: list[Problem], tmp_path: Path, **options: Any) -> Losses:
    losses = Losses()
    defaults: dict[str, Any] = {"max_steps": 2, "limit_val_batches": 0}
    trainer = Trainer(
        **(defaults | options),
        accelerator="cpu",
        callbacks=[losses],
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module, DataLoader(problems, batch_size=4, collate_fn=list), DataLoader(problems[:4], 4, collate_fn=list)
    )
    losses.trainer = trainer
    return losses


def shorter(rollout: Rollout) -> float:
    """A reward written inline: fewer distinct tokens are better."""
    return -float(len(set(rollout.completion_ids.tolist())))


def weights(module: GRPO | SFT | RejectionSampling) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.policy.parameters()])


def test_grpo_drops_into_a_users_own_trainer(tiny_llama: str, tmp_path: Path) -> None:
    module = GRPO(
        [shorter],
        policy=PolicyOptions(model=tiny_llama),
        sampling=SHORT,
        group_size=4,
        validation_samples=2,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
    )
    losses = fit(module, sums(16), tmp_path, max_steps=3, limit_val_batches=1, val_check_interval=1)
    assert losses.trainer.global_step == 3
    assert len(losses["train/loss"]) == 3
    assert {"train/reward", "train/reward/shorter", "train/length", "val/accuracy", "val/pass@2"} <= set(
        losses.rows[-1]
    )
    assert (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").is_file()


def test_one_stage_can_be_overridden(tiny_llama: str, tmp_path: Path) -> None:
    class Best(GRPO):
        """Learns from the best completion of each group only."""

        def credit(self, rollouts: list[Rollout]) -> list[Rollout]:
            rollouts = super().credit(rollouts)
            return [r for r in rollouts if r.advantage > 0]

    losses = fit(
        Best([shorter], policy=PolicyOptions(model=tiny_llama), sampling=SHORT, group_size=4), sums(8), tmp_path
    )
    assert len(losses["train/loss"]) == 2


def test_a_batch_that_is_no_list_of_problems_says_what_to_do(tiny_llama: str, tmp_path: Path) -> None:
    module = GRPO([shorter], policy=PolicyOptions(model=tiny_llama), sampling=SHORT)
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    with pytest.raises(UserError, match="collate_fn=list"):
        trainer.fit(module, DataLoader([{"question": "1 + 1"}], batch_size=1))


@pytest.mark.parametrize("kind", ["grpo", "sft", "rejection"])
def test_the_same_run_twice_is_the_same_to_the_bit(tmp_path: Path, kind: str) -> None:
    runs = [golden_run(kind, tmp_path / str(i)) for i in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("kind", ["grpo", "sft", "rejection"])
def test_golden_run(tmp_path: Path, kind: str) -> None:
    """A few steps on nano; regenerate with `python tests/test_modules.py` after an intended change."""
    expected = json.loads((GOLDEN / f"{kind}.json").read_text())
    actual = golden_run(kind, tmp_path)
    assert actual.keys() == expected.keys()
    # what the log-probabilities of many tokens add up to differs with the kind of processor after four optimizer steps
    loose = {"train/entropy": {"abs": 1e-5}, "train/kl": {"rel": 1e-3}}
    for name, values in expected.items():
        assert actual[name] == pytest.approx(values, **loose.get(name, {"abs": 1e-6})), name


def golden_run(kind: str, folder: Path) -> dict[str, list[float]]:
    torch.set_num_threads(1)  # the order of a sum is part of the number
    nano = PolicyOptions(model="nano")
    sampling = Sampling(max_new_tokens=48)
    module: GRPO | SFT | RejectionSampling
    if kind == "grpo":
        module = GRPO(
            [correct_or_short],
            policy=nano,
            loss={"grpo": {"beta": 0.01}},
            group_size=4,
            sampling=sampling,
            minibatches=2,
            passes=2,
            optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4),
        )
    elif kind == "sft":
        module = SFT(policy=nano, sampling=sampling, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4))
    else:
        module = RejectionSampling(
            [correct_or_short],
            policy=nano,
            threshold=0.01,
            group_size=4,
            minibatches=2,
            sampling=sampling,
            optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4),
        )
    losses = fit(module, sums(12), folder, max_steps=-1, max_epochs=1)
    names = ["train/loss", "train/entropy", "train/length"] + (["train/reward", "train/kl"] if kind == "grpo" else [])
    return {name: losses[name] for name in names}


def correct_or_short(rollout: Rollout) -> float:
    return 1.0 / rollout.length


def test_minibatches_and_passes_are_optimizer_steps(tiny_llama: str, tmp_path: Path) -> None:
    module = GRPO(
        [shorter], policy=PolicyOptions(model=tiny_llama), sampling=SHORT, group_size=3, minibatches=2, passes=2
    )
    losses = fit(module, sums(8), tmp_path, max_steps=-1, max_epochs=1)
    assert losses.trainer.global_step == 2 * 2 * 2
    assert module.phase == 2


def test_first_step_is_on_policy(tiny_llama: str, tmp_path: Path) -> None:
    """Ratio 1 everywhere, nothing clipped, no divergence from the reference."""
    module = GRPO([shorter], policy=PolicyOptions(model=tiny_llama), sampling=SHORT, loss={"dapo": {"beta": 0.1}})
    losses = fit(module, sums(4), tmp_path, max_steps=1)
    assert losses["train/ratio"] == pytest.approx([1.0], abs=1e-6)
    assert losses["train/clipped"] == [0.0]
    assert losses["train/kl"] == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
@pytest.mark.parametrize("lora", [None, LoRA(rank=4, alpha=8)])
def test_precisions_and_adapters_train_what_they_should(
    tiny_llama: str, tmp_path: Path, precision: str, lora: LoRA | None
) -> None:
    options = PolicyOptions(model=tiny_llama, lora=lora, gradient_checkpointing=True)
    module = GRPO([shorter], policy=options, sampling=SHORT, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    module.configure_model()
    before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    losses = fit(module, sums(4), tmp_path, max_steps=1, precision=precision)
    assert losses["train/ratio"] == pytest.approx([1.0], abs=1e-6)
    moved = {n for n, p in module.policy.named_parameters() if not torch.equal(p.detach(), before[n].to(p.dtype))}
    # an adapter's A has no gradient while its B is still zero
    expected = {n for n in before if lora is None or "lora_B" in n}
    assert moved == expected


def test_half_precision_clips_the_gradient_and_not_its_scaled_form(tiny_llama: str, tmp_path: Path) -> None:
    moved = []
    for plugins in ([], [MixedPrecision("16-mixed", "cpu")]):
        module = GRPO(
            [shorter],
            policy=PolicyOptions(model=tiny_llama),
            sampling=SHORT,
            gradient_clip=0.01,
            optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        )
        module.configure_model()
        before = weights(module)
        losses = fit(module, sums(4), tmp_path, max_steps=1, plugins=plugins)
        assert losses["train/grad_norm"][0] > 0.01
        moved.append(float((weights(module) - before).norm()))
    assert moved == pytest.approx([0.01, 0.01], rel=1e-2)


def test_old_logprobs_are_those_of_the_sampling_policy(tiny_llama: str, tmp_path: Path) -> None:
    """With several steps on one phase the ratio must leave 1, measured against the policy before the first of them."""
    module = GRPO(
        [shorter],
        policy=PolicyOptions(model=tiny_llama),
        sampling=SHORT,
        passes=3,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
    )
    losses = fit(module, sums(4), tmp_path, max_steps=3)
    assert abs(losses["train/ratio"][0] - 1) > 1e-4


def test_no_reference_is_kept_unless_the_loss_asks(tiny_llama: str, tmp_path: Path) -> None:
    for beta, kept in ((0.0, 0), (0.1, 1)):
        module = GRPO([shorter], policy=PolicyOptions(model=tiny_llama), sampling=SHORT, loss={"grpo": {"beta": beta}})
        fit(module, sums(4), tmp_path, max_steps=1)
        assert len(module.policy._frozen_reference) == kept


def test_truncated_completions_leave_the_loss_and_its_normaliser(tiny_llama: str, tmp_path: Path) -> None:
    module = GRPO(
        [shorter],
        policy=PolicyOptions(model=tiny_llama),
        sampling=Sampling(max_new_tokens=2),
        mask_truncated=True,
        group_size=4,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
    )
    module.configure_model()
    before = weights(module)
    fit(module, sums(4), tmp_path, max_steps=1)
    assert all(not r.mask.any() for r in module.last_rollouts if r.finish_reason == "length")
    if all(r.finish_reason == "length" for r in module.last_rollouts):
        assert torch.equal(weights(module), before)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
def test_truncated_completions_weigh_as_if_they_were_not_there(tiny_llama: str, tmp_path: Path, loss: str) -> None:
    class Half(GRPO):
        """Calls every second completion truncated, and can leave those out."""

        leave_out = False

        def credit(self, rollouts: list[Rollout]) -> list[Rollout]:
            for index, rollout in enumerate(rollouts):
                rollout.finish_reason = "length" if index % 2 else "stop"
            return [r for r in super().credit(rollouts) if r.finish_reason == "stop" or not self.leave_out]

    moved = []
    for leave_out in (False, True):
        policy = PolicyOptions(model=tiny_llama)
        module = Half([shorter], policy=policy, loss=loss, sampling=SHORT, group_size=4, mask_truncated=not leave_out)
        module.leave_out = leave_out
        losses = fit(module, sums(4), tmp_path, max_steps=1)
        moved.append((losses["train/loss"], losses["train/grad_norm"], losses["train/entropy"]))
    assert moved[0] == moved[1]
    assert moved[0][1][0] > 0


def test_equal_rewards_teach_nothing(tiny_llama: str, tmp_path: Path) -> None:
    module = GRPO(
        [constant],
        policy=PolicyOptions(model=tiny_llama),
        sampling=SHORT,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
    )
    module.configure_model()
    before = weights(module)
    fit(module, sums(4), tmp_path, max_steps=1)
    assert torch.equal(weights(module), before)


def constant(rollout: Rollout) -> float:
    return 0.1


def test_impossible_options_are_named_before_a_model_loads(tiny_llama: str) -> None:
    policy = PolicyOptions(model=tiny_llama)
    for build, words in [
        (lambda: GRPO([shorter], policy=policy, group_size=1), "group_size must be 2 or more"),
        (lambda: GRPO([], policy=policy), "rewards is empty"),
        (lambda: GRPO([shorter], policy=policy, minibatches=0), "minibatches must be 1 or more"),
        (lambda: GRPO([shorter], policy=policy, sampling=Sampling(temperature=0.0)), "temperature must be above 0"),
        (lambda: GRPO([shorter], policy=PolicyOptions(model="./nowhere")), "no folder './nowhere'"),
        (lambda: GRPO([shorter], policy=policy, gradient_clip=-1.0), "gradient_clip must be above 0"),
        (lambda: RejectionSampling([shorter], policy=policy, keep=0), "keep must be 1 or more"),
        (lambda: RejectionSampling([shorter], policy=policy, rationalize=True, hint="x"), "hint must contain"),
        (lambda: SFT(policy=policy, max_tokens=0), "max_tokens must be 1 or more"),
    ]:
        with pytest.raises(UserError, match=words):
            build()


def test_an_exploding_gradient_stops_the_run_and_spares_the_weights(tiny_llama: str, tmp_path: Path) -> None:
    class Exploding(GRPO):
        def credit(self, rollouts: list[Rollout]) -> list[Rollout]:
            for rollout in rollouts:
                rollout.advantage = float("inf")
            return rollouts

    module = Exploding([shorter], policy=PolicyOptions(model=tiny_llama), sampling=SHORT)
    module.configure_model()
    before = weights(module)
    with pytest.raises(UserError, match="the gradient of step 0"):
        fit(module, sums(4), tmp_path)
    assert torch.equal(weights(module), before)


# ---------------------------------------------------------------------- SFT


@pytest.mark.parametrize("packing", [False, True])
def test_sft_loss_is_transformers_loss_on_the_completion_alone(tiny_llama: str, tmp_path: Path, packing: bool) -> None:
    module = SFT(
        policy=PolicyOptions(model=tiny_llama),
        packing=packing,
        tokens_per_microbatch=150,
        sampling=Sampling(temperature=0.5),  # of validation, no part of the loss
    )
    problems = sums(4)
    problems[1].completion = "<answer> 18 </answer>"
    losses = fit(module, problems, tmp_path, max_steps=1)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    total, tokens = 0.0, 0
    for problem in problems:
        prompt = module.policy.render(problem.prompt)
        completion = module.policy.encode_completion(problem)
        ids = torch.cat([prompt, completion])[None]
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        with torch.no_grad():
            total += float(model(ids, labels=labels).loss) * len(completion)
        tokens += len(completion)
    assert losses["train/loss"] == pytest.approx([total / tokens], rel=1e-5)


def test_sft_learns_both_modes_and_leaves_long_examples_out(tmp_path: Path) -> None:
    module = SFT(policy=PolicyOptions(model="nano"), max_tokens=90)
    module.configure_model()
    thinking, blurting = sums(1)[0], sums(1, think=False)[0]
    blurting.completion = "<think> </think> <answer> 17 </answer>"
    endless = sums(1)[0]
    endless.completion = "1 " * 200
    written = module.written([thinking, blurting, endless])
    assert len(written) == 2
    whole = [module.policy.decode(torch.cat([r.prompt_ids, r.completion_ids])) for r in written]
    assert all(text.count("<think>") == 1 for text in whole)


def test_sft_without_completions_names_the_problem(tiny_llama: str, tmp_path: Path) -> None:
    problem = sums(1)[0]
    problem.completion = None
    with pytest.raises(UserError, match="problem '10' of task 'inline' has no completion"):
        fit(SFT(policy=PolicyOptions(model=tiny_llama)), [problem], tmp_path)


# ---------------------------------------------------------------------- rejection sampling


def sample(text: str, length: int, reward: float | None, group: int = 0, finish: str = "stop") -> Rollout:
    ids = torch.zeros(length, dtype=torch.int64)
    problem = Problem(prompt=[{"role": "user", "content": "Q"}], answer="1")
    return Rollout(
        problem=problem,
        prompt_ids=ids[:1],
        completion_ids=ids,
        text=text,
        reward=reward,
        group=group,
        finish_reason=finish,
    )


CANDIDATES = [
    sample("wrong", 1, 0.0),
    sample("middle", 5, 1.0),
    sample("short", 3, 1.0),
    sample("long", 9, 1.0),
    sample("short ", 3, 1.0),  # a duplicate but for whitespace
    sample("cut", 2, 1.0, finish="length"),
    sample("unjudged", 2, None),
    sample("other", 4, 1.0, group=1),
]


@pytest.mark.parametrize(
    ("select", "keep", "expected"),
    [
        ("first", 1, ["middle", "other"]),
        ("shortest", 1, ["short", "other"]),
        ("longest", 1, ["long", "other"]),
        ("first", 10, ["middle", "short", "long", "other"]),
    ],
)
def test_selection(tiny_llama: str, select: str, keep: int, expected: list[str]) -> None:
    module = RejectionSampling([shorter], policy=PolicyOptions(model=tiny_llama), select=select, keep=keep)
    assert [r.text for r in module.select(CANDIDATES)] == expected


def test_random_selection_follows_the_seed_and_never_repeats_itself(tiny_llama: str) -> None:
    def chosen(seed: int) -> list[str]:
        policy = PolicyOptions(model=tiny_llama)
        module = RejectionSampling([shorter], policy=policy, select="random", keep=2, seed=seed)
        return [r.text for r in module.select(CANDIDATES)]

    assert chosen(1) == chosen(1)
    assert len({tuple(chosen(seed)) for seed in range(8)}) > 1
    assert all(len(set(chosen(seed))) == 3 for seed in range(8))


def test_accepted_samples_are_kept_as_jsonl_that_sft_can_read(tmp_path: Path) -> None:
    module = RejectionSampling(
        [correct_or_short], policy=PolicyOptions(model="nano"), threshold=0.0, sampling=Sampling(max_new_tokens=64)
    )
    losses = fit(module, sums(4), tmp_path, max_steps=-1, max_epochs=1)
    rows = [json.loads(line) for line in (Path(losses.trainer.log_dir) / "accepted.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["prompt"][-1]["role"] == "user" and row["completion"] and row["answer"] for row in rows)
    from lit_reason.tasks.dataset import Dataset

    task = Dataset(path=str(Path(losses.trainer.log_dir) / "accepted.jsonl"), validation_fraction=0.0)
    assert [p.completion for p in task.problems("train")] == [row["completion"] for row in rows]


def test_restarting_rounds_begin_from_the_base_weights(tiny_llama: str, tmp_path: Path) -> None:
    class Watched(RejectionSampling):
        def update(self, rollouts: Sequence[Rollout]) -> None:
            self.starts = [*getattr(self, "starts", []), weights(self)]
            super().update(rollouts)

    for restart in (True, False):
        module = Watched(
            [correct_or_short],
            policy=PolicyOptions(model=tiny_llama),
            threshold=0.0,
            restart=restart,
            sampling=Sampling(max_new_tokens=30, temperature=2.0),
            group_size=8,
            minibatches=1,
            optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        )
        fit(module, sums(8), tmp_path, max_steps=-1, max_epochs=1)
        assert len(module.starts) == 2
        assert torch.equal(module.starts[0], module.starts[1]) == restart


def test_rationalisation_asks_with_the_answer_and_learns_without_it(tmp_path: Path) -> None:
    class Watched(RejectionSampling):
        def explain(self, problems: Sequence[Problem]) -> list[Rollout]:
            self.failed = list(problems)
            self.explained = super().explain(problems)
            return self.explained

    def only_with_hint(rollout: Rollout) -> float:
        return float("Hint" in rollout.problem.prompt[-1]["content"])

    module = Watched(
        [only_with_hint], policy=PolicyOptions(model="nano"), rationalize=True, sampling=Sampling(max_new_tokens=64)
    )
    fit(module, sums(4), tmp_path, max_steps=-1, max_epochs=1)
    assert len(module.failed) == 4
    assert module.explained
    for rollout in module.explained:
        assert "Hint" not in rollout.problem.prompt[-1]["content"]
        assert "Hint" not in module.policy.decode(rollout.prompt_ids)


if __name__ == "__main__":
    import tempfile

    GOLDEN.mkdir(exist_ok=True)
    for name in ("grpo", "sft", "rejection"):
        with tempfile.TemporaryDirectory() as folder:
            (GOLDEN / f"{name}.json").write_text(json.dumps(golden_run(name, Path(folder)), indent=1) + "\n")
