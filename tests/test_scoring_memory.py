"""Judgements that are shared: by equal keys, and what is known at once."""

import warnings

import pytest
from scoring_rewards import Quick, Remembered
from scoring_tools import group, values

from lit_reason import Rollout
from lit_reason.reward import Reward
from lit_reason.types import UserError


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


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_known_at_once_is_not_judged(scorer, tmp_path, workers) -> None:
    pool = scorer(Quick(tmp_path / "log", 5.0), workers=workers)
    assert values(pool, group("a", "bb", "c")) == [0.5, 2.0, 0.5]
    assert (tmp_path / "log").read_text() == "bb\n"
    assert pool.take()["r0"].statuses == {"short": 2, "measured": 1}
