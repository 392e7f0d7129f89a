"""References to plugins: what YAML and Python may write, what is checked, what is saved."""

import copy
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lit_reason.plugins import LossRef, RewardRef, TaskRef
from lit_reason.registry import PluginError
from lit_reason.reward import weighted_rewards
from lit_reason.rewards.format import Format
from lit_reason.rewards.length import Length
from lit_reason.testing import check_loss, loss_inputs, sample_rollouts
from lit_reason.types import LossInputs, LossOutput, Rollout, UserError

MODULE = '''
from dataclasses import dataclass
from typing import Literal
from lit_reason.plugins import RewardRef
from lit_reason.reward import Reward
from lit_reason.task import Task
from lit_reason.types import Problem, UserError

@dataclass
class Bounds:
    low: float = 0.0
    high: float = 1.0

class Rich(Reward):
    """Has options of many types."""
    def __init__(self, words: list[str], *, mode: Literal["any", "all"] = "any", times: int = 3,
                 bounds: Bounds = Bounds(), inner: RewardRef | None = None, cap: float | None = 0.5, anything=None):
        self.given = words, mode, times, bounds, inner, cap, anything
    def score(self, rollout): return 1.0

class Picky(Reward):
    def __init__(self, *, n: int = 1):
        if n < 0: raise UserError("reward 'picky': n must be 0 or more")
        if n == 0: raise ZeroDivisionError("by\\nzero")
    def score(self, rollout): return 1.0

class Greedy(Reward):
    def __init__(self, *, weight: float = 2.0): ...
    def score(self, rollout): return 1.0

class One(Task):
    def problems(self, split):
        return [Problem(prompt=[{"role": "user", "content": split}], answer="1", id="1", task=self.name)]

class Named(One):
    name = "its own"

def half(rollout):
    """Half a point."""
    return 0.5
'''


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_plugins.py").write_text(MODULE)
    return str(folder)


@pytest.fixture(autouse=True)
def _own_on_path(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own)


class Module:
    """Stands for any class that a command line builds."""

    def __init__(
        self,
        rewards: Sequence[RewardRef],
        loss: LossRef = LossRef("dapo"),
        task: TaskRef | None = None,
    ) -> None:
        self.rewards, self.loss, self.task = rewards, loss, task


def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_class_arguments(Module, "model")
    made.add_argument("--config", action="config")
    return made


# --- what may be written


def test_yaml_names_a_plugin_alone_or_with_options_and_weight() -> None:
    plain, optioned = RewardRef.read("format"), RewardRef.read({"format": {"strict": False, "weight": 0.15}})
    assert (plain.name, plain.weight, optioned.name, optioned.weight) == ("format", 1.0, "format", 0.15)
    assert isinstance(optioned.build(), Format)
    assert (plain.build().strict, optioned.build().strict) == (True, False)
    assert RewardRef.read({"format": None}) == plain
    assert RewardRef.read({"length": {"weight": -2}}).weight == -2


def test_a_reward_says_what_it_counts_for_and_the_configuration_has_the_last_word() -> None:
    class Metric(Length):
        default_weight = 0.0

    plain = RewardRef.read("reflection")
    assert (plain.weight, RewardRef.read({"reflection": {"weight": 0.5}}).weight) == (0.0, 0.5)
    assert RewardRef.read(plain.dump()).weight == 0.0
    assert [RewardRef.of(value).weight for value in (Metric, Metric(), Length)] == [0.0, 0.0, 1.0]
    assert RewardRef(Metric, weight=0.5).weight == 0.5


def test_python_also_passes_references_classes_objects_and_functions() -> None:
    def shout(rollout: Rollout) -> float:
        return float(rollout.text.isupper())

    rollout = sample_rollouts(["LOUD"])[0]
    ref = RewardRef("format", weight=0.5)
    assert RewardRef.of(ref) is ref
    assert isinstance(RewardRef.of(Length).build(), Length)
    ready = Length(target=7)
    assert RewardRef.of(ready).build() is ready
    assert RewardRef.of(shout).build().score(rollout) == 1.0
    assert [RewardRef.of(v).name for v in (Length, ready, shout)] == ["Length", "Length", "shout"]
    assert RewardRef(shout, weight=0.5).weight == 0.5
    built = weighted_rewards(["format", {"length": {"weight": -1}}, shout])
    assert [(w.name, w.weight) for w in built] == [("format", 1.0), ("length", -1), ("shout", 1.0)]


def test_a_function_becomes_a_conforming_loss() -> None:
    def maximum_likelihood(inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=-inputs.logprobs[inputs.mask].sum() / inputs.window.tokens)

    loss = LossRef.of(maximum_likelihood).build()
    inputs = loss_inputs((2, 1))
    assert loss(inputs).loss.item() == pytest.approx(-inputs.logprobs.sum().item() / 3)
    assert not loss.needs_reference
    with pytest.raises(AssertionError, match="pickling"):  # the one complaint: a local function cannot travel
        check_loss(loss)


