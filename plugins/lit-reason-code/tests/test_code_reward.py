"""The reward and the tasks, as training meets them."""

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from lit_reason_code.dataset import CodeDataset
from lit_reason_code.doctor import main
from lit_reason_code.generated import GeneratedCode
from lit_reason_code.reward import Code

from lit_reason.reward import Judgement, WeightedReward
from lit_reason.scoring import Scorer
from lit_reason.testing import check_reward, check_task, sample_rollouts
from lit_reason.types import Problem, UserError

ROOT = Path(__file__).parents[3]
SQUARE = Problem(
    prompt=[{"role": "user", "content": "Square x."}],
    id="square",
    metadata={"entry_point": "f", "inputs": [[2], [3], [4], [5]], "outputs": [4, 9, 16, 25]},
)
TEXTS = [
    "<think> easy </think> <answer>\n```python\ndef f(x):\n    return x * x\n```\n</answer>",
    "<answer> def f(x): return x + x </answer>",
    "<answer> def f(x): return [4, 9][x - 2] </answer>",
    "<answer> it is x squared </answer>",
    "I do not know",
]


def judged(reward: Code, texts: list[str], problem: Problem, workers: int = 0) -> list[float | None]:
    rollouts = sample_rollouts(texts, problem=problem)
    scorer = Scorer([WeightedReward(name="code", weight=1.0, reward=reward)], workers=workers)
    try:
        scorer.collect(rollouts)
    finally:
        scorer.close()
    return [rollout.rewards["code"] for rollout in rollouts]


