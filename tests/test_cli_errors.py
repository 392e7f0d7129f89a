# ruff: noqa: E501 - a message is one line, and a case stays beside the message it leads to
import sys
import warnings

import pytest

from lit_reason.__main__ import main
from lit_reason.cli_errors import boil_down, check_configs, config_files
from lit_reason.types import UserError

CONFIG = """\
model:
  class_path: GRPO
  init_args:
    policy: {model: nano}
    rewards: [accuracy]
    group_size: 4
    sampling:
      max_new_tokens: 8
data:
  task: {nano_traces: {size: 60}}
  prompts_per_step: 2
trainer: {max_steps: 1}
"""


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Runs `fit` on a config and returns what it prints on stderr, which must be one line, and no traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIT_REASON_DEBUG", raising=False)
    monkeypatch.setenv("LIT_REASON_RUN_DIR", "")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*options, code, config=CONFIG):
        (tmp_path / "config.yaml").write_text(config)
        assert main(["fit", "--config", "config.yaml", *options]) == code
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").strip()

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.group_sze", "4"], "there is no option 'model.group_sze'; did you mean 'model.group_size'?"),
        (["--model.group_size", "four"], "model.group_size: expected int, got 'four'"),
        (["--model.policy.modl", "x"], "there is no option 'model.policy.modl'; did you mean 'model.policy.model'?"),
        (["--model.max_new_tokens", "4"], "there is no option 'model.max_new_tokens'; did you mean 'model.sampling.max_new_tokens'?"),
        (["--trainer.max_stps", "4"], "there is no option 'trainer.max_stps'; did you mean 'trainer.max_steps'?"),
        (["--modl", "GRPO"], "there is no option 'modl'; did you mean 'model'?"),
        (["--model", "GRPOO"], "model: there is no class 'GRPOO'; did you mean 'GRPO'?"),
        (["--model.advantage", "foo"], "model.advantage: expected one of group, batch, none, rloo, reinforce++, normalize_then_sum, got 'foo'"),
        (["--model.optimizer.lr", "abc"], "model.optimizer.lr: expected float, got 'abc'"),
        (["--model.optimizer", "SGDD"], "model.optimizer: there is no class 'SGDD'; did you mean 'SGD'?"),
        (["--trainer.callbacks", "nope.Foo"], "trainer.callbacks: No module named 'nope'"),
        (["--seed_everything", "x"], "seed_everything: expected int, got 'x'"),
        (["--model.rewards", "[judge]", "--print_config"], "model.rewards: reward 'judge' needs the options 'url' and 'model': {judge: {url: ..., model: ...}}"),
        (["stray"], "unexpected argument 'stray'; options start with --"),
    ],
)  # fmt: skip
def test_a_wrong_option_on_the_command_line_is_one_line(fit, options, message):
    assert fit(*options, code=2) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("group_size", "group_sze", "config.yaml:6: there is no option 'model.group_sze'; did you mean 'model.group_size'?"),
        ("max_new_tokens: 8", "max_new_tokens: eight", "config.yaml:8: model.sampling.max_new_tokens: expected int, got 'eight'"),
        ("max_new_tokens", "max_new", "config.yaml:8: there is no option 'model.sampling.max_new'; did you mean 'model.sampling.max_new_tokens'?"),
        ("data:", "dat:", "config.yaml:9: there is no option 'dat'; did you mean 'data'?"),
        ("max_steps", "steps", "config.yaml:12: there is no option 'trainer.steps'; did you mean 'trainer."),
        ("class_path: GRPO", "class_path: GRP", "config.yaml:1: model: there is no class 'GRP'; did you mean 'GRPO'?"),
        ("class_path", "class", "config.yaml:1: model: write it as {class_path: GRPO, init_args: {option: value}}"),
        ("[accuracy]", "accuracy", "config.yaml:5: model.rewards: expected a list, got 'accuracy'; write '[accuracy]'"),
        ("[accuracy]", "[accurcy]", "config.yaml:5: model.rewards: no reward named 'accurcy'"),
        ("[accuracy]", "[length: {targt: 3}]", "config.yaml:5: model.rewards: reward 'length' has no option 'targt'; did you mean 'target'?"),
        ("size: 60", "size: sixty", "config.yaml:10: data.task: task 'nano_traces'"),
        ("group_size: 4", "optimizer: {class_path: torch.optim.SGD, init_args: {lrr: 1}}", "config.yaml:6: there is no option 'model.optimizer.lrr'; did you mean 'model.optimizer.lr'?"),
    ],
)  # fmt: skip
def test_a_wrong_option_in_a_config_is_one_line_with_file_and_line(fit, old, new, message):
    assert old in CONFIG
    assert fit(config=CONFIG.replace(old, new, 1), code=2).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.group_size", "1"], "group_size must be 2 or more"),
        (["--model.policy.model", "nofolder"], "policy.model: there is no folder 'nofolder'"),
        (["--ckpt_path", "nope.ckpt"], "ckpt_path: no checkpoint at 'nope.ckpt'"),
        (["--trainer.accelerator", "cpu", "--trainer.devices", "x"], "trainer: `devices` selected with"),
        (["--trainer.check_val_every_n_epoch", "1.5"], "trainer.check_val_every_n_epoch: expected int or null, got '1.5'"),
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_one_line(fit, options, message):
    code = 2 if "check_val" in options[0] else 1
    assert fit(*options, code=code).startswith(message)


def test_a_section_that_is_no_mapping_is_named(fit):
    config = CONFIG.replace("trainer: {max_steps: 1}", "trainer: 3")
    assert fit(config=config, code=1) == "trainer: expected a mapping of options, got 3"
    assert fit("--trainer", "3", code=2) == 'trainer: Unable to load config "3"'


def test_a_config_that_lacks_what_is_required_says_what(fit):
    assert fit(config="trainer: {max_steps: 1}\n", code=2) == (
        "missing --data.task and --model: give them, or a config with --config FILE"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", "bad.yaml:2: invalid YAML: expected ',' or ']'"),
        ("model: &a {class_path: GRPO, init_args: *a}\n", "bad.yaml:1: an alias stands inside what it stands for"),
        ("a: " + "[" * 3000, "bad.yaml: invalid YAML: nested too deeply"),
        ("a:\n\t- 1\n", "bad.yaml:2: invalid YAML: found character"),
        ("- a\n", "bad.yaml: expected a mapping with the keys model, data and trainer"),
        ("hello", "bad.yaml: expected a mapping with the keys model, data and trainer"),
        ("", "bad.yaml: expected a mapping with the keys model, data and trainer"),
    ],
)
def test_a_file_that_is_no_config_is_named_with_its_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        check_configs(["bad.yaml"])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_missing_or_binary_config_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--config: cannot read '.*nowhere\.yaml': No such file"):
        check_configs([str(tmp_path / "nowhere.yaml")])
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no text file"):
        check_configs([str(tmp_path / "x.yaml")])


def test_every_form_of_naming_a_config_is_found():
    arguments = ["fit", "--config", "a.yaml", "-c", "b.yaml", "--config=c.yaml", "--model", "--config"]
    assert config_files(arguments) == ["a.yaml", "b.yaml", "c.yaml"]


def test_a_message_that_is_not_understood_is_kept_as_it_is():
    assert boil_down("something new\nwent wrong").text == "something new\nwent wrong"
