"""Items: deadlines, memory, what ends a process, async rewards, and judgements that are shared."""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from scoring_rewards import AsyncOdd, AsyncTimed, Endless, Meeting, Quick, Rank, Remembered, Timed, async_length
from torch.utils.data import DataLoader

from lit_reason import GRPO, PolicyOptions, Problem, RejectionSampling, Rollout, Sampling
from lit_reason.reward import Judgement, Reward, WeightedReward, weighted_rewards
from lit_reason.scoring import Scorer
from lit_reason.types import UserError


def group(*texts: str, number: int = 0) -> list[Rollout]:
    one = torch.ones(1, dtype=torch.int64)
    problem = Problem(prompt=[], id=f"p{number}")
    return [Rollout(problem=problem, prompt_ids=one, completion_ids=one, text=t, group=number) for t in texts]


def named(*rewards: Reward) -> list[WeightedReward]:
    return [WeightedReward(name=f"r{i}", weight=1.0, reward=r) for i, r in enumerate(rewards)]


@pytest.fixture
def scorer() -> Iterator[Callable[..., Scorer]]:
    made: list[Scorer] = []

    def make(*rewards: Reward, **options: object) -> Scorer:
        made.append(Scorer(named(*rewards), **options))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()
    assert not multiprocessing.active_children()


def values(pool: Scorer, rows: Sequence[Rollout]) -> list[float | None]:
    pool.collect(rows)
    return [r.reward for r in rows]


