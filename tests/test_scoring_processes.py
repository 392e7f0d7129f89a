"""Processes that judge, beside and below others: nothing outlives what started it."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from scoring_rewards import Timed
from scoring_tools import alive, group, values, wait_for

from lit_reason import Rollout
from lit_reason.scoring import Scorer


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


def test_what_a_reward_started_ends_with_it(scorer) -> None:
    def sleepers() -> set[str]:
        commands = Path("/proc").glob("[0-9]*/cmdline")
        return {str(c) for c in commands if c.exists() and c.read_bytes() == b"sleep\x00600\x00"}

    before = sleepers()
    assert values(scorer(Timed()), group("child")) == [None]
    wait_for(lambda: sleepers() <= before)


def test_no_worker_outlives_a_killed_parent_though_it_is_stuck() -> None:
    script = (
        "import multiprocessing, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from scoring_rewards import *; from scoring_tools import *\n"
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
