import json
import logging
import pickle
import subprocess
import sys

import pytest

from lit_reason.plugins import TaskRef
from lit_reason.tasks.dataset import Dataset, same_answer
from lit_reason.types import Problem, UserError


@pytest.fixture
def write(tmp_path):
    def writer(rows, name="x.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return writer


def sums(count, start=0):
    return [{"question": f"{i} + 1?", "answer": str(i + 1), "level": i % 3} for i in range(start, start + count)]


def asked(problems):
    return [problem.prompt[-1]["content"] for problem in problems]


def test_rows_become_problems_in_their_order(write):
    task = Dataset(path=write(sums(3)), validation_fraction=0.0)
    problems = task.problems("train")
    assert asked(problems) == ["0 + 1?", "1 + 1?", "2 + 1?"]
    assert [p.answer for p in problems] == ["1", "2", "3"]
    assert [p.id for p in problems] == ["train/0", "train/1", "train/2"]
    assert [p.metadata for p in problems] == [{"level": 0}, {"level": 1}, {"level": 2}]
    assert problems[-1] == problems[2]
    assert len(task.problems("validation")) == 0
    assert task.validate() == []


def test_a_share_of_the_questions_is_held_out_whatever_their_order(write):
    rows = sums(1000)
    task, again = (
        Dataset(path=write(part, name), validation_fraction=0.2)
        for part, name in ((rows, "a.jsonl"), (rows[::-1], "b.jsonl"))
    )
    held_out = set(asked(task.problems("validation")))
    assert 150 < len(held_out) < 250  # 200 expected, standard deviation 12.6
    assert held_out == set(asked(again.problems("validation")))
    assert held_out.isdisjoint(asked(task.problems("train")))
    assert len(task.problems("train")) == 1000 - len(held_out)


def test_a_twentieth_is_held_out_by_default(write):
    assert 20 < len(Dataset(path=write(sums(1000))).problems("validation")) < 80  # 50 expected


def test_equal_questions_never_stand_on_both_sides(write):
    rows = [
        {"question": f"{'  ' * copy}{i} PLUS 1?".lower() if copy else f"{i} PLUS 1?"}
        for i in range(50)
        for copy in range(4)
    ]
    task = Dataset(path=write(rows), validation_fraction=0.5)
    train, held_out = ({q.strip().lower() for q in asked(task.problems(s))} for s in ("train", "validation"))
    assert min(len(train), len(held_out)) > 10
    assert train.isdisjoint(held_out)


def test_questions_of_the_validation_split_are_left_out_of_training(write, tmp_path):
    write(sums(10), "train.jsonl")
    write(sums(5, start=8), "test.jsonl")
    task = Dataset(path=str(tmp_path), validation_split="test")
    assert asked(task.problems("train")) == [f"{i} + 1?" for i in range(8)]
    assert asked(task.problems("validation")) == [f"{i} + 1?" for i in range(8, 13)]
    assert task.rejected == {"the question is also in the validation split": 2}
    ids = [p.id for split in ("train", "validation") for p in task.problems(split)]
    assert len(set(ids)) == len(ids)


def test_rejected_rows_are_counted_by_reason_and_reported_in_one_line(write, caplog):
    rows = [*sums(2), {"question": " "}, {"question": None}, {"question": ""}, *sums(1, start=2)]
    path = write(rows)
    task = Dataset(path=path, validation_fraction=0.0)
    with caplog.at_level(logging.WARNING):
        assert len(task.problems("train")) == 3
    assert task.rejected == {"the prompt is empty": 2, "'question' is missing": 1}
    (line,) = caplog.messages
    assert line == (
        f"task 'dataset': left out rows of '{path}': 2: the prompt is empty (first: {path}, line 3); "
        f"1: 'question' is missing (first: {path}, line 4)"
    )


def test_a_file_without_a_usable_row_is_an_error_that_says_why(write):
    path = write([{"question": " "}, {"question": ""}])
    with pytest.raises(UserError) as error:
        Dataset(path=path).problems("train")
    assert str(error.value) == (
        f"task 'dataset': none of the 2 rows of '{path}' can be used. 2: the prompt is empty ({path}, line 1)"
    )


def test_a_system_prompt_replaces_the_one_of_the_rows(write):
    path = write([{"question": "2 + 2?", "system": "Be long."}])
    assert Dataset(path=path, validation_fraction=0.0).problems("train")[0].prompt[0]["content"] == "Be long."
    replaced = Dataset(path=path, validation_fraction=0.0, system_prompt="Be brief.").problems("train")[0].prompt
    assert replaced == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


def test_the_mode_of_a_row_comes_before_the_one_of_the_task(write):
    path = write([{"question": "1?", "think": True}, {"question": "2?", "think": None}])
    problems = Dataset(path=path, validation_fraction=0.0, think=False).problems("train")
    assert [problem.think for problem in problems] == [True, False]


def test_columns_and_limit_choose_what_is_read(write):
    path = write([{"Q": f"{i}?", "A": i} for i in range(10)])
    task = Dataset(path=path, columns={"prompt": "Q", "answer": "A"}, limit=4, validation_fraction=0.0)
    assert [(p.prompt[0]["content"], p.answer) for p in task.problems("train")] == [(f"{i}?", str(i)) for i in range(4)]


def test_tasks_and_problems_travel_without_the_data(write):
    path = write(sums(2000))
    task = Dataset(path=path)
    problem = task.problems("train")[0]
    copy = pickle.loads(pickle.dumps(problem))
    assert copy == problem
    assert copy.score(problem.answer) == 1.0
    assert len(pickle.dumps(task)) < 1000
    assert pickle.loads(pickle.dumps(task)).problems("train")[0] == problem


def test_the_task_is_found_by_name_and_its_configuration_survives_a_round_trip(write):
    ref = TaskRef.read({"dataset": {"path": write(sums(2)), "name": None, "columns": {"prompt": "question"}}})
    task = TaskRef.read(ref.dump()).build()
    assert task.name == "dataset"
    assert len(task.problems("train")) + len(task.problems("validation")) == 2


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1000", "1,000"),
        ("1,000,000.50", "1000000.5"),
        ("3", "3.0"),
        ("3", "3."),
        ("0.5", ".5"),
        ("5", "$5"),
        ("-5", "-$5"),
        ("5", r"\$ 5"),
        ("+5", "5"),
        ("007", "7"),
        ("0", "-0"),
        ("yes", "  yes\n"),
        ("two  words", "two words"),
        ("1/2", "1/2"),
    ],
)
def test_the_same_text_or_number_is_right(gold, answer):
    assert same_answer(Problem(prompt=[], answer=gold), answer) == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1000", "1,00"),
        ("3", "3.1"),
        ("3", "3 apples"),
        ("5", "-5"),
        ("yes", "Yes"),
        ("5", "5 5"),
        ("10", "1e1"),
        ("$", ""),
        (".", "0"),
        ("5", "5" * 100_000),
        ("5", None),
        (None, "5"),
        (None, None),
    ],
)
def test_another_text_or_number_is_wrong(gold, answer):
    assert same_answer(Problem(prompt=[], answer=gold), answer) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_split": "test", "validation_fraction": 0.1}, "validation_split or validation_fraction, not both"),
        ({"validation_fraction": 1.0}, "validation_fraction must be 0 to below 1, got 1.0"),
        ({"validation_split": "train"}, "validation_split is the training split 'train'"),
        ({"limit": 0}, "limit must be 1 row or more, got 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=f"^task 'dataset': .*{message}"):
        Dataset(path="x.jsonl", **options)


def test_missing_data_is_found_when_the_problems_are_asked_for():
    with pytest.raises(UserError, match=r"there is no file or folder 'nowhere\.jsonl'"):
        Dataset(path="nowhere.jsonl").problems("train")


def test_importing_the_task_imports_neither_torch_nor_the_library():
    code = "import sys, lit_reason.tasks.dataset; sys.exit(bool({'torch', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