def alive(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- deadlines


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("on_timeout", [None, -1.0])
def test_an_item_that_hangs_is_ended_and_no_other(scorer, workers, on_timeout) -> None:
    pool = scorer(Timed(on_timeout=on_timeout), workers=workers)
    rows = [*group("a", "sleep", "bb", "stuck"), *group("ccc", "stuck", number=1)]
    assert values(pool, rows) == [1.0, on_timeout, 2.0, on_timeout, 3.0, on_timeout]
    tally = pool.take()["r0"]
    assert tally.statuses == {"ok": 3, "timeout": 3}
    assert tally.items == 6
    assert 1.2 <= tally.seconds < 60
    assert values(pool, group("dddd")) == [4.0]


def test_timeouts_are_told_once_with_their_number(scorer) -> None:
    pool = scorer(Timed(on_timeout=-1.0))
    with pytest.warns(UserWarning, match="1 of 2 completions were not judged within its deadline of 0.4 s and get -1"):
        pool.collect(group("a", "sleep"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.collect(group("sleep"))


def test_a_group_that_hangs_is_one_item(scorer) -> None:
    pool = scorer(Endless(), failures="exclude")
    rows = [*group("a", "sleep"), *group("b", "c", number=1)]
    with pytest.warns(UserWarning, match="returned 3 values for 2 completions"):
        assert values(pool, rows) == [-1.0, -1.0, None, None]
    assert pool.take()["r0"].items == 2


def test_queueing_does_not_count(scorer) -> None:
    pool = scorer(Timed(deadline=0.4), workers=1)
    rows = [row for number in range(10) for row in group(*["slow"] * 5, number=number)]  # 2.5 s for one worker
    assert values(pool, rows) == [1.0] * 50
    assert pool.take()["r0"].statuses == {"ok": 50}


def test_an_async_reward_may_have_a_deadline(scorer) -> None:
    assert values(scorer(AsyncTimed(0)), group("a", "sleep", "b")) == [1.0, None, 1.0]


def test_what_a_reward_started_ends_with_it(scorer) -> None:
    def sleepers() -> set[str]:
        commands = Path("/proc").glob("[0-9]*/cmdline")
        return {str(c) for c in commands if c.exists() and c.read_bytes() == b"sleep\x00600\x00"}

    before = sleepers()
    assert values(scorer(Timed()), group("child")) == [None]
    wait_for(lambda: sleepers() <= before)


@pytest.mark.parametrize(
    ("option", "value"), [("deadline", 0.0), ("deadline", float("nan")), ("memory_mb", 0), ("on_timeout", float("inf"))]
)
def test_bounds_that_are_none_are_named(option, value) -> None:
    reward = Timed()
    setattr(reward, option, value)
    with pytest.raises(UserError, match=f"reward 'r0': {option} must be .*, got {value}"):
        named(reward)


# --- what goes wrong

WRONG = {
    "raise": "raised ZeroDivisionError: division by zero",
    "exit": "raised SystemExit: 4",
    "nan": "returned nan for problem 'p0'",
    "text": "returned 'good' of type str",
    "generator": "of type generator; expected a number or None",
    "die": "ended the process it worked in (exit code 3) on problem 'p0'",
    "killed": "ended the process it worked in (killed by signal 9, Killed) on problem 'p0'",
    "eat": "raised MemoryError (",
}


@pytest.mark.parametrize("act", WRONG)
def test_a_failure_is_named_or_left_out_and_counted(scorer, act) -> None:
    with pytest.raises(UserError) as caught:
        scorer(Timed()).collect(group("a", act))
    assert str(caught.value).startswith("reward 'r0' ")
    assert WRONG[act] in str(caught.value)
    assert "\n" not in str(caught.value)
    pool = scorer(Timed(), failures="exclude")
    with pytest.warns(UserWarning, match="left out") as warned:
        assert values(pool, [*group("a", act, "bb"), *group(act, number=1)]) == [1.0, None, 2.0, None]
    assert len(warned) == 1  # once a reward
    tally = pool.take()["r0"]
    assert tally.failures == 2
    assert tally.statuses == {"ok": 2, "nonfinite" if act == "nan" else "failed": 2}


@pytest.mark.parametrize("act", ["raise", "die"])
def test_in_a_group_that_is_judged_at_once_only_the_row_that_failed_is_left_out(scorer, act) -> None:
    reward = Timed(deadline=None)
    reward.memory_mb = None
    with pytest.warns(UserWarning, match="left out"):
        assert values(scorer(reward, workers=1, failures="exclude"), group("a", act, "bb")) == [1.0, None, 2.0]


def test_masked_is_not_excluded(scorer) -> None:
    pool = scorer(Timed(), nonfinite="mask", failures="exclude")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values(pool, group("nan", "a")) == [None, 1.0]
    assert pool.take()["r0"].failures == 0


class Misconfigured(Reward):
    async def score(self, rollout: Rollout) -> float:
        raise UserError("set JUDGE_KEY")


def test_what_a_person_must_mend_is_never_left_out(scorer) -> None:
    with pytest.raises(UserError, match=r"^set JUDGE_KEY$"):
        scorer(Misconfigured(), failures="exclude").collect(group("a"))


def test_memory_is_bounded_item_by_item_and_given_back(scorer) -> None:
    pool = scorer(Timed(), workers=1, failures="exclude")
    with pytest.warns(UserWarning, match="memory_mb is 256"):
        assert values(pool, group("pid", "eat", "pid"))[1] is None
    first, _, second = [r.reward for r in group_of(pool, "pid", "a", "pid")]
    assert first == second


def group_of(pool: Scorer, *texts: str) -> list[Rollout]:
    rows = group(*texts)
    pool.collect(rows)
    return rows


def test_processes_are_replaced_after_many_items(scorer, monkeypatch) -> None:
    monkeypatch.setattr("lit_reason.scoring_worker.ITEMS_A_WORKER", 2)
    pids = values(scorer(Timed(), workers=1), group(*["pid"] * 6))
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]


@pytest.mark.parametrize("status", ["two words", "seconds", "x" * 33, 5])
def test_a_status_is_a_short_word(status) -> None:
    with pytest.raises(ValueError, match="status"):
        Judgement(value=1.0, status=status)


# --- async


def test_async_rewards_of_all_rows_run_at_once(scorer) -> None:
    rows = [row for number in range(8) for row in group("a", "bb", number=number)]
    assert values(scorer(Rank(), Meeting(16)), rows) == [2.0, 3.0] * 8


def test_groups_that_were_submitted_wait_together(scorer) -> None:
    pool = scorer(Meeting(4), Meeting(4))
    rows = [*group("a", "b"), *group("a", "b", number=1)]
    pool.submit(rows[:2])
    pool.submit(rows[2:])
    assert values(pool, rows) == [6.0] * 4


@pytest.mark.parametrize("act", ["raise", "exit", "nan", "text", "generator", "cancelled"])
def test_async_failures_are_like_others(scorer, act) -> None:
    with pytest.raises(UserError, match=r"reward 'r0' (raised|returned)"):
        scorer(AsyncOdd()).collect(group("a", act))
    pool = scorer(AsyncOdd(), failures="exclude")
    with pytest.warns(UserWarning, match="left out"):
        assert values(pool, group("a", act)) == [1.0, None]
    assert pool.take()["r0"].statuses["fine"] == 1


def test_a_plain_async_function_is_a_reward_and_stays_in_this_process() -> None:
    def loop_of(rollout: Rollout) -> object:
        return later(rollout)

    async def later(rollout: Rollout) -> float:
        return 1.0

    pool = Scorer(weighted_rewards([async_length, later]), workers=1)  # what is local cannot be sent
    try:
        assert values(pool, group("abc")) == [4.0]
    finally:
        pool.close()
    pool = Scorer(weighted_rewards([loop_of]))  # not declared async, and yet awaited
    try:
        assert values(pool, group("abc")) == [1.0]
    finally:
        pool.close()


def test_any_thread_may_score_also_one_that_runs_a_loop(scorer) -> None:
    pool = scorer(Meeting(2), Timed())
    found: list[object] = []

    async def inside() -> None:
        found.append(values(pool, group("a", "sleep")))

    thread = threading.Thread(target=lambda: asyncio.run(inside()))
    thread.start()
    thread.join()
    assert found == [[3.0, 2.0]]
    assert asyncio.run(_score(pool)) == [3.0, 3.0]


async def _score(pool: Scorer) -> list[float | None]:
    return values(pool, group("a", "b"))


def test_closing_ends_what_still_waits(scorer) -> None:
    pool = scorer(Meeting(3))
    pool.submit(group("a", "b"))
    pool.close()
    assert not [t for t in threading.enumerate() if t.name == "async rewards"]


# --- judgements that are shared


@pytest.mark.parametrize("deadline", [None, 5.0])
@pytest.mark.parametrize("workers", [0, 2])
def test_equal_keys_are_judged_once_with_the_same_values(scorer, tmp_path, deadline, workers) -> None:
    rows = [*group("aa", "b", "aa", "aa"), *group("b", "ccc", number=1)]
    expected = values(scorer(Remembered(tmp_path / "plain", keyed=False)), [*group("aa", "b", "aa", "aa"), *rows[4:]])
    pool = scorer(Remembered(tmp_path / "keyed", deadline), workers=workers)
    assert values(pool, rows) == expected == [2.0, 1.0, 2.0, 2.0, 1.0, 3.0]
    assert sorted((tmp_path / "keyed").read_text().split()) == ["aa", "b", "ccc"]
    tally = pool.take()["r0"]
    assert (tally.items, tally.cached, tally.statuses) == (3, 3, {"measured": 6})
    assert values(pool, group("ccc", "b")) == [3.0, 1.0]
    assert pool.take()["r0"].items == 0


@pytest.mark.parametrize("act", ["sleep", "raise", "die", "nan"])
def test_what_went_wrong_is_not_remembered(scorer, tmp_path, act) -> None:
    pool = scorer(Remembered(tmp_path / "log", 0.3), failures="exclude", workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            assert values(pool, group(act, "a", act)) == [None, 1.0, None]
    assert (tmp_path / "log").read_text().split().count(act) == 2


def test_only_so_much_is_remembered(scorer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lit_reason.scoring_group.REMEMBERED", 2)
    pool = scorer(Remembered(tmp_path / "log"))
    for text in ("a", "b", "a", "c", "a", "b"):  # c drives out b, which was asked for longer ago
        values(pool, group(text))
    assert (tmp_path / "log").read_text().split() == ["a", "b", "c", "b"]


class Uncomparable:
    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError


class Keyed(Reward):
    def __init__(self, key: object) -> None:
        self.key = key

    def cache_key(self, rollout: Rollout) -> object:
        return self.key


@pytest.mark.parametrize("key", [["a"], Uncomparable(), ("a", (1, Uncomparable()))])
def test_a_key_that_is_no_plain_value_is_named_or_left_out(scorer, key) -> None:
    with pytest.raises(UserError, match=r"reward 'r0' gave the cache_key .*; expected text.* set failures: exclude"):
        scorer(Keyed(key)).collect(group("a", "b"))
    with pytest.warns(UserWarning, match="left out"):
        assert values(scorer(Keyed(key), failures="exclude"), group("a", "b")) == [None, None]


class Fatal(Reward):
    """Raises what ends programs: in one method, with no text to it."""

    def __init__(self, method: str) -> None:
        setattr(self, method, self.end)

    def end(self, rollout: Rollout) -> float:
        class Silent(BaseException):
            def __str__(self) -> str:
                raise GeneratorExit

        raise Silent

    def score(self, rollout: Rollout) -> float:
        return 1.0


@pytest.mark.parametrize("method", ["quick", "cache_key", "score"])
def test_what_would_end_the_program_is_named_or_left_out(scorer, method) -> None:
    with pytest.raises(UserError, match=r"^reward 'r0' raised Silent \(.*set failures: exclude"):
        scorer(Fatal(method)).collect(group("a"))
    with pytest.warns(UserWarning, match="left out"):
        assert values(scorer(Fatal(method), failures="exclude"), group("a")) == [None]


def test_ctrl_c_is_not_a_rewards_doing(scorer) -> None:
    class Interrupted(Reward):
        def score(self, rollout: Rollout) -> float:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorer(Interrupted(), failures="exclude").collect(group("a"))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_known_at_once_is_not_judged(scorer, tmp_path, workers) -> None:
    pool = scorer(Quick(tmp_path / "log", 5.0), workers=workers)
    assert values(pool, group("a", "bb", "c")) == [0.5, 2.0, 0.5]
    assert (tmp_path / "log").read_text() == "bb\n"
    assert pool.take()["r0"].statuses == {"short": 2, "measured": 1}


# --- processes


def test_no_worker_outlives_a_killed_parent_though_it_is_stuck() -> None:
    script = (
        "import multiprocessing, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from test_scoring_items import *\n"
        "pool = Scorer(named(Timed(deadline=600)), workers=2)\n"
        "pool.submit(group('stuck', 'child'))\n"
        "wait_for(lambda: len(multiprocessing.active_children()) == 2)\n"
        "time.sleep(1)\n"
        "print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(alive(pids)) == 2
    parent.kill()
    parent.communicate()
    wait_for(lambda: not alive(pids))


def _in_a_fork(pool: Scorer, found: object) -> None:
    found.put(values(pool, group("a", "sleep")))
    pool.close()


def test_a_fork_has_workers_of_its_own(scorer) -> None:
    pool = scorer(Timed())
    assert values(pool, group("a", "sleep")) == [1.0, None]
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    child = context.Process(target=_in_a_fork, args=(pool, found))
    child.start()
    assert found.get(timeout=120) == [1.0, None]
    child.join(60)
    assert child.exitcode == 0
    assert values(pool, group("a", "sleep")) == [1.0, None]


# --- modules


def fit(module: GRPO | RejectionSampling, folder: Path) -> dict[str, float]:
    problems = [Problem(prompt=[{"role": "user", "content": c}], answer="1", id=c) for c in "abcd"]
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=folder, **options)
    trainer.fit(module, DataLoader(problems, batch_size=2, collate_fn=list))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class ByPlace(Reward):
    """A status, a failure, or NaN by the place in the group."""

    def score_group(self, rollouts: Sequence[Rollout]) -> list[float | Judgement]:
        return [Judgement(value=1.0, status="right"), Judgement(value=None, status="odd"), float("nan"), 0.0]


@pytest.mark.parametrize(("options", "left_out"), [({"nonfinite": "mask"}, "nonfinite"), ({}, "failures")])
@pytest.mark.parametrize("kind", [GRPO, RejectionSampling])
def test_how_rewards_judged_is_logged(tiny_llama, tmp_path, kind, options, left_out) -> None:
    if kind is RejectionSampling:
        options, left_out = {}, "failures"
    module = kind(
        [ByPlace(), {"length": {"weight": 0}}],
        policy=PolicyOptions(model=tiny_llama),
        sampling=Sampling(max_new_tokens=4),
        group_size=4,
        failures="exclude",
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit(module, tmp_path)
    shares = {n: found[f"train/reward/ByPlace/{n}"] for n in ("ok", "right", "odd", "nonfinite")}
    assert shares == dict.fromkeys(shares, 0.25)
    assert found[f"train/{left_out}/ByPlace"] == 2.0
    assert (
        0 < found["train/reward/ByPlace/seconds"] == pytest.approx(2 * found["train/reward/ByPlace/seconds_per_item"])
    )
    assert [n for n in found if n.startswith("train/reward/length/")] == [
        "train/reward/length/seconds",
        "train/reward/length/seconds_per_item",
    ]
    assert [r.reward for r in module.last_rollouts[:4]] == [1.0, None, None, 0.0]


def test_a_reward_of_weight_0_is_a_metric() -> None:
    rows = group("a", "bb")
    some = Timed(deadline=None)
    some.memory_mb, some.score = None, lambda rollout: None if rollout.text == "a" else 1.0
    rewards = [WeightedReward(name="some", weight=2.0, reward=some), *weighted_rewards([async_length])]
    rewards[1] = WeightedReward(name="metric", weight=0.0, reward=rewards[1].reward)
    pool = Scorer(rewards)
    assert values(pool, rows) == [None, 2.0]
    assert [r.rewards["metric"] for r in rows] == [1.0, 2.0]
    pool.close()
    with pytest.raises(UserError, match="rewards all have weight 0"):
        weighted_rewards([{"length": {"weight": 0}}])


def test_ranks_log_the_same_names_though_they_saw_other_statuses(tiny_llama, tmp_path) -> None:
    script = Path(__file__).parent / "judging_worker.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, tiny_llama, tmp_path], check=True, timeout=300, env=environment)
    zero, one = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert zero["logged"] == one["logged"]
    logged = zero["logged"]
    # rank 0 has rollouts "even", rank 1 "odd", and one of its four hangs
    assert {n: logged[f"train/reward/ByRank/{n}"] for n in ("even", "odd", "timeout")} == {
        "even": 0.5,
        "odd": 0.375,
        "timeout": 0.125,
    }
    assert logged["train/failures/ByRank"] == 0.0
    # the sums of standardised rewards are worked by hand in test_advantage.py
    torch.testing.assert_close(torch.tensor(zero["advantages"] + one["advantages"]), expected_advantages())


def expected_advantages() -> torch.Tensor:
    """Rank 0's rewards are 0, 1, 2, 3, rank 1's 0, None, 2, 4, over their group's std and then over that of all."""
    first = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64) / ((5 / 3) ** 0.5 + 1e-4)
    second = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64) / (2.0 + 1e-4)
    both = torch.cat([first, second])
    both = both / ((both.square().sum() / 6) ** 0.5 + 1e-4)
    return torch.cat([both[:5], torch.zeros(1), both[5:]]).float()