@pytest.mark.usefixtures("needs_sandbox")
def test_all_or_the_share_of_the_tests() -> None:
    assert judged(Code(), TEXTS, SQUARE) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert judged(Code(score="fraction"), TEXTS, SQUARE) == [1.0, 0.25, 0.5, 0.0, 0.0]
    assert judged(Code(max_tests=2), TEXTS, SQUARE) == [1.0, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.usefixtures("needs_sandbox")
def test_it_works_in_reward_workers() -> None:
    assert judged(Code(), TEXTS, SQUARE, workers=2) == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.usefixtures("needs_sandbox")
def test_rows_without_usable_tests_are_left_out() -> None:
    nothing = Problem(prompt=SQUARE.prompt, metadata={"level": 5})
    assert judged(Code(), TEXTS[:2], nothing) == [None, None]
    untestable = Problem(prompt=SQUARE.prompt, metadata={"tests": "assert f(len)"})
    assert judged(Code(), TEXTS[:2], untestable) == [None, None]
    (rollout,) = sample_rollouts(TEXTS[:1], problem=nothing)
    assert Code().quick(rollout) == Judgement(value=None, status="no_tests")
    (rollout,) = sample_rollouts(TEXTS[-1:], problem=SQUARE)
    assert Code().quick(rollout) == Judgement(value=0.0, status="missing")


@pytest.mark.usefixtures("needs_sandbox")
def test_it_conforms() -> None:
    check_reward(Code(timeout=1.0, score="fraction"), rollouts=sample_rollouts(TEXTS, problem=SQUARE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout must be above 0 and at most 3600 seconds, got 0"),
        ({"memory_mb": 16}, "memory_mb must be 128 MiB or more, and at most 2**40, got 16"),
        ({"memory_mb": 2**41}, "memory_mb must be 128 MiB or more, and at most 2**40, got 2199023255552"),
        ({"score": "some"}, "score must be 'all' or 'fraction', got 'some'"),
        ({"max_tests": 0}, "max_tests must be 1 or more, got 0"),
        ({"entry_point": "f()"}, "entry_point must be the name of a function, got 'f()'"),
        ({"sandbox": "none"}, "sandbox must be 'auto' or 'unsafe', got 'none'"),
        ({"sandbox": "unsafe"}, "agree with the flag --unsafe-code, or in Python with the environment"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIT_REASON_UNSAFE_CODE", raising=False)
    with pytest.raises(UserError) as raised:
        Code(**options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("needs_sandbox")
def test_unsafe_needs_the_option_and_the_operator_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.write_text("9")
    programs = [f"<answer> def f(x): return int(open({str(canary)!r}).read()) </answer>"]
    problem = Problem(prompt=SQUARE.prompt, metadata={"entry_point": "f", "inputs": [[3]], "outputs": [9]})
    monkeypatch.setenv("LIT_REASON_UNSAFE_CODE", "1")
    with caplog.at_level(logging.WARNING):
        assert judged(Code(), programs, problem) == [0.0]  # the variable alone changes nothing
        assert not caplog.records
        assert judged(Code(sandbox="unsafe"), programs, problem) == [1.0]
    assert "sandbox: unsafe: the model's programs run without a sandbox" in caplog.text


@pytest.mark.usefixtures("needs_sandbox")
def test_two_hundred_right_programs_of_all_kinds_score_one() -> None:
    problems = GeneratedCode(validation=200).problems("validation")
    kinds = [
        "asserts" if "tests" in p.metadata else "calls" if "entry_point" in p.metadata else "script" for p in problems
    ]
    assert min(map(kinds.count, ("asserts", "calls", "script"))) >= 50
    reward = Code()
    rewards = [judged(reward, [problem.completion or ""], problem) for problem in problems]
    assert rewards == [[1.0]] * 200


@pytest.mark.usefixtures("needs_sandbox")
def test_generated_problems_conform_and_never_repeat() -> None:
    check_task(GeneratedCode(largest=4, validation=10))
    task = GeneratedCode(largest=6, validation=50)
    prompts = [[p.prompt[-1]["content"] for p in task.problems(split)] for split in ("train", "validation")]
    assert len(prompts[0]) == len(set(prompts[0])) == 6 * 36 - 50
    assert not set(prompts[0]) & set(prompts[1])
    with pytest.raises(UserError, match="validation must be between 0 and 5"):
        GeneratedCode(largest=1, validation=6)


HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef largest(xs: List[int]) -> int:\n    """The largest of xs."""\n',
    "canonical_solution": "    return max(xs)\n",
    "test": "\n\nMETADATA = {'author': 'jt'}\n\n\ndef check(candidate):\n    assert candidate([1, 3, 2]) == 3\n",
    "entry_point": "largest",
}
MBPP = {
    "task_id": 11,
    "text": "Write a python function to remove the first and last occurrence of a character.",
    "code": "def remove_Occ(s, ch):\n    s = s.replace(ch, '', 1)\n    return s[::-1].replace(ch, '', 1)[::-1]",
    "test_list": ['assert remove_Occ("hello","l") == "heo"', 'assert remove_Occ("abcda","a") == "bcd"'],
    "test_setup_code": "",
    "challenge_test_list": [],
}
APPS = {
    "problem_id": 1,
    "question": "Print the sum of the numbers.",
    "solutions": json.dumps(["print(sum(map(int, input().split())))"]),
    "input_output": json.dumps({"inputs": ["1 2\n", "3 4 5\n"], "outputs": ["3\n", "12\n"]}),
    "starter_code": "",
}
APPS_CALLS = APPS | {
    "question": "Add two numbers.",
    "solutions": json.dumps(["class Solution:\n    def add(self, a, b):\n        return a + b"]),
    "input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]]}),
    "starter_code": "class Solution:\n    def add(self, a, b):",
}


@pytest.mark.usefixtures("needs_sandbox")
@pytest.mark.parametrize(
    ("row", "question"),
    [
        (HUMANEVAL, "def largest(xs: List[int]) -> int:"),
        (MBPP, "It is called like this: `remove_Occ('hello', 'l')`"),
        (MBPP | {"text": None, "prompt": MBPP["text"], "test_imports": ["import math"]}, "remove the first and last"),
        (APPS, "It reads standard input and prints to standard output."),
        (APPS_CALLS, "It is called as `add`. Begin with:\n\n```python\nclass Solution:"),
    ],
)
def test_well_known_columns_are_read(row: dict[str, object], question: str, tmp_path: Path) -> None:
    rows = [row | {next(key for key in ("prompt", "text", "question") if row.get(key)): None}, row]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = CodeDataset(path=str(tmp_path / "problems.jsonl"), validation_fraction=0.0)
    (problem,) = task.problems("train")
    assert question in problem.prompt[-1]["content"]
    assert problem.score(problem.answer) == 1.0
    assert problem.score("def f(): pass") == problem.score(None) == 0.0
    assert task.rejected.total() == 1
    if row is MBPP:  # what the tests expect is not told
        assert "heo" not in problem.prompt[-1]["content"]
    check_task(task)
    fenced = f"<answer>\n```python\n{problem.answer}\n```\n</answer>"
    assert judged(Code(), [fenced, "<answer> 1 </answer>"], problem) == [1.0, 0.0]


def data(**options: object) -> dict[str, object]:
    return APPS | {"input_output": json.dumps({"inputs": [[1], [2]], "outputs": ["1", "2"]} | options)}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (data(outputs=["", " \n"]), "all expected outputs are empty"),
        (data(fn_name="f", outputs=[None, [None]]), "all expected outputs are empty"),
        (data(outputs=["1", None]), "a script's inputs and outputs are no texts"),
        (data(fn_name="f", inputs=[[1], "2"]), "a function's inputs are no lists of arguments"),
        (data(fn_name="__import__('os')"), "the function to call has no name that Python could know"),
        (data(fn_name="class"), "the function to call has no name that Python could know"),
        (data(fn_name=["f"]), "the function to call has no name that Python could know"),
        (HUMANEVAL | {"entry_point": "f()"}, "the function to call has no name that Python could know"),
        (HUMANEVAL | {"test": "def test_f():\n    assert largest([1]) == 1"}, "the tests reach no assert"),
        (HUMANEVAL | {"test": "def check(candidate):\n    assert True"}, "the tests reach no assert"),
        (MBPP | {"test_list": ["remove_Occ('a', 'b') == 'a'"]}, "the tests reach no assert"),
        (MBPP | {"test_list": ["if __name__ == '__main__':\n    assert f(1) == 1"]}, "the tests reach no assert"),
        (MBPP | {"test_list": ["assert eval(f(1)) == 1"]}, "the tests run text as Python"),
        (MBPP | {"test_setup_code": "from pickle import loads"}, "the tests run text as Python"),
        (MBPP | {"test_list": ["assert f(1) =="]}, "a test is no Python"),
    ],
)
def test_rows_whose_tests_say_nothing_are_left_out_and_counted(
    row: dict[str, object], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "problems.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=f"none of the 1 rows .* can be used. 1: {re.escape(reason)}"):
        CodeDataset(path=str(tmp_path / "problems.jsonl")).problems("train")


def test_asserts_in_helpers_and_methods_are_reached(tmp_path: Path) -> None:
    helper = "class T:\n    def run(self):\n        expect(f(1))\ndef expect(x):\n    assert x == 1\nT().run()"
    context = (
        "class C:\n    def __enter__(self):\n        assert f(1) == 1\n    def __exit__(self, *_): pass\nwith C(): pass"
    )
    rows = [MBPP | {"text": text, "test_list": [text]} for text in (helper, context)]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(CodeDataset(path=str(tmp_path / "problems.jsonl"), validation_fraction=0.0).problems("train")) == 2


def test_how_the_function_is_called_is_told_without_what_the_setup_compares_with(tmp_path: Path) -> None:
    row = MBPP | {"test_setup_code": "def same(a, b): return a == b", "test_list": ['assert same("heo", cut("hello"))']}
    (tmp_path / "problems.jsonl").write_text(json.dumps(row))
    (problem,) = CodeDataset(path=str(tmp_path / "problems.jsonl"), validation_fraction=0.0).problems("train")
    assert "`cut('hello')`" in problem.prompt[-1]["content"]
    assert "heo" not in problem.prompt[-1]["content"]


@pytest.mark.usefixtures("needs_sandbox")
def test_programs_are_remembered_by_their_tests_and_not_by_the_problems_id() -> None:
    other = replace(SQUARE, metadata=SQUARE.metadata | {"outputs": [1, 2, 3, 4]})
    again = replace(SQUARE, id="other")
    keys = [Code().cache_key(sample_rollouts(TEXTS, problem=p)[0]) for p in (SQUARE, again, other)]
    assert keys[0] == keys[1] != keys[2]
    assert Code(max_tests=1).cache_key(sample_rollouts(TEXTS, problem=SQUARE)[0]) != keys[0]


def test_other_columns_and_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"question": "2 + 2", "answer": "4"}')
    with pytest.raises(UserError, match="task 'code_dataset': the columns are question, answer; expected those of Hum"):
        CodeDataset(path=str(tmp_path / "sums.jsonl")).problems("train")
    with pytest.raises(UserError, match=r"task 'code_dataset': path: there is no file or folder 'no\.jsonl'"):
        CodeDataset(path="no.jsonl").problems("train")


@pytest.mark.usefixtures("needs_sandbox")
def test_doctor_tells_the_tier_and_tries_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick", "--standard"]) == 0
    said = capsys.readouterr().out
    assert "sandbox    standard: Landlock" in said
    assert "self-test  passed" in said


def test_doctor_fails_where_there_is_no_sandbox(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(["doctor"]) == 1
    assert (
        "sandbox    none: the sandbox is made of Linux's Landlock and seccomp, and this is darwin"
        in capsys.readouterr().out
    )


@pytest.mark.usefixtures("needs_sandbox")
def test_the_recipe_trains_nano(tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    plugin = ROOT / "plugins" / "lit-reason-code"
    subprocess.run([*pip, "--no-build-isolation", "--target", str(installed), str(plugin)], check=True)
    options = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--data.validation_problems", "2"]
    options += ["--model.init_args.sampling.max_new_tokens", "16", "--run_dir", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "lit_reason", "fit", "--config", str(ROOT / "configs" / "grpo-code.yaml"), *options],
        env=os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    values = dict(zip(header.split(","), rows[1].split(","), strict=True))
    assert float(values["train/reward/code"]) == 0.0
