"""Items: deadlines, memory, and what goes wrong."""

import warnings

import pytest
from scoring_rewards import AsyncTimed, Endless, Timed
from scoring_tools import group, named, values

from lit_reason import Rollout
from lit_reason.reward import Judgement, Reward
from lit_reason.types import Stopped, UserError

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


@pytest.mark.parametrize("status", ["two words", "seconds", "x" * 33, 5])
def test_a_status_is_a_short_word(status) -> None:
    with pytest.raises(ValueError, match="status"):
        Judgement(value=1.0, status=status)


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


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Stopped])
def test_a_signal_to_the_run_is_not_a_rewards_doing(scorer, signal) -> None:
    class Interrupted(Reward):
        def score(self, rollout: Rollout) -> float:
            raise signal

    with pytest.raises(signal):
        scorer(Interrupted(), failures="exclude").collect(group("a"))