def test_a_task_calls_itself_by_its_configured_name_unless_it_knows_better() -> None:
    task = TaskRef.of("own_plugins.One").build()
    assert task.problems("train")[0].task == task.name == "own_plugins.One"
    assert TaskRef.of("own_plugins.Named").build().name == "its own"


def test_each_build_makes_a_new_object() -> None:
    ref = RewardRef.of("format")
    assert ref.build() is not ref.build()


def test_making_a_reference_loads_nothing() -> None:
    assert LossRef("nowhere_installed").name == "nowhere_installed"
    with pytest.raises(PluginError, match="no loss named 'nowhere_installed'"):
        LossRef("nowhere_installed").check()


# --- what is checked


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"format": {"strct": True}},
            "reward 'format' has no option 'strct'; did you mean 'strict'? its options: strict, weight",
        ),
        ({"accuracy": {"a": 1}}, "reward 'accuracy' has no option 'a'; its options: weight"),
        (
            {"accuracy": {"wieght": 1}},
            "reward 'accuracy' has no option 'wieght'; did you mean 'weight'? its options: weight",
        ),
        ({"format": {"strict": "perhaps"}}, "reward 'format' option 'strict' expected bool, got perhaps"),
        ({"length": {"span": 1.5}}, "reward 'length' option 'span' expected int, got 1.5"),
        (
            {"own_plugins.Rich": {}},
            "reward 'own_plugins.Rich' needs the option 'words': {own_plugins.Rich: {words: ...}}",
        ),
        ({"judge": {}}, "reward 'judge' needs the options 'url' and 'model': {judge: {url: ..., model: ...}}"),
        (
            {"own_plugins.Rich": {"words": ["a"], "mode": "some"}},
            "reward 'own_plugins.Rich' option 'mode' expected Literal['any', 'all'], got some",
        ),
        (
            {"own_plugins.Rich": {"words": ["a"], "cap": "x"}},
            "reward 'own_plugins.Rich' option 'cap' expected float or null, got x",
        ),
        (
            {"own_plugins.Rich": {"words": ["a"], "bounds": {"low": "x"}}},
            "reward 'own_plugins.Rich' option 'bounds.low' expected float, got x",
        ),
        (
            {"own_plugins.Rich": {"words": ["a"], "bounds": {"lo": 1}}},
            "reward 'own_plugins.Rich' has no option 'bounds.lo'",
        ),
        (
            {"own_plugins.Rich": {"words": ["a"], "inner": {"format": {"no": 1}}}},
            "reward 'own_plugins.Rich' option 'inner': reward 'format' has no option 'no'; its options: strict, weight",
        ),
        ({"format": {"weight": "heavy"}}, "reward 'format': weight must be a finite number, got 'heavy'"),
        ({"format": {"weight": math.nan}}, "reward 'format': weight must be a finite number, got nan"),
        ({"format": {"weight": True}}, "reward 'format': weight must be a finite number, got True"),
        ({"format": [1]}, "reward 'format': expected options as a mapping {option: value}, got [1]"),
        ({"format": {1: 2}}, "reward 'format': expected options as a mapping {option: value}, got {1: 2}"),
        (
            {"own_plugins.Greedy": {}},
            "reward 'own_plugins.Greedy' has an option 'weight', a name kept for the configuration itself: rename it",
        ),
        ({"own_plugins.half": {"a": 1}}, "reward 'own_plugins.half' takes no options, got 'a'"),
    ],
)
def test_wrong_options_are_one_line_that_names_plugin_and_option(value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        RewardRef.read(value)
    assert str(error.value) == message


@pytest.mark.parametrize("value", [None, 3, [], {}, {"format": {}, "length": {}}, ["format"]])
def test_what_is_no_reference_is_refused_with_the_form_that_is(value: Any) -> None:
    with pytest.raises(UserError, match=r"written as its name or as \{name: \{option: value\}\}"):
        RewardRef.read(value)


def test_a_reference_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="expected a reward, got the loss 'dapo'"):
        RewardRef.of(LossRef("dapo"))
    with pytest.raises(UserError, match="expected a task: its name"):
        TaskRef.of(3)


def test_an_error_while_building_names_the_plugin_unless_it_is_for_the_user() -> None:
    with pytest.raises(UserError, match=r"^reward 'picky': n must be 0 or more$"):
        RewardRef.of({"own_plugins.Picky": {"n": -1}}).build()
    with pytest.raises(
        PluginError, match=r"^reward 'own_plugins.Picky' could not be built: ZeroDivisionError: by zero$"
    ):
        RewardRef.of({"own_plugins.Picky": {"n": 0}}).build()


