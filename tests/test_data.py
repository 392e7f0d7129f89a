"""Phases of problems: sharded without repeats, ordered by (seed, epoch), resumable in the middle."""

from collections.abc import Sequence

import pytest

from lit_reason.data import Phases, PhaseSampler, ReasoningData
from lit_reason.task import Split, Task
from lit_reason.types import Problem, Rollout, UserError


class Numbers(Task):
    """Ten problems to train on, four held out."""

    def __init__(self) -> None:
        self.seen = 0

    def problems(self, split: Split) -> Sequence[Problem]:
        numbers = range(10) if split == "train" else range(100, 104)
        return [Problem(prompt=[{"role": "user", "content": str(n)}], answer=str(n), id=str(n)) for n in numbers]

    def observe(self, rollouts: Sequence[Rollout]) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def ids(batches: Sequence[Sequence[Problem]]) -> list[list[str]]:
    return [[p.id for p in batch] for batch in batches]


@pytest.mark.parametrize(("size", "world"), [(4, 1), (4, 2), (3, 2), (10, 3), (1, 1), (7, 4)])
def test_ranks_share_each_phase_without_gap_or_repeat(size: int, world: int) -> None:
    problems = Numbers().problems("train")
    alone = Phases(problems, size, 0, 1, seed=5)
    ranks = [Phases(problems, size, rank, world, seed=5) for rank in range(world)]
    for phases in (alone, *ranks):
        phases.shuffle(2)
    for index in range(len(alone)):
        together = [p.id for phases in ranks for p in phases[index]]
        assert sorted(together) == sorted(p.id for p in alone[index])
    assert sorted(i for batch in ids([alone[i] for i in range(len(alone))]) for i in batch) == sorted(
        p.id for p in problems
    )


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[str]]:
        phases = Phases(Numbers().problems("train"), 4, 0, 1, seed)
        phases.shuffle(epoch)
        return ids([phases[i] for i in range(len(phases))])

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_a_restored_module_goes_on_where_it_was() -> None:
    data = ReasoningData(Numbers(), prompts_per_step=3)
    whole = ids(list(data.train_dataloader()))
    data.observe([])
    data.observe([])
    state = data.state_dict()
    assert state == {"phases_done": 2, "task": {"seen": 2}}
    resumed = ReasoningData(Numbers(), prompts_per_step=3)
    resumed.load_state_dict(state)
    loader = resumed.train_dataloader()
    assert ids(list(loader)) == whole[2:]
    assert isinstance(loader.sampler, PhaseSampler)
    loader.sampler.set_epoch(1)
    assert len(list(loader)) == len(whole)  # the next epoch is a whole one


def test_validation_problems_are_the_same_every_time() -> None:
    data = ReasoningData(Numbers(), validation_problems=3, validation_batch=2, seed=9)
    assert ids(list(data.val_dataloader())) == [["100", "101"], ["102"]]
    assert ReasoningData(Numbers(), validation_problems=0).val_dataloader() == []


@pytest.mark.parametrize(
    "option", [{"prompts_per_step": 0}, {"validation_batch": 0}, {"validation_problems": -1}], ids=str
)
def test_impossible_sizes_are_named(option: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"data.{next(iter(option))} must be"):
        ReasoningData(Numbers(), **option)


def test_a_task_without_problems_is_an_error_before_a_model_loads() -> None:
    class Nothing(Numbers):
        def problems(self, split: Split) -> Sequence[Problem]:
            return []

    with pytest.raises(UserError, match="no problems to train on"):
        ReasoningData(Nothing()).setup("fit")
