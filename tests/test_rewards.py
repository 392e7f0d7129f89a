import pickle
import re
import subprocess
import sys

import pytest
import torch

from lit_reason.plugin_source import describe
from lit_reason.plugins import RewardRef
from lit_reason.registry import plugins
from lit_reason.rewards.accuracy import Accuracy
from lit_reason.rewards.format import Format
from lit_reason.rewards.length import Length
from lit_reason.types import Problem, Rollout, UserError


def half_credit(_problem, answer):
    return {"4": 1.0, None: 0.7}.get(answer, 0.5)


def rollout(text, *, tokens=3, think=None, **problem):
    return Rollout(
        problem=Problem(prompt=[{"role": "user", "content": "2 + 2?"}], answer="4", think=think, **problem),
        prompt_ids=torch.tensor([1]),
        completion_ids=torch.zeros(tokens, dtype=torch.int64),
        text=text,
    )


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think> 2 + 2 = 4 </think> <answer> 4 </answer>", 1.0),
        ("\\boxed{4}", 1.0),
        ("<answer>5</answer>", 0.0),
        ("it is 4", 0.0),
        ("<think> a long thought that never ends, 4", 0.0),
        ("<answer>4", 0.0),
    ],
)
def test_accuracy_judges_the_extracted_answer(text, score):
    assert Accuracy().score(rollout(text)) == score


def test_accuracy_asks_the_scorer_of_the_problem():
    assert Accuracy().score(rollout("<answer>4</answer>", scorer=half_credit)) == 1.0
    assert Accuracy().score(rollout("<answer>close</answer>", scorer=half_credit)) == 0.5


def test_accuracy_gives_nothing_without_an_answer_whatever_the_scorer_says():
    assert Accuracy().score(rollout("no answer", scorer=half_credit)) == 0.0


def test_format_is_strict_unless_told_to_grade():
    almost = rollout("<think> a </think> <answer> 4")
    assert Format().score(almost) == 0.0
    assert Format(strict=False).score(almost) == 0.75
    assert Format().score(rollout("<think> a </think> <answer> 4 </answer>")) == 1.0


def test_format_forgives_the_missing_think_block_only_in_no_think_mode():
    bare = "<answer> 4 </answer>"
    assert Format().score(rollout(bare, think=False)) == 1.0
    assert Format().score(rollout(f"<think> </think> {bare}", think=False)) == 1.0
    assert Format().score(rollout(f"</think> {bare}", think=False)) == 0.0
    assert Format().score(rollout(bare, think=True)) == 0.0
    assert Format().score(rollout(bare)) == 0.0
    assert Format(strict=False).score(rollout(bare)) == 0.5


@pytest.mark.parametrize(("tokens", "penalty"), [(0, 0.0), (10, 0.0), (11, -0.25), (12, -0.5), (14, -1.0), (100, -1.0)])
def test_length_is_free_up_to_the_target_then_falls_linearly_to_minus_one(tokens, penalty):
    assert Length(target=10, span=4).score(rollout("any", tokens=tokens)) == penalty


@pytest.mark.parametrize(("options", "named"), [({"target": -1}, "target"), ({"span": 0}, "span")])
def test_length_refuses_bounds_that_make_no_sense(options, named):
    with pytest.raises(UserError, match=f"'length': {named} must be .*, got {next(iter(options.values()))}"):
        Length(**options)


@pytest.mark.parametrize("reward", [Accuracy(), Format(strict=False), Length(target=3, span=2)])
def test_rewards_travel_between_processes(reward):
    copy = pickle.loads(pickle.dumps(reward))
    assert vars(copy) == vars(reward)


@pytest.mark.parametrize(
    ("name", "options", "weight"),
    [
        ("accuracy", {}, 1.0),
        ("format", {}, 1.0),
        ("length", {}, 1.0),
        ("tag_count", {}, 1.0),
        ("reasoning_steps", {}, 1.0),
        ("lcpo_exact", {}, 1.0),
        ("lcpo_max", {}, 1.0),
        ("cosine", {"max_tokens": 96}, 1.0),
        ("kimi_length", {}, 1.0),
        ("overlong", {"max_tokens": 96, "buffer": 20}, 1.0),
        ("repetition", {}, 1.0),
        ("language_consistency", {"language": "en"}, 1.0),
        ("reflection", {}, 0.0),
    ],
)
def test_rewards_are_found_by_name_and_documented_with_their_source(name, options, weight):
    ref = RewardRef.of({name: options})
    assert ref.dump()[name]["weight"] == weight
    (value,) = ref.build().score_group([rollout("<answer>so 4</answer>", metadata={"length_target": 100})])
    assert isinstance(value, float)
    (plugin,) = [p for p in plugins() if (p.kind, p.name, p.built_in) == ("reward", name, True)]
    described = describe(plugin.value)
    assert re.search(r"Sources?: .*(\d{4}\.\d{5}|Open R1)", " ".join(described.doc.split()))
    assert all(option.type and option.doc for option in described.options)


def test_loading_the_rewards_imports_no_torch():
    code = (
        "import importlib, pkgutil, sys, lit_reason.rewards as rewards, lit_reason.tasks.length_target;"
        "[importlib.import_module(f'lit_reason.rewards.{m.name}') for m in pkgutil.iter_modules(rewards.__path__)];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
