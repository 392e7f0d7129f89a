"""Scoring in worker processes: the same as in this one, earlier, and nothing left behind."""

import copy
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from scoring_rewards import At, Counting, Leave, Rank, Unreadable, everything, twice_the_first
from torch.utils.data import DataLoader

from lit_reason import GRPO, PolicyOptions, Problem, Rollout, Sampling
from lit_reason.policy import Policy
from lit_reason.reward import Reward, WeightedReward, weighted_rewards
from lit_reason.rollout import Completion, Engine, Request, roll_out
from lit_reason.scoring import Scorer
from lit_reason.tasks.reasoning_gym import ReasoningGym
from lit_reason.types import UserError


def rollouts(problems: Sequence[Problem], texts: Sequence[str] = ("a", "b")) -> list[Rollout]:
    return [
        Rollout(
            problem=problem,
            prompt_ids=torch.arange(3 + g),
            completion_ids=torch.arange(4 + 7 * i % 5),
            text=text,
            finish_reason="length" if i else "stop",
            mask=torch.tensor([True, False]) if i else None,
            sampler_logprobs=torch.linspace(-1.0, -0.1, 5, dtype=torch.bfloat16) if g else None,
            group=g,
        )
        for g, problem in enumerate(problems)
        for i, text in enumerate(texts)
    ]


def plain(count: int) -> list[Problem]:
    shift = torch.tensor(2.5)
    return [Problem(prompt=[], answer="4", id=f"p{i}", metadata={"shift": shift}) for i in range(count)]


