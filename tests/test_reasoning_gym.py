import pickle
import subprocess
import sys
from collections import Counter

import pytest
import torch
from two_ranks import on_two_ranks

from lit_reason.plugins import TaskRef
from lit_reason.task import Task
from lit_reason.tasks.reasoning_gym import ReasoningGym
from lit_reason.types import Rollout, UserError

SUMS = {"chain_sum": None}
CLIMBING = {"chain_sum": {"curriculum": {"level": 0, "advance_at": 0.75, "window": 4}}}


def answered(problem, answer):
    return Rollout(
        problem=problem,
        prompt_ids=torch.tensor([1]),
        completion_ids=torch.tensor([1]),
        text=f"<answer>{answer}</answer>",
    )


def phase(task, start, *, right, wrong=0):
    """Rollouts of the next training problems, so many right and so many wrong."""
    problems = task.problems("train")[start : start + right + wrong]
    return [answered(p, p.answer if i < right else "no") for i, p in enumerate(problems)]


def test_a_problem_carries_question_gold_answer_and_judge():
    task = ReasoningGym(datasets={"chain_sum": {"config": {"min_digits": 2, "max_digits": 2}}})
    problem = task.problems("train")[3]
    (turn,) = problem.prompt
    assert turn["role"] == "user"
    assert turn["content"] == problem.metadata["entry"]["question"]
    assert problem.score(problem.answer) == 1.0
    assert problem.score(f"{problem.answer}0") < 1.0
    assert (problem.task, problem.id) == ("reasoning_gym", "chain_sum/train/3")
    assert task.validate() == []


def test_partial_credit_is_kept():
    problem = ReasoningGym(datasets=SUMS).problems("train")[0]
    assert problem.score(f"it is {problem.answer}") == pytest.approx(len(problem.answer) / (len(problem.answer) + 6))


def test_without_a_gold_answer_the_scorer_judges_alone():
    problem = ReasoningGym(datasets={"propositional_logic": {}}).problems("train")[0]
    assert problem.answer is None
    assert problem.score(problem.metadata["entry"]["metadata"]["example_answer"]) == 1.0
    assert problem.score("nothing follows") < 1.0


def test_the_same_options_give_the_same_problems_and_another_seed_others():
    first, again, other = (ReasoningGym(datasets=SUMS, seed=seed).problems("train")[:20] for seed in (1, 1, 2))
    assert first == again
    assert sum(a.prompt != b.prompt for a, b in zip(first, other, strict=True)) > 10


def test_weights_mix_the_generators_and_each_split_has_its_size():
    task = ReasoningGym(datasets={"chain_sum": {"weight": 3}, "gcd": None}, train_size=400, validation_size=20)
    train, held_out = task.problems("train"), task.problems("validation")
    assert (len(train), len(held_out)) == (400, 20)
    drawn = Counter(problem.metadata["generator"] for problem in train)
    assert 250 < drawn["chain_sum"] < 350  # 300 expected, standard deviation 8.7
    assert len({problem.id for problem in [*train, *held_out]}) == 420
    with pytest.raises(IndexError):
        train[400]
    assert train[-1].id == train[399].id


def test_the_mix_of_a_problem_does_not_depend_on_the_size():
    small, large = (ReasoningGym(datasets={"chain_sum": {}, "gcd": {}}, train_size=size) for size in (10, 1000))
    assert small.problems("train")[:10] == large.problems("train")[:10]


def test_a_system_prompt_and_the_mode_reach_every_problem():
    task = ReasoningGym(datasets=SUMS, system_prompt="Be brief.", think=False)
    problem = task.problems("validation")[0]
    assert [turn["role"] for turn in problem.prompt] == ["system", "user"]
    assert problem.prompt[0]["content"] == "Be brief."
    assert problem.think is False


def test_the_level_of_training_problems_rises_with_accuracy_and_held_out_problems_stay():
    task = ReasoningGym(datasets=CLIMBING)
    held_out = task.problems("validation")[:5]
    task.observe(phase(task, 0, right=2, wrong=2))
    assert task.problems("train")[9].metadata["level"] == 0
    task.observe(phase(task, 4, right=4))
    harder = task.problems("train")[9]
    assert harder.metadata["level"] == 1
    assert harder.id == "chain_sum/train/9/level-1"
    assert harder.score(harder.answer) == 1.0
    assert task.problems("validation")[:5] == held_out


def test_held_out_rollouts_do_not_move_the_level():
    task = ReasoningGym(datasets=CLIMBING)
    task.observe([answered(problem, problem.answer) for problem in task.problems("validation")[:8]])
    assert task.problems("train")[0].metadata["level"] == 0


