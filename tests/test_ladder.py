import pytest

from lit_reason.tasks.generators import Generator
from lit_reason.tasks.ladder import Ladder
from lit_reason.types import UserError


@pytest.fixture(scope="module")
def generator():
    return Generator("chain_sum", seed=0, config={}, levels=0)


def climb(ladder, generator, solved, level=None):
    for one in solved:
        ladder.see(ladder.level if level is None else level, solved=one, generator=generator)
    return ladder.level


def test_the_level_rises_when_a_full_window_reaches_the_accuracy(generator):
    ladder = Ladder("x", advance_at=0.75, window=4)
    assert climb(ladder, generator, [True, True, True]) == 0  # not full yet
    assert climb(ladder, generator, [False]) == 1  # 3 of 4
    assert climb(ladder, generator, [True, True, False, False]) == 1  # 2 of 4
    assert climb(ladder, generator, [True]) == 1  # 2 of the last 4
    assert climb(ladder, generator, [True]) == 1  # likewise: the window moved on
    assert climb(ladder, generator, [True]) == 2  # 3 of the last 4


def test_completions_of_another_level_do_not_count(generator):
    ladder = Ladder("x", advance_at=0.5, window=2)
    assert climb(ladder, generator, [True] * 10, level=1) == 0


def test_the_level_stays_at_the_top_of_the_curriculum(generator):
    ladder = Ladder("x", advance_at=1.0, window=1)
    top = climb(ladder, generator, [True] * 30)
    assert generator.has_level(top)
    assert not generator.has_level(top + 1)


def test_without_an_accuracy_the_level_stays(generator):
    assert climb(Ladder("x", advance_at=None, window=1), generator, [True] * 5) == 0


def test_a_restored_ladder_climbs_on_from_where_it_stood(generator):
    ladder = Ladder("x", advance_at=1.0, window=2)
    climb(ladder, generator, [True, True, True])
    assert ladder.state_dict() == {"level": 1, "recent": [True]}
    restored = Ladder("x", advance_at=1.0, window=2)
    restored.load_state_dict(ladder.state_dict())
    assert climb(restored, generator, [True]) == 2


@pytest.mark.parametrize("advance_at", [0, -0.1, 1.1, "high", True])
def test_an_accuracy_outside_its_range_is_refused(advance_at):
    with pytest.raises(UserError, match=f"^x: curriculum.advance_at must be .*, got {advance_at!r}$"):
        Ladder("x", advance_at=advance_at, window=1)


@pytest.mark.parametrize("window", [0, 2.5, None])
def test_an_empty_window_is_refused(window):
    with pytest.raises(UserError, match=f"^x: curriculum.window must be .*, got {window!r}$"):
        Ladder("x", advance_at=0.5, window=window)
