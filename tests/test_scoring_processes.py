"""Processes that judge, beside and below others: nothing outlives what started it."""

import multiprocessing
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from scoring_rewards import Timed
from scoring_tools import alive, group, values, wait_for

from lit_reason import Rollout
from lit_reason.scoring import Scorer
from lit_reason.types import UserError


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


def sleepers() -> set[str]:
    """Processes that rewards start."""
    found = set()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found |= {str(command)} if command.read_bytes() == b"sleep\x00600\x00" else set()
    return found


@pytest.mark.parametrize("act", ["child", "stranger", "stranger then die"])
def test_what_a_reward_started_ends_with_it_wherever_it_went(scorer, act) -> None:
    before = sleepers()
    with warnings.catch_warnings(action="ignore"):
        assert values(scorer(Timed(), failures="exclude"), group(act)) == [None]
    wait_for(lambda: sleepers() <= before)


@pytest.mark.parametrize(
    ("act", "how"), [("close", "ended the process it worked in"), ("interrupt", "raised Keyboard")]
)
def test_what_breaks_a_worker_is_told_by_the_error_alone(scorer, capfd, act, how) -> None:
    with pytest.raises(UserError, match=how):
        scorer(Timed()).collect(group(act))
    assert capfd.readouterr().err == ""


def test_no_worker_outlives_a_killed_parent_though_it_is_stuck() -> None:
    script = (
        "import multiprocessing, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from scoring_rewards import *; from scoring_tools import *\n"
        "pool = Scorer(named(Timed(deadline=600)), workers=2)\n"
        "pool.submit(group('stuck', 'stranger'))\n"
        "wait_for(lambda: len(multiprocessing.active_children()) == 2)\n"
        "time.sleep(1)\n"
        "print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "time.sleep(600)\n"
    )
    before = sleepers()
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(alive(pids)) == 2
    wait_for(lambda: sleepers() > before)
    parent.kill()
    parent.communicate()
    wait_for(lambda: not alive(pids) and sleepers() <= before)


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