def test_the_level_is_saved_as_plain_values_and_restored():
    task = ReasoningGym(datasets={**CLIMBING, "gcd": None})
    ladder = task.ladders["chain_sum"]
    while ladder.level == 0:
        task.observe(phase(task, 0, right=3))
    state = task.state_dict()
    assert state == {"curricula": {"chain_sum": {"level": 1, "recent": list(ladder.recent)}}}
    restored = ReasoningGym(datasets={**CLIMBING, "gcd": None})
    restored.load_state_dict(state)
    assert restored.problems("train")[:10] == task.problems("train")[:10]


def test_a_curriculum_may_start_higher_and_stay():
    fixed = ReasoningGym(datasets={"chain_sum": {"curriculum": {"level": {"num_digits": 2}}}})
    fixed.observe(phase(fixed, 0, right=100))
    assert fixed.problems("train")[0].metadata["entry"]["metadata"]["difficulty"]["num_digits"][1] == 3
    assert fixed.state_dict() == {"curricula": {"chain_sum": {"level": 0, "recent": []}}}


def climb(rank, _):
    task = ReasoningGym(datasets=CLIMBING)
    problems = task.problems("train")[: 4 if rank == 0 else 0]  # one rank has no rollouts at all
    task.observe([answered(problem, problem.answer) for problem in problems])
    return task.state_dict()


def test_all_ranks_climb_together(tmp_path):
    assert on_two_ranks(climb, tmp_path) == ({"curricula": {"chain_sum": {"level": 1, "recent": []}}},) * 2


def test_a_task_travels_between_processes():
    task = ReasoningGym(datasets=CLIMBING)
    copy = pickle.loads(pickle.dumps(task))
    assert copy.problems("train")[7].prompt == task.problems("train")[7].prompt
    problem = pickle.loads(pickle.dumps(task.problems("train")[7]))
    assert problem.score(problem.answer) == 1.0


def test_the_task_is_found_by_name_and_its_configuration_survives_a_round_trip():
    ref = TaskRef.read({"reasoning_gym": {"datasets": {"chain_sum": None, "gcd": {"weight": 2}}, "seed": 3}})
    task = TaskRef.read(ref.dump()).build()
    assert isinstance(task, Task)
    assert task.weights == {"chain_sum": 1.0, "gcd": 2.0}
    assert task.seed == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datasets": {}}, "datasets is empty; name at least one generator"),
        ({"datasets": {"sylogism": None}}, "no generator 'sylogism'; did you mean 'syllogism'?"),
        (
            {"datasets": {"gcd": {"wait": 1}}},
            "generator 'gcd' has no option 'wait'; expected weight, config, curriculum",
        ),
        ({"datasets": {"gcd": {"weight": 0}}}, "weight must be a number above 0, got 0"),
        ({"datasets": {"gcd": {"config": [1]}}}, "config must be a mapping of options, got [1]"),
        (
            {"datasets": {"gcd": {"config": {"max_numbers": 1}}}},
            "refuses its config {'max_numbers': 1}: AssertionError",
        ),
        (
            {"datasets": {"gcd": {"curriculum": {"levels": 1}}}},
            "curriculum has no option 'levels'; expected level, adv",
        ),
        ({"datasets": {"gcd": {"curriculum": {"level": "a"}}}}, "curriculum.level must be a number or a mapping"),
        (
            {"datasets": {"gcd": {"curriculum": {"advance_at": 80}}}},
            "advance_at must be an accuracy above 0 and up to 1",
        ),
        ({"datasets": SUMS, "train_size": -1}, "train_size must be 0 to 1,000,000 problems, got -1"),
        ({"datasets": SUMS, "validation_size": 2_000_000}, "validation_size must be 0 to 1,000,000 problems"),
    ],
)
def test_wrong_options_are_one_line_that_names_them(options, message):
    with pytest.raises(UserError) as error:
        ReasoningGym(**options)
    assert message in str(error.value)
    assert str(error.value).startswith("task 'reasoning_gym'")
    assert "\n" not in str(error.value)


def test_a_missing_library_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # what Python itself does to forbid an import
    with pytest.raises(UserError, match=r"pip install reasoning-gym .* needs a C compiler"):
        ReasoningGym(datasets=SUMS)


def test_importing_the_task_imports_neither_torch_nor_the_library():
    code = "import sys, lit_reason.tasks.reasoning_gym; sys.exit(bool({'torch', 'reasoning_gym'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