def test_errors_of_an_installed_plugin_name_its_distribution(
    plugin_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(plugin_folders["template"])
    with pytest.raises(UserError, match=r"reward 'phrases' \(lit-reason-template 0\.1\.0\) has no option 'enuf'"):
        RewardRef.of({"phrases": {"enuf": 2}})


# --- what is saved


@pytest.mark.parametrize(
    ("ref", "dumped"),
    [
        (RewardRef("accuracy"), {"accuracy": {"weight": 1.0}}),
        (RewardRef("format", strict=False, weight=-1), {"format": {"strict": False, "weight": -1.0}}),
        (RewardRef(Length), {"lit_reason.rewards.length.Length": {"target": 512, "span": 512, "weight": 1.0}}),
        (TaskRef("own_plugins.One"), "own_plugins.One"),
        (
            LossRef("gspo", delta=5.0),
            {"gspo": {"epsilon_low": 0.2, "epsilon_high": 0.2, "delta": 5.0, "beta": 0.0, "kl": "k3"}},
        ),
        (
            RewardRef("own_plugins.Rich", words=["a"], cap=None, inner="accuracy", bounds={"low": 0.25}),
            {
                "own_plugins.Rich": {
                    "words": ["a"],
                    "mode": "any",
                    "times": 3,
                    "bounds": {"low": 0.25, "high": 1.0},
                    "inner": {"accuracy": {"weight": 1.0}},
                    "cap": None,
                    "anything": None,
                    "weight": 1.0,
                }
            },
        ),
    ],
)
def test_a_dump_is_plain_yaml_with_defaults_and_reads_back_the_same(ref: Any, dumped: Any) -> None:
    assert ref.dump() == dumped
    again = type(ref).read(yaml.safe_load(yaml.safe_dump(dumped)))
    assert again.dump() == dumped
    assert type(again.build()) is type(ref.build())


def test_a_function_of_a_module_is_saved_by_its_path_and_a_local_one_cannot_be() -> None:
    import own_plugins

    ref = RewardRef.of(own_plugins.half)
    assert ref.name == "half"
    assert ref.dump() == {"own_plugins.half": {"weight": 1.0}}
    assert RewardRef.read(ref.dump()).build().score(sample_rollouts()[0]) == 0.5
    for unnamed in (lambda rollout: rollout.length, Length(target=3)):
        with pytest.raises(UserError, match="a configuration cannot name"):
            RewardRef.of(unnamed).dump()


def test_references_can_be_copied_compared_and_sent_to_another_process() -> None:
    ref = RewardRef.of({"format": {"strict": False, "weight": 0.15}})
    assert (
        ref == copy.deepcopy(ref) == pickle.loads(pickle.dumps(ref)) == RewardRef("format", strict=False, weight=0.15)
    )
    assert ref != RewardRef("format", strict=False)
    assert ref != TaskRef("format", strict=False)
    assert hash(ref) == hash(copy.deepcopy(ref))
    assert repr(ref) == "RewardRef('format', strict=False, weight=0.15)"


# --- through a command line


def test_lists_of_rewards_are_given_whole_or_appended_to() -> None:
    whole = parser().parse_args(["--model.rewards=[accuracy, {format: {weight: 0.15}}]"])
    assert [(r.name, r.weight) for r in whole.model.rewards] == [("accuracy", 1.0), ("format", 0.15)]
    appended = parser().parse_args(["--model.rewards=[accuracy]", "--model.rewards+=format", "--model.rewards+=length"])
    assert [r.name for r in appended.model.rewards] == ["accuracy", "format", "length"]


def test_a_saved_configuration_builds_the_same_plugins(tmp_path: Path) -> None:
    arguments = ["--model.rewards=[accuracy, {format: {strict: false}}]", "--model.loss={grpo: {beta: 0.1}}"]
    config = parser().parse_args([*arguments, "--model.task=own_plugins.One"])
    file = tmp_path / "config.yaml"
    file.write_text(parser().dump(config))
    plain = yaml.safe_load(file.read_text())["model"]
    assert plain["rewards"] == [{"accuracy": {"weight": 1.0}}, {"format": {"strict": False, "weight": 1.0}}]
    assert plain["loss"]["grpo"]["beta"] == 0.1
    assert plain["task"] == "own_plugins.One"
    again = parser().parse_args(["--config", str(file), "--model.rewards+=length"])
    assert parser().dump(parser().parse_args(["--config", str(file)])) == parser().dump(config)
    model = parser().instantiate(again).model
    assert [r.name for r in model.rewards] == ["accuracy", "format", "length"]
    assert not model.rewards[1].build().strict
    assert (model.loss.build().beta, model.task.build().name) == (0.1, "own_plugins.One")


def test_a_default_reference_is_dumped_and_built_like_a_written_one() -> None:
    config = parser().parse_args(["--model.rewards=[accuracy]"])
    assert parser().parse_string(parser().dump(config)).model.loss.build().epsilon_high == 0.28
    assert "default: dapo" in parser().format_help()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--model.rewards=[acuracy]", "did you mean 'accuracy'?"),
        ("--model.rewards+=acuracy", "did you mean 'accuracy'?"),
        ("--model.rewards=[{format: {strct: 1}}]", "reward 'format' has no option 'strct'; did you mean 'strict'?"),
        ("--model.loss={dapo: {beta: x}}", "loss 'dapo' option 'beta' expected float, got x"),
        ("--model.loss=accuracy", "'accuracy' is a reward"),
    ],
)
def test_mistakes_are_found_while_parsing(argument: str, words: str) -> None:
    with pytest.raises(ArgumentError) as error:
        parser().parse_args(["--model.rewards=[accuracy]", argument])
    assert words in str(error.value)
