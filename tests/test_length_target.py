"""The task that writes how long to think into the prompts of another task."""

import pytest

from lit_reason.plugins import RewardRef, TaskRef
from lit_reason.reward import weighted_rewards
from lit_reason.scoring import Scorer
from lit_reason.task import Task
from lit_reason.tasks.length_target import LengthTarget
from lit_reason.testing import check_task, sample_rollouts
from lit_reason.types import Problem, UserError


class Sums(Task):
    """Some sums, judged generously; counts what it observes."""

    def __init__(self, size: int = 500) -> None:
        self.size, self.seen = size, 0

    def problems(self, split):
        return [
            Problem(
                prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{split} {i} + 1?"}],
                answer=str(i + 1),
                id=f"{split}-{i}",
                task="sums",
                metadata={"i": i},
                scorer=self.score,
            )
            for i in range(self.size)
        ]

    def score(self, problem, answer):
        return float(answer is not None and answer.strip("0 ") == str(problem.metadata["i"] + 1).strip("0"))

    def observe(self, rollouts):
        self.seen += len(rollouts)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_the_prompt_ends_with_the_target_that_the_metadata_has():
    for mode, sentence in (("exact", "Think for {} tokens."), ("max", "Think for maximum {} tokens.")):
        task = LengthTarget(task=Sums(), mode=mode)
        problem = task.problems("train")[3]
        target = problem.metadata["length_target"]
        assert problem.prompt == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "train 3 + 1?\n" + sentence.format(target)},
        ]
        assert (problem.id, problem.task, problem.answer, problem.metadata["i"]) == ("train-3", "sums", "4", 3)
        assert problem.score("04") == 1.0  # the other task judges, its own way


def test_targets_depend_on_seed_and_problem_alone():
    def targets(split="train", **options):
        return [p.metadata["length_target"] for p in LengthTarget(task=Sums(), **options).problems(split)]

    first = targets()
    assert first == targets() == targets(mode="max")
    assert first != targets(seed=1)
    assert first != targets("validation")
    assert targets("validation") == targets("validation")
    assert first[0] == 3110  # the same in every process, on every machine and on every day


def test_targets_are_uniform_between_the_bounds():
    drawn = [p.metadata["length_target"] for p in LengthTarget(task=Sums(500)).problems("train")]
    assert 100 <= min(drawn) < 200
    assert 3900 < max(drawn) <= 4000
    assert sum(drawn) / len(drawn) == pytest.approx(2050, abs=150)  # 3 standard errors of 50
    ends = {p.metadata["length_target"] for p in LengthTarget(task=Sums(), low=7, high=9).problems("train")}
    assert ends == {7, 8, 9}


def test_problems_come_in_slices_and_leave_the_other_tasks_problems_alone():
    inner = Sums()
    task = LengthTarget(task=inner)
    problems = task.problems("train")
    assert len(problems) == 500
    assert [p.id for p in problems[1:3]] == ["train-1", "train-2"]
    assert problems[-1].id == "train-499"
    kept = inner.problems("train")
    assert LengthTarget(task=Fixed(kept)).problems("train")[0].prompt != kept[0].prompt
    assert "length_target" not in kept[0].metadata


class Fixed(Task):
    def __init__(self, problems):
        self.kept = problems

    def problems(self, split):
        return self.kept


def test_curricula_of_the_other_task_go_on():
    task = LengthTarget(task=Sums())
    task.observe(sample_rollouts())
    assert task.state_dict() == {"seen": 4}
    other = LengthTarget(task=Sums())
    other.load_state_dict(task.state_dict())
    assert other.task.seen == 4


def test_the_task_conforms_around_a_real_one_and_is_named_in_yaml():
    written = {
        "length_target": {"task": {"reasoning_gym": {"datasets": {"chain_sum": {}}}}, "mode": "max", "high": 300}
    }
    reference = TaskRef.read(written)
    task = reference.build()
    check_task(task, limit=20)
    assert task.name == "length_target"
    again = TaskRef.read(reference.dump()).build()
    assert again.problems("train")[0].prompt == task.problems("train")[0].prompt


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"task": "nano_trace"},
            "task 'length_target' option 'task': no task named 'nano_trace' is installed; did you",
        ),
        ({"task": {"nano_traces": {"wrked": 1}}}, "task 'length_target' option 'task': task 'nano_traces' has no opti"),
        ({}, "task 'length_target' needs the option 'task': {length_target: {task: ...}}"),
        ({"task": "nano_traces", "mode": "min"}, "task 'length_target' option 'mode' expected Literal['exact', 'max']"),
        ({"task": "nano_traces", "low": 0}, "task 'length_target': low and high must be 1 <= low <= high, got 0 and "),
        ({"task": "nano_traces", "high": 50}, "task 'length_target': low and high must be 1 <= low <= high, got 100 "),
    ],
)
def test_wrong_options_are_one_line(options, said):
    with pytest.raises(UserError) as error:
        TaskRef.read({"length_target": options}).build()
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_lcpo_judges_its_problems_in_this_process_and_in_workers(workers):
    task = LengthTarget(task=Sums(), mode="max", low=100, high=100)
    rewards = weighted_rewards([RewardRef("lcpo_max", delta=0.25, alpha=0.01)])
    group = sample_rollouts(["<answer>4</answer>", "<answer>5</answer>"], problem=task.problems("train")[3])
    scorer = Scorer(rewards, workers=workers)
    try:
        scorer.start([task])
        scorer.collect(group)
    finally:
        scorer.close()
    assert [r.reward for r in group] == pytest.approx([1.0, 0.0])  # 0.01 * (100 - 19) + 0.25, clipped
    with pytest.raises(UserError, match="set mode: exact there"):
        Scorer(weighted_rewards(["lcpo_exact"])).collect(group)
