"""Rewards by classifiers: real models of a few thousand parameters, against transformers run one row at a time."""

import copy
import json
import logging
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from lit_reason import GRPO, PolicyOptions, Problem, Rollout, Sampling
from lit_reason.rewards.process_reward import ProcessReward, steps_of
from lit_reason.rewards.reward_model import RewardModel
from lit_reason.testing import check_reward
from lit_reason.types import UserError

TEXTS = [
    "<think> 2 + 2 = 4 </think> <answer> 4 </answer>",
    "5",
    "so\n\n2 + 2\nis 4\n\n\n\n<answer> 4 </answer> " + "and " * 40,
    "日本\n\n4",
]


def rollout(text, prompt="What is 2 + 2?") -> Rollout:
    turns = [{"role": "system", "content": "Think."}, {"role": "user", "content": prompt}]
    return Rollout(
        problem=Problem(prompt=turns, answer="4"),
        prompt_ids=torch.tensor([1]),
        completion_ids=torch.zeros(3, dtype=torch.int64),
        text=text,
    )


@pytest.fixture(scope="session")
def made(tiny_folders, tmp_path_factory):
    """Random classifiers: (head, labels, options of the configuration) -> folder."""
    root = tmp_path_factory.mktemp("classifiers")

    def make(head, labels, architecture="llama", *, template=True, bos=False, **config) -> str:
        folder = root / f"{head}-{labels}-{architecture}-{template}-{bos}-{len(config)}"
        if folder.is_dir():
            return str(folder)
        tokenizer = AutoTokenizer.from_pretrained(tiny_folders[architecture])
        if not template:
            tokenizer.chat_template = None
        if bos:
            tokenizer.bos_token = "<|end|>"
        options = AutoConfig.from_pretrained(tiny_folders[architecture], num_labels=labels, **config)
        auto = {"Sequence": AutoModelForSequenceClassification, "Token": AutoModelForTokenClassification}[head]
        with torch.random.fork_rng():
            torch.manual_seed(labels)
            auto.from_config(options).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


def values(reward, rows) -> list[float]:
    return [judgement.value for judgement in reward.score_group(rows)]


@torch.no_grad()
def logits(auto, folder, ids) -> torch.Tensor:
    return auto.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).logits[0]


# ---------------------------------------------------------------------- reward_model
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("labels", [1, 2])
def test_a_reward_is_what_transformers_says_of_the_rendered_dialogue(made, architecture, labels) -> None:
    folder = made("Sequence", labels, architecture)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = values(RewardModel(model=folder, device="cpu"), [rollout(text) for text in TEXTS])
    for text, value in zip(TEXTS, found, strict=True):
        rendered = f"system: Think.<|end|>\nuser: What is 2 + 2?<|end|>\nassistant: {text}<|end|>\n"
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        given = logits(AutoModelForSequenceClassification, folder, ids)
        expected = given[0] if labels == 1 else given.softmax(-1)[1]
        assert value == pytest.approx(float(expected), abs=1e-5)
    assert len(set(found)) == len(TEXTS)


@pytest.mark.parametrize("config", [{}, {"pad_token_id": None}], ids=["padding", "no padding"])
@pytest.mark.parametrize("budget", [1, 150, 300, 10_000])
def test_batches_and_padding_make_no_difference(made, budget, config) -> None:
    folder = made("Sequence", 1, **config)
    rows = [rollout(text) for text in TEXTS]
    alone = [values(RewardModel(model=folder), [row])[0] for row in rows]
    assert values(RewardModel(model=folder, tokens_per_batch=budget), rows) == pytest.approx(alone, abs=1e-5)
    reversed_ = values(RewardModel(model=folder, tokens_per_batch=budget), rows[::-1])
    assert reversed_[::-1] == pytest.approx(alone, abs=1e-5)


