"""Bad input of every kind, through the real command line: one clear line, a non-zero exit, no traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_reason.__main__ import main

CONFIG = """
seed_everything: 0
run_dir: run
model:
  class_path: GRPO
  init_args:
    policy: {{model: {model}}}
    rewards: [accuracy]
    group_size: 2
    validation_samples: 0
    sampling: {{max_new_tokens: 4}}
data:
  task: {{dataset: {{path: data.jsonl}}}}
  prompts_per_step: 2
  validation_problems: 2
trainer: {{max_steps: 1, enable_progress_bar: false}}
"""
REWARDS = """
from lit_reason import Reward

class NaN(Reward):
    def score(self, rollout):
        return float("nan")

class Short(Reward):
    def score_group(self, rollouts):
        return [1.0]

class Silent(Reward):
    def score(self, rollout):
        return None
"""


@pytest.fixture
def fit(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run `lit-reason fit` in a folder with a config, data and rewards; returns exit code and stderr's errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Lightning's log handlers keep the stderr of the first test, which pytest has closed since
    monkeypatch.setattr("logging.raiseExceptions", False)
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=tiny_llama))
    (tmp_path / "rewards_of_mine.py").write_text(REWARDS)
    rows = [json.dumps({"question": f"What is {n} + 1?", "answer": str(n + 1)}) for n in range(60)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))

    def run(*options: str) -> tuple[int, str]:
        code = main(["fit", "--config", "config.yaml", *options])
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error:")]
        assert not any("Traceback" in line for line in lines)
        assert len(errors) == (1 if code else 0), lines
        return code, "".join(errors)

    return run


def test_the_configuration_is_sound(fit: Callable[..., tuple[int, str]]) -> None:
    assert fit() == (0, "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.init_args.grup_size", "4"], ["grup_size", "group_size"]),
        (["--data.promts_per_step", "4"], ["promts_per_step", "prompts_per_step"]),
        (["--trainer.max_step", "4"], ["max_step", "max_steps"]),
        (["--model.init_args.rewards", "[acuracy]"], ["acuracy", "accuracy"]),
        (["--model.init_args.rewards", "[format: {strikt: true}]"], ["format", "strikt", "strict"]),
        (["--model.init_args.rewards", "[format: {strict: maybe}]"], ["format", "strict", "maybe"]),
        (["--model.init_args.group_size", "many"], ["group_size", "many"]),
        (["--model.init_args.group_size", "1"], ["group_size must be 2 or more"]),
        (["--model.init_args.policy.model", "./nowhere"], ["policy.model", "./nowhere"]),
        (["--model.init_args.policy.model", "empty"], ["policy.model", "empty", "no model"]),
        (["--data.task", "{dataset: {path: none.jsonl}}"], ["none.jsonl"]),
        (["--data.task", "{dataset: {path: empty.jsonl}}"], ["empty.jsonl", "empty"]),
        (["--data.task", "{dataset: {path: corrupt.jsonl}}"], ["corrupt.jsonl", "3"]),
        (["--model.init_args.rewards", "[rewards_of_mine.NaN]"], ["NaN", "nan", "finite"]),
        (["--model.init_args.rewards", "[rewards_of_mine.Short]"], ["Short", "1 values for 2 completions"]),
        (["--model.init_args.sampling.max_new_tokens", "100000"], ["no prompt leaves room", "max_new_tokens"]),
        (["--model.init_args.policy.model", "silent"], ["chat_template", "think"]),
        (["--ckpt_path", "none.ckpt"], ["ckpt_path", "none.ckpt"]),
    ],
    ids=lambda value: value[-1][-40:] if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line(
    fit: Callable[..., tuple[int, str]], tiny_llama: str, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "corrupt.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 2 + '{"question": \n')
    silent = tmp_path / "silent"
    shutil.copytree(tiny_llama, silent)
    (silent / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = silent / "tokenizer_config.json"
    tokenizer.write_text(
        json.dumps({k: v for k, v in json.loads(tokenizer.read_text()).items() if k != "chat_template"})
    )
    code, error = fit(*options)
    assert code != 0
    assert all(word in error for word in words), error


JUDGE = "[judge: {url: 'http://127.0.0.1:1', model: m, retries: 0}]"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.init_args.rewards", JUDGE], "reward 'judge': there is no server at http://127.0.0.1:1/v1"),
        (["--model.init_args.rewards", "[lcpo_max]"], "has no length target; wrap the task"),
        (
            [
                *("--model.init_args.rewards", "[lcpo_max]"),
                *("--data.task", "{length_target: {task: {dataset: {path: data.jsonl}}, mode: exact}}"),
            ],
            "set mode: max there",
        ),
    ],
)
def test_a_reward_that_cannot_judge_stops_before_a_model_loads_and_leaves_no_folder(
    fit: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.setattr("lit_reason.modules.base.Policy", None)
    code, error = fit(*options)
    assert code == 1
    assert words in error
    assert not (tmp_path / "run").exists()


def test_a_reward_that_never_applies_teaches_nothing_and_is_no_error(fit: Callable[..., tuple[int, str]]) -> None:
    assert fit("--model.init_args.rewards", "[rewards_of_mine.Silent]")[0] == 0


def test_nonfinite_rewards_can_be_masked_and_are_counted(fit: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    options = ["--model.init_args.rewards", "[accuracy, rewards_of_mine.NaN]", "--model.init_args.nonfinite", "mask"]
    assert fit(*options)[0] == 0
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/nonfinite/rewards_of_mine.NaN")
    assert rows[-1].split(",")[column] == "4.0"


def test_prompts_too_long_for_the_context_are_left_out_and_counted(
    fit: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    rows = [{"question": "long " * (2000 if n % 2 else 1) + str(n), "answer": "1"} for n in range(60)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert fit("--data.prompts_per_step", "20")[0] == 0
    header, *lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert 0 < float(lines[-1].split(",")[header.split(",").index("train/too_long")]) < 40


def test_broken_and_clashing_plugins_are_named_with_their_distributions(
    fit: Callable[..., tuple[int, str]], plugin_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in plugin_folders.values():
        monkeypatch.syspath_prepend(str(folder))
    assert fit() == (0, "")  # they disturb no run that does not use them
    for name, words in (("unfinished", ["broken-plugin 0.3.1"]), ("phrases", ["template", "clashing-plugin 2.0"])):
        code, error = fit("--model.init_args.rewards", f"[{name}]")
        assert code != 0
        assert all(word in error for word in words), error


def test_an_option_set_below_a_task_says_how_to_write_the_task(fit: Callable[..., tuple[int, str]]) -> None:
    code, error = fit("--data.task.dataset.path", "other.jsonl")
    assert code != 0
    assert "write the task whole" in error


def test_a_config_in_a_subfolder_is_named_with_its_line(
    fit: Callable[..., tuple[int, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sub").mkdir()
    text = (tmp_path / "config.yaml").read_text().replace("[accuracy]", "[acuracy]")
    (tmp_path / "sub" / "config.yaml").write_text(text)
    assert main(["fit", "--config", "sub/config.yaml"]) == 2
    assert "error: sub/config.yaml:8: model.rewards: no reward named 'acuracy'" in capsys.readouterr().err
