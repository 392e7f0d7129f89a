"""What tests of scoring share: groups, their rewards, and waiting."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lit_reason.reward import Reward, WeightedReward
from lit_reason.scoring import Scorer
from lit_reason.types import Problem, Rollout


def group(*texts: str, number: int = 0) -> list[Rollout]:
    one = torch.ones(1, dtype=torch.int64)
    problem = Problem(prompt=[], id=f"p{number}")
    return [Rollout(problem=problem, prompt_ids=one, completion_ids=one, text=t, group=number) for t in texts]


def named(*rewards: Reward) -> list[WeightedReward]:
    return [WeightedReward(name=f"r{i}", weight=1.0, reward=r) for i, r in enumerate(rewards)]


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