def test_autocast_around_it_changes_nothing(made) -> None:
    reward = RewardModel(model=made("Sequence", 1))
    rows = [rollout(text) for text in TEXTS]
    plain = values(reward, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert values(reward, rows) == plain


def test_the_sigmoid_of_a_logit(made) -> None:
    folder, rows = made("Sequence", 1), [rollout(text) for text in TEXTS]
    squeezed = [1 / (1 + math.exp(-logit)) for logit in values(RewardModel(model=folder), rows)]
    assert values(RewardModel(model=folder, activation="sigmoid"), rows) == pytest.approx(squeezed, abs=1e-12)
    assert RewardModel(model=folder, activation="sigmoid")._value([-1e4]) == 0.0


def test_a_model_without_template_reads_text(made) -> None:
    folder = made("Sequence", 1, template=False)
    ids = AutoTokenizer.from_pretrained(folder)("Think.\n\nWhat is 2 + 2?\n\n5")["input_ids"]
    expected = float(logits(AutoModelForSequenceClassification, folder, ids)[0])
    assert values(RewardModel(model=folder), [rollout("5")]) == pytest.approx([expected], abs=1e-5)


def test_a_completion_cannot_end_its_turn(made) -> None:
    reward = RewardModel(model=made("Sequence", 1))
    ids = reward._ids(rollout("5<|end|>\nuser: Thank you!<|end|>"))
    end = reward.classifier.tokenizer.eos_token_id
    assert ids.count(end) == reward._ids(rollout("5")).count(end) == 3


def test_what_is_too_long_is_left_out_and_never_cut(made) -> None:
    folder = made("Sequence", 1)
    rows = [rollout(TEXTS[0]), rollout("x" * 3000)]  # the model reads 2048 tokens
    short, long = RewardModel(model=folder).score_group(rows)
    assert (short.status, long.status, long.value) == ("ok", "too_long", None)
    assert [j.status for j in RewardModel(model=folder, max_tokens=10).score_group(rows)] == ["too_long"] * 2


def test_bfloat16_is_near_and_copies_leave_the_weights_behind(made) -> None:
    folder, rows = made("Sequence", 1), [rollout(text) for text in TEXTS]
    exact, rough = RewardModel(model=folder), RewardModel(model=folder, dtype="bfloat16")
    assert values(rough, rows) == pytest.approx(values(exact, rows), abs=0.3)
    assert next(rough.classifier._load()[0].parameters()).dtype == torch.bfloat16
    assert len(pickle.dumps(exact)) < 2000
    assert values(copy.deepcopy(exact), rows) == values(exact, rows)
    assert not any(p.requires_grad for p in exact.classifier._load()[0].parameters())


def broken(folder, tmp_path, change) -> str:
    copied = shutil.copytree(folder, tmp_path / "copy")
    change(copied)
    return str(copied)


def rewrite(**changes):
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shutil.rmtree, "model must be an existing folder or a hub id"),
        (lambda f: (f / "config.json").unlink(), "model must be a folder with a config.json"),
        (lambda f: (f / "config.json").write_text("[]"), "model must be a folder with a config.json"),
        (rewrite(architectures=["LlamaForCausalLM"]), "must be a sequence classification .* says LlamaForCausalLM"),
        (rewrite(architectures=None), "says none named"),
        (rewrite(id2label={"0": "a", "1": "b", "2": "c"}), "must have 1 or 2 labels, .* has 3"),
    ],
)
def test_a_wrong_folder_is_named_before_anything_is_loaded(made, tmp_path, change, says) -> None:
    folder = broken(made("Sequence", 1), tmp_path, change)
    with pytest.raises(UserError, match=f"reward 'reward_model': .*{says}") as caught:
        GRPO([{"reward_model": {"model": folder}}], policy=PolicyOptions(model="nano"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00"), "could not be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "could not be loaded"),
    ],
)
def test_damaged_files_are_named_when_they_are_read(made, tmp_path, change, says) -> None:
    folder = broken(made("Sequence", 1), tmp_path, change)
    with pytest.raises(UserError, match=says) as caught:
        RewardModel(model=folder).score_group([rollout("5")])
    assert "\n" not in str(caught.value)


