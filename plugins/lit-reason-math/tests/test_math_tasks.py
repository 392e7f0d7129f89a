"""The tasks on files in the public column shapes, and their judge."""

import json
import threading
import time
from pathlib import Path

import pytest
from lit_reason_math.tasks import GSM8K, DeepMath, MathDataset

from lit_reason.task import Task
from lit_reason.testing import check_task
from lit_reason.types import UserError

SHAPES = {
    GSM8K: [
        {
            "question": f"Ann has {n} apples and buys 3 more. How many has she?",
            "answer": f"She has {n} + 3 = <<{n}+3={n + 3}>>{n + 3} apples.\n#### {n + 3}",
        }
        for n in range(40)
    ],
    MathDataset: [
        {
            "problem": f"Simplify $\\sqrt{{{n * n * 2}}}$.",
            "level": "Level 2",
            "type": "Algebra",
            "solution": f"As ${n}^2 = {n * n}$, it is $\\boxed{{{n}\\sqrt{{2}}}}$.",
        }
        for n in range(2, 42)
    ],
    DeepMath: [
        {
            "question": f"Evaluate the integral \\( \\int_0^{{{n}}} 2x \\, dx \\).",
            "final_answer": f"{n}^2",
            "difficulty": 3.0,
            "topic": "Mathematics -> Calculus",
            "r1_solution_1": "Okay, \\boxed{0}",
        }
        for n in range(2, 42)
    ],
}
GOLD = {GSM8K: ("3", "3.0"), MathDataset: ("2\\sqrt{2}", "\\sqrt{8}"), DeepMath: ("2^2", "4")}


@pytest.fixture(params=SHAPES, ids=lambda task: task.name)
def kind(request: pytest.FixtureRequest) -> type[MathDataset]:
    return request.param


@pytest.fixture
def file(kind: type[MathDataset], tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, SHAPES[kind])))
    return str(path)


def test_local_files_in_the_public_columns_are_read(kind: type[MathDataset], file: str) -> None:
    task: Task = kind(path=file, validation_fraction=0.2)
    check_task(task)
    problems = {problem.id: problem for split in ("train", "validation") for problem in task.problems(split)}
    assert len(problems) == 40
    first = problems["train/0"]
    gold, rewritten = GOLD[kind]
    assert first.answer == gold
    assert first.task == kind.name
    assert first.prompt[-1]["content"].endswith("\n\n" + kind(path=file).instruction)
    assert first.score(gold) == first.score(rewritten) == 1.0
    assert first.score("\\frac{7}{3}") == first.score(None) == 0.0
    assert task.validate() == []


def test_metadata_and_worked_solutions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, SHAPES[MathDataset])))
    problem = MathDataset(path=str(path), validation_fraction=0, instruction="").problems("train")[0]
    assert problem.metadata == {"level": "Level 2", "type": "Algebra"}
    assert problem.prompt == [{"role": "user", "content": "Simplify $\\sqrt{8}$."}]
    assert problem.completion is not None
    assert problem.completion.endswith("<answer> 2\\sqrt{2} </answer>")


def test_slow_answers_end_in_time_in_any_thread_and_the_judge_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"problem": "1?", "answer": "\\sin 2x"}, {"problem": "2?", "answer": "4"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = MathDataset(path=str(path), validation_fraction=0, timeout=1.0)
    problem = task.problems("train")[0]
    assert problem.score("2 \\sin x \\cos x") == 1.0
    scores: list[float] = []

    def ask() -> None:
        scores.append(problem.score("\\int_{0}^{\\infty} \\frac{\\sin(x^{x})}{x^{x^{x}}} dx"))
        scores.append(problem.score("2 \\cos x \\sin x"))

    start = time.monotonic()
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(scores) == [0.0, 0.0, 1.0, 1.0]
    assert time.monotonic() - start < 60


def test_wrong_options_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task 'gsm8k': timeout must be more than 0 seconds, got -1"):
        GSM8K(path=str(tmp_path), timeout=-1)


def test_the_public_data_sets_are_the_defaults() -> None:
    task = GSM8K()
    assert (task.path, task.configuration, task.validation_split) == ("openai/gsm8k", "main", "test")
    assert GSM8K(validation_fraction=0.1).validation_split is None
    assert DeepMath().path == "zwhe99/DeepMath-103K"