def groups(rows: Sequence[Rollout]) -> list[list[Rollout]]:
    found: dict[int, list[Rollout]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return list(found.values())


def named(*rewards: Reward) -> list[WeightedReward]:
    return [WeightedReward(name=f"r{i}", weight=1.0, reward=r) for i, r in enumerate(rewards)]


@pytest.fixture
def scorer() -> Iterator[Callable[..., Scorer]]:
    made: list[Scorer] = []

    def make(rewards: Sequence[WeightedReward], workers: int = 1, nonfinite: str = "error") -> Scorer:
        made.append(Scorer(rewards, workers=workers, nonfinite=nonfinite))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()
    assert not multiprocessing.active_children()


ANSWERS = [
    "<think> so </think> <answer> {} </answer>",
    "<answer>{}</answer>",
    "<think></think> <answer> 17 </answer> and on",
    "nothing",
]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_reward_says_the_same_in_a_worker(scorer, workers) -> None:
    task = ReasoningGym(datasets={"chain_sum": {}, "syllogism": {}, "polynomial_multiplication": {}})
    problems = [*task.problems("train")[:6], *plain(2)]
    problems[0].think = False
    texts = [text.format(problems[0].answer) for text in ANSWERS]
    rewards = weighted_rewards(
        [
            everything,
            "accuracy",
            "format",
            {"length": {"target": 4, "span": 3, "weight": -0.5}},
            Rank,
            twice_the_first,
        ]
    )
    expected, actual, unsubmitted = (rollouts(problems, texts) for _ in range(3))
    Scorer(rewards).collect(expected)
    pool = scorer(rewards, workers)
    for group in groups(actual)[::-1]:
        pool.submit(group)
    pool.collect(actual)
    pool.collect(unsubmitted)
    assert len({r.rewards["accuracy"] for r in expected}) > 1
    for mine, theirs, late in zip(expected, actual, unsubmitted, strict=True):
        assert theirs.rewards == mine.rewards == late.rewards
        assert theirs.reward == mine.reward == late.reward
        assert list(theirs.rewards) == list(mine.rewards)


@pytest.mark.parametrize("act", ["raise", "nan", "text", "exit", "short"])
@pytest.mark.parametrize("earlier", [True, False])
def test_errors_are_the_same_to_the_letter_and_come_in_the_same_order(scorer, act, earlier) -> None:
    # the last reward fails in the first group; an earlier reward that fails in the last group is reported instead
    rewards = named(At("z", "raise"), At("b1" if earlier else "z", "text"), At("a", act))
    rows = [*rollouts(plain(2), ("a", "b0")), *rollouts(plain(3), ("x", "b1"))[4:]]
    with pytest.raises(UserError) as here:
        Scorer(rewards).collect(copy.copy(rows))
    pool = scorer(rewards, 2)
    for group in groups(rows):
        pool.submit(group)
    with pytest.raises(UserError) as there:
        pool.collect(rows)
    assert str(there.value) == str(here.value)


def test_masked_values_are_counted(scorer) -> None:
    rewards = named(At("a", "nan"), At("z", "nan"))
    expected, actual = rollouts(plain(3)), rollouts(plain(3))
    pool = scorer(rewards, 2, "mask")
    here = Scorer(rewards, nonfinite="mask")
    here.collect(expected)
    pool.collect(actual)
    assert pool.take()["r0"].statuses == here.take()["r0"].statuses == {"ok": 3, "nonfinite": 3}
    assert [r.rewards for r in actual] == [r.rewards for r in expected]


def test_a_group_that_changed_since_is_scored_again(scorer) -> None:
    pool = scorer(named(At("z", "nan")), nonfinite="mask")
    rows = rollouts(plain(1))
    pool.submit(rows)
    rows[0].text = "z"
    pool.collect(rows)
    assert [r.reward for r in rows] == [None, 1.0]


def test_a_task_travels_once(scorer) -> None:
    task = Counting()
    pool = scorer(weighted_rewards(["accuracy"]))
    for _ in range(2):
        rows = rollouts(task.problems("train"), ["<answer>1</answer>"])
        pool.collect(rows)
    assert task.pickled == 1
    assert [r.reward for r in rows] == [5.0, 6.0, 7.0, 8.0]  # one and the same object there
    assert task.scored == 0


class Waiting(Engine):
    """Finishes the last group only when the first one has been scored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def generate(
        self, policy: Policy, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, int, Completion]]:
        for index in range(len(requests)):
            if index == len(requests) - 1:
                wait_for((self.folder / "0").exists)
            for sample in range(len(requests[index].streams)):
                yield index, sample, Completion(ids=torch.tensor([5, 6]), logprobs=None, finish_reason="length")


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_group_is_scored_while_others_generate(scorer, tiny_llama, tmp_path) -> None:
    pool = scorer(named(Leave(tmp_path)))
    problems = [Problem(prompt=[{"role": "user", "content": c}]) for c in "abc"]
    policy = Policy(PolicyOptions(model=tiny_llama))
    rows = roll_out(policy, problems, Sampling(), 2, engine=Waiting(tmp_path), on_group=pool.submit)
    pool.collect(rows)
    assert [r.reward for r in rows] == [1.0] * 6


@pytest.mark.parametrize(("act", "how"), [("die", "exit code 3"), ("killed", "killed by signal 9, Killed")])
def test_a_reward_that_ends_its_worker_is_named_and_the_others_go_on(scorer, act, how) -> None:
    pool = scorer(named(At("z", act), At("b", act)))
    rows, fine = rollouts(plain(2), ["a", "b"]), rollouts(plain(2), ["a"])
    for group in groups(rows):
        pool.submit(group)
    with pytest.raises(UserError) as caught:
        pool.collect(rows)
    said = str(caught.value)
    assert "reward 'r1' ended the process it worked in" in said
    assert how in said
    assert "'p0'" in said
    assert "\n" not in said
    pool.collect(fine)
    assert [r.reward for r in fine] == [2.0, 2.0]


def test_what_cannot_be_sent_is_named_before_anything_starts(scorer) -> None:
    with pytest.raises(UserError, match=r"reward '<lambda>' cannot be sent .* top level .*reward_workers: 0"):
        Scorer(weighted_rewards([lambda r: 1.0]), workers=1)
    Scorer(weighted_rewards([lambda r: 1.0]), workers=0)
    with pytest.raises(UserError, match="reward_workers must be 0"):
        Scorer(weighted_rewards(["format"]), workers=-1)
    pool = scorer(weighted_rewards(["accuracy"]))
    with pytest.raises(UserError, match=r"problem 'odd' cannot be sent .*reward_workers: 0"):
        pool.collect(rollouts([Problem(prompt=[], id="odd", scorer=lambda problem, answer: 1.0)]))


def test_a_worker_that_cannot_start_says_why(scorer) -> None:
    with pytest.raises(UserError, match=r"cannot import the rewards or the task .*no such module there"):
        scorer(named(Unreadable())).collect(rollouts(plain(1)))


def test_a_script_without_guard_is_told_to_guard_itself(tmp_path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from lit_reason import Problem, Rollout\n"
        "from lit_reason.reward import weighted_rewards\n"
        "from lit_reason.scoring import Scorer\n"
        "import torch\n"
        "one = torch.ones(1)\n"
        "rows = [Rollout(problem=Problem(prompt=[]), prompt_ids=one, completion_ids=one, text='')]\n"
        "Scorer(weighted_rewards(['format']), workers=1).collect(rows)\n"
    )
    done = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert 'if __name__ == "__main__"' in done.stderr.splitlines()[-1]


def test_closing_ends_workers_in_the_middle_of_a_group(scorer) -> None:
    pool = scorer(named(At("a", "sleep")), 2)
    for group in groups(rollouts(plain(5))):
        pool.submit(group)
    wait_for(lambda: len(multiprocessing.active_children()) == 2)
    pool.close()
    assert not multiprocessing.active_children()


def fit(folder: Path, model: str, reward: object, workers: int) -> list[float | None]:
    problems = [Problem(prompt=[{"role": "user", "content": c}], answer="1", id=c) for c in "abcd"]
    module = GRPO(
        [reward, "accuracy"],
        policy=PolicyOptions(model=model),
        sampling=Sampling(max_new_tokens=8),
        group_size=4,
        reward_workers=workers,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
    )
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=2, accelerator="cpu", logger=False, default_root_dir=folder, **options)
    trainer.fit(module, DataLoader(problems, batch_size=2, collate_fn=list))
    assert {"train/rollout_seconds", "train/reward_seconds", "train/update_seconds"} <= set(trainer.callback_metrics)
    return [r.reward for r in module.last_rollouts]


def test_training_is_the_same_with_workers_and_leaves_none(tiny_llama, tmp_path) -> None:
    assert fit(tmp_path, tiny_llama, everything, 2) == fit(tmp_path, tiny_llama, everything, 0)
    assert not multiprocessing.active_children()


def test_a_fit_that_fails_leaves_no_worker(tiny_llama, tmp_path) -> None:
    with pytest.raises(UserError, match="reward 'At' raised ZeroDivisionError"):
        fit(tmp_path, tiny_llama, At("", "raise"), 1)
    assert not multiprocessing.active_children()