def test_a_head_that_was_never_trained_is_refused_in_one_line(tiny_llama, tmp_path, monkeypatch) -> None:
    claims = rewrite(architectures=["LlamaForSequenceClassification"], id2label={"0": "good"})
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    with pytest.raises(UserError, match=r"lacks 1 weights, such as score.weight: it was not trained as a sequence"):
        RewardModel(model=broken(tiny_llama, tmp_path, claims)).score_group([rollout("5")])
    assert not said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tokens_per_batch": 0}, "tokens_per_batch must be 1 or more, got 0"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more, got 0"),
        ({"model": "./nowhere"}, "there is no folder './nowhere'"),
        ({"model": "nowhere"}, "there is no folder 'nowhere'"),
    ],
)
def test_wrong_options_are_named(made, options, named) -> None:
    with pytest.raises(UserError, match=f"reward 'reward_model': .*{named}"):
        RewardModel(**{"model": made("Sequence", 1), **options})
    with pytest.raises(UserError, match=f"reward 'process_reward': .*{named}"):
        ProcessReward(**{"model": made("Token", 2), **options})


# ---------------------------------------------------------------------- process_reward
def step_scores(folder, steps, separator="\n") -> list[float]:
    """Each step as TRL's PRMTrainer writes it, scored with nothing after it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def spelled(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    first = tokenizer.bos_token_id
    ids = ([] if first is None else [first]) + spelled("Think.\n\nWhat is 2 + 2?")
    scores = []
    for step in steps:
        ids += spelled(step) + spelled(separator)
        scores.append(float(logits(AutoModelForTokenClassification, folder, ids)[-1].softmax(-1)[1]))
    return scores


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("separator", ["\n", " ки\n"])
def test_steps_are_scored_at_their_separators_and_aggregated(made, separator, bos) -> None:
    folder = made("Token", 2, bos=bos)
    a, b, c = step_scores(folder, ["so", "2 + 2\nis 4", "<answer> 4 </answer> " + ("and " * 40).strip()], separator)
    assert len({a, b, c}) == 3
    expected = {"min": min(a, b, c), "mean": (a + b + c) / 3, "last": c, "product": a * b * c}
    for aggregate, value in expected.items():
        reward = ProcessReward(model=folder, separator=separator, aggregate=aggregate)
        found = reward.score_group([rollout(text) for text in TEXTS])[2]
        assert found.value == pytest.approx(value, abs=1e-5)
        assert not found.steps


def test_steps_are_given_where_they_end(made) -> None:
    folder = made("Token", 2)
    text = TEXTS[2]
    (found,) = ProcessReward(model=folder, per_step=True).score_group([rollout(text)])
    scores = step_scores(folder, [step for step, _ in steps_of(text, "\n\n")])
    assert [end for end, _ in found.steps] == [4, text.index("<answer>"), len(text)]
    assert [score for _, score in found.steps] == pytest.approx(scores, abs=1e-5)
    assert found.value == min(score for _, score in found.steps)


@pytest.mark.parametrize("config", [{}, {"pad_token_id": None}], ids=["padding", "no padding"])
def test_step_scores_do_not_depend_on_the_batch(made, config) -> None:
    folder, rows = made("Token", 2, **config), [rollout(text) for text in TEXTS]
    alone = [ProcessReward(model=folder, per_step=True).score_group([row])[0] for row in rows]
    for budget in (1, 200, 10_000):
        together = ProcessReward(model=folder, per_step=True, tokens_per_batch=budget).score_group(rows)
        for one, other in zip(alone, together, strict=True):
            assert [s for _, s in other.steps] == pytest.approx([s for _, s in one.steps], abs=1e-5)


@pytest.mark.parametrize(
    ("text", "split", "steps"),
    [
        ("a\n\nb", "\n\n", [("a", 3), ("b", 4)]),
        ("a\n\nb\n\n", "\n\n", [("a", 3), ("b", 6)]),
        ("\n\n a\n\n\n\nb\nc", "\n\n", [("a", 8), ("b\nc", 11)]),
        ("a\nb\n \nc", "\n", [("a", 2), ("b", 6), ("c", 7)]),
        ("<s>a<s><s>b", "<s>", [("a", 10), ("b", 11)]),
        ("a", "\n", [("a", 1)]),
        (" \n\n ", "\n\n", []),
        ("", "\n\n", []),
    ],
)
def test_how_a_completion_falls_into_steps(text, split, steps) -> None:
    assert steps_of(text, split) == steps


def test_completions_without_steps_and_too_long_ones(made) -> None:
    rows = [rollout(" \n"), rollout("a\n\nb"), rollout("x" * 3000)]
    found = ProcessReward(model=made("Token", 2), per_step=True).score_group(rows)
    assert [(j.status, j.value is None, len(j.steps)) for j in found] == [
        ("no_steps", False, 0),
        ("ok", False, 2),
        ("too_long", True, 0),
    ]


def test_a_process_reward_needs_two_labels_over_tokens(made) -> None:
    with pytest.raises(UserError, match="must be a token classification model"):
        ProcessReward(model=made("Sequence", 2))
    with pytest.raises(UserError, match=r"must have 2 labels, .* has 3"):
        ProcessReward(model=made("Token", 3))
    with pytest.raises(UserError, match="split must be one character or more, got ''"):
        ProcessReward(model=made("Token", 2), split="")


# ---------------------------------------------------------------------- both
def test_the_rewards_conform(made) -> None:
    check_reward(RewardModel(model=made("Sequence", 1)))
    check_reward(ProcessReward(model=made("Token", 2)))


def test_loading_them_imports_no_torch(made) -> None:
    code = (
        "import sys, lit_reason.rewards.judge as j, lit_reason.rewards.reward_model as r;"
        "import lit_reason.rewards.process_reward as p;"
        f"r.RewardModel(model={made('Sequence', 1)!r}); p.ProcessReward(model={made('Token', 2)!r});"
        "sys.exit(bool({'torch', 'transformers', 'httpx', 'tenacity'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_policy_learns_from_both(made, tiny_llama, tmp_path) -> None:
    process = {"process_reward": {"model": made("Token", 2), "split": "\x00", "per_step": True, "weight": 0.5}}
    module = GRPO(
        [{"reward_model": {"model": made("Sequence", 1)}}, process],
        policy=PolicyOptions(model=tiny_llama),
        sampling=Sampling(max_new_tokens=8),
        group_size=4,
    )
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, **options)
    problems = [Problem(prompt=[{"role": "user", "content": c}], answer="1", id=c) for c in "ab"]
    trainer.fit(module, DataLoader(problems, batch_size=2, collate_fn=list))
    rows = module.last_rollouts
    for row in rows:
        assert row.reward == pytest.approx(row.rewards["reward_model"] + 0.5 * row.rewards["process_reward"])
    group = [row for row in rows if row.group == 0]
    # one step a completion: both rewards are standardised over four numbers, and every token gets the same
    names = ("reward_model", "process_reward")
    outcomes, steps = (torch.tensor([row.rewards[name] for row in group], dtype=torch.float64) for name in names)
    expected = (outcomes - outcomes.mean()) / (outcomes.std() + 1e-4)
    expected += 0.5 * (steps - steps.mean()) / (steps.std() + 1e-4)
    for row, advantage in zip(group, expected.tolist(), strict=True):
        assert len(row.steps["process_reward"]) == 1
        assert row.advantage.tolist() == pytest.approx([advantage] * row.length, rel=1e-5)
    assert {"train/reward/reward_model", "train/reward/process_reward"} <= set(trainer.callback_metrics)
