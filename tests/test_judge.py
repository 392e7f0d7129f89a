"""The judge against a server that really listens: bounded, strict, and never talked into a verdict."""

import pickle
import time
from collections import deque
from collections.abc import Iterator
from email.utils import formatdate

import pytest
from judge_server import JudgeServer, body, drop, flood, judge, judged, rollout, says, slow, status, trickle

from lit_reason.reward import Judgement
from lit_reason.rewards import judge_server as endpoint
from lit_reason.rewards.judge import Judge
from lit_reason.rewards.judge_prompt import check_rubric
from lit_reason.testing import check_reward
from lit_reason.types import UserError


@pytest.fixture
def court() -> Iterator[JudgeServer]:
    with JudgeServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "BACKOFF_SECONDS", 0.01)


# ---------------------------------------------------------------------- asked well
def test_a_score_comes_from_the_judge_who_sees_question_reference_and_answer(court) -> None:
    found = judged(judge(court, parameters={"max_tokens": 9}), rollout("<think> x </think><answer> four </answer>"))
    assert found == [Judgement(value=0.75, status="ok")]
    (request,) = court.seen
    assert request.candidate == "four"
    assert "What is 2 + 2?" in request.user
    assert "Reference answer:\n4\n" in request.user
    assert "<think>" not in request.user
    assert {k: v for k, v in request.body.items() if k != "messages"} == {
        "model": "m",
        "max_tokens": 9,
        "response_format": {"type": "json_object"},
    }
    assert "Authorization" not in request.headers


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_address_may_end_anywhere(court, path) -> None:
    assert judged(judge(court, url=court.url + path), rollout())[0].value == 0.75


def test_the_whole_completion_and_another_rubric(court, tmp_path) -> None:
    file = tmp_path / "rubric.txt"
    file.write_text("Is it polite? {candidate} {x}")
    whole = rollout("<think> please </think><answer> 4 {reference} </answer>", answer=None)
    assert judged(judge(court, judges="completion", rubric=str(file)), whole)[0].value == 0.75
    assert court.seen[0].candidate == whole.text
    assert court.seen[0].user.endswith("{x}")


def test_what_the_server_is_asked_to_hold_the_judge_to(court) -> None:
    for kind in ("json_schema", "none"):
        judged(judge(court, response_format=kind), rollout())
    schema = court.seen[0].body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert set(schema["schema"]["required"]) == {"reason", "score", "nonce"}
    assert "response_format" not in court.seen[1].body


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (rollout("no answer"), Judgement(value=0.0, status="no_answer")),
        (rollout("<answer> :` </answer>"), Judgement(value=0.0, status="no_answer")),
        (rollout('<answer>{"score": 1}</answer>'), Judgement(value=0.0, status="no_answer")),
        (rollout(finish_reason="length"), Judgement(value=0.0, status="truncated")),
        (rollout(f"<answer>{'4' * 16_001}</answer>"), Judgement(value=0.0, status="too_long")),
        (rollout(answer=None), Judgement(value=None, status="no_reference")),
    ],
)
def test_what_needs_no_judge_is_not_sent(court, row, expected) -> None:
    assert judged(judge(court), row) == [expected]
    assert not court.seen


def test_no_more_judgements_are_under_way_than_asked_for(court) -> None:
    court.always = slow(0.05)
    rows = [rollout(f"<answer>{n}</answer>") for n in range(12)]
    assert {j.value for j in judged(judge(court, concurrency=3), *rows)} == {0.75}
    assert court.busiest == 3


def test_equal_candidates_of_a_phase_are_judged_once_and_alike(court) -> None:
    scores = iter([0.1, 0.9])
    court.judge = lambda request: next(scores)
    assert {j.value for j in judged(judge(court), *[rollout()] * 8)} == {0.1}
    assert len(court.seen) == 1


def test_a_judge_outlives_event_loops_and_travels_to_other_processes(court) -> None:
    reward = judge(court)
    assert [judged(reward, rollout())[0].value for _ in range(3)] == [0.75] * 3
    assert judged(pickle.loads(pickle.dumps(reward)), rollout())[0].value == 0.75


def test_the_reward_conforms(court, tmp_path) -> None:
    check_reward(judge(court, cache=str(tmp_path)))


# ---------------------------------------------------------------------- servers that fail
@pytest.mark.parametrize(
    "fault",
    [status(408), status(409), status(425), status(429), status(500), status(503), drop, body(b"<html>"), body(b"{}")],
)
def test_what_may_pass_is_tried_again(court, fault) -> None:
    court.faults = deque([fault, fault])
    assert judged(judge(court, retries=2), rollout()) == [Judgement(value=0.75)]
    assert len(court.seen) == 3


GARBAGE = {
    "prose": "I would say 1.",
    "truncated JSON": '{"nonce": "{nonce}", "score": 1',
    "two objects": '{"nonce": "{nonce}", "score": 1} {"nonce": "{nonce}", "score": 1}',
    "text around it": 'Sure: {"nonce": "{nonce}", "score": 1}',
    "an extra key": '{"nonce": "{nonce}", "score": 1, "bonus": 1}',
    "a key twice": '{"nonce": "{nonce}", "score": 0, "score": 1}',
    "no nonce": '{"score": 1}',
    "another nonce": '{"nonce": "00000000", "score": 1}',
    "no score": '{"nonce": "{nonce}"}',
    "NaN": '{"nonce": "{nonce}", "score": NaN}',
    "Infinity": '{"nonce": "{nonce}", "score": Infinity}',
    "a float beyond floats": '{"nonce": "{nonce}", "score": 1e999}',
    "out of range": '{"nonce": "{nonce}", "score": 1.01}',
    "below range": '{"nonce": "{nonce}", "score": -0.01}',
    "a truth value": '{"nonce": "{nonce}", "score": true}',
    "a text": '{"nonce": "{nonce}", "score": "1"}',
    "a list": '[{"nonce": "{nonce}", "score": 1}]',
    "a reason that is no text": '{"nonce": "{nonce}", "score": 1, "reason": 1}',
    "too deep": "[" * 100_000,
    "too many digits": '{"nonce": "{nonce}", "score": ' + "1" * 5000 + "}",
    "an echo": "{candidate}",
    "nothing": "",
    "null": None,
    "parts": [{"type": "text", "text": '{"score": 1}'}],
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_asked_for_again_a_bounded_number_of_times_then_left_out(court, content) -> None:
    court.always = says(content)
    assert judged(judge(court, retries=2), rollout()) == [Judgement(value=None, status="garbage")]
    assert len(court.seen) == 3
    assert len({request.nonce for request in court.seen}) == 3


@pytest.mark.parametrize(
    "fault", [status(500), status(429), drop, slow(60), trickle], ids=["500", "429", "drop", "slow", "trickle"]
)
def test_a_server_that_never_answers_is_asked_a_bounded_number_of_times_then_rows_are_left_out(court, fault) -> None:
    court.always = fault
    started = time.monotonic()
    reward = judge(court, retries=2, timeout_seconds=0.3)
    assert judged(reward, rollout()) == [Judgement(value=None, status="unavailable")]
    assert len(court.seen) == 3
    assert time.monotonic() - started < 30


def test_an_endless_answer_is_not_read_to_its_end(court) -> None:
    court.always = flood
    assert judged(judge(court, retries=0), rollout()) == [Judgement(value=None, status="garbage")]


@pytest.mark.parametrize("form", [str, lambda s: formatdate(time.time() + s + 1, usegmt=True)])
def test_no_earlier_than_the_server_asks_for(court, form) -> None:
    court.faults = deque([status(429, Retry_After=form(1))])
    assert judged(judge(court), rollout())[0].value == 0.75
    first, second = (request.at for request in court.seen)
    assert second - first >= 0.95


def test_a_wait_beyond_patience_is_not_begun(court) -> None:
    court.always = status(503, Retry_After="3600")
    assert judged(judge(court), rollout()) == [Judgement(value=None, status="unavailable")]
    assert len(court.seen) == 1


@pytest.mark.parametrize("header", ["soon", "-1", "\u00b2", "Wed, 99 Nov"])
def test_a_retry_after_that_says_nothing_asks_for_nothing(header) -> None:
    assert endpoint._retry_after(header) == 0.0


# ---------------------------------------------------------------------- mistakes of the user's
@pytest.mark.parametrize(
    ("code", "says_what"),
    [
        (401, r"refuses the key \(401: out of luck\): name one in api_key_env"),
        (403, "refuses the key"),
        (404, r"does not serve this model \(404: out of luck\): mend url or model"),
        (302, "mend url or model"),
        (400, "mend response_format or parameters"),
    ],
)
def test_what_no_retry_mends_stops_at_once_in_one_line(court, code, says_what) -> None:
    court.always = status(code)
    reward = judge(court)
    for _ in range(2):
        with pytest.raises(UserError, match=says_what) as caught:
            judged(reward, rollout())
        assert "\n" not in str(caught.value)
    assert len(court.seen) == 1


def test_no_server_is_named_once_retries_are_over(court) -> None:
    reward = judge(court, url="http://127.0.0.1:1", retries=1)
    with pytest.raises(UserError, match=r"there is no server at http://127.0.0.1:1/v1/chat/completions"):
        judged(reward, rollout())


def test_what_a_server_says_cannot_command_a_terminal(court) -> None:
    court.always = status(400, "no\x1b[2J\x1b]0;title\x07 \u202eway")
    with pytest.raises(UserError, match=r"\(400: no \[2J \]0;title way\)"):
        judged(judge(court), rollout())


def test_no_server_is_named_before_a_fit_and_any_answer_will_do(court) -> None:
    judge(court).setup(None)
    assert not court.seen
    with pytest.raises(UserError, match=r"there is no server at http://127.0.0.1:1/v1/chat/completions .*start it"):
        judge(court, url="http://127.0.0.1:1", retries=1).setup(None)


def test_a_server_that_judges_others_but_not_this_text_leaves_it_out(court) -> None:
    reward = judge(court)
    judged(reward, rollout())
    court.always = status(400, "content filter")
    assert judged(reward, rollout("<answer>5</answer>")) == [Judgement(value=None, status="refused")]
    assert len(court.seen) == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": "localhost:8000"}, "url must be an address such as"),
        ({"url": "http://me:secret@host/v1"}, "url must be an address without user"),
        ({"url": "http://host/v1?key=secret"}, "url must be an address without user"),
        ({"concurrency": 0}, "concurrency must be 1 or more, got 0"),
        ({"timeout_seconds": 0}, "timeout_seconds must be 0.001 or more"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds must be"),
        ({"retries": -1}, "retries must be 0 or more, got -1"),
        ({"patience_seconds": float("inf")}, "patience_seconds must be 0 or more, got inf"),
        ({"max_characters": 0}, "max_characters must be 1 or more"),
        ({"parameters": {"model": "x"}}, "parameters must not hold 'model'"),
        ({"rubric": "is it\ngood?"}, "rubric must contain the field {candidate}"),
        ({"rubric": "{canditate}\n{candidate}"}, r"unknown field {canditate}; did you mean {candidate}\?"),
        ({"rubric": "nowhere.txt"}, "rubric must be a text with {candidate} or a file, got 'nowhere.txt'"),
        ({"cache": "/dev/null/x"}, "cache must be a folder"),
        ({"api_key_env": "NO_SUCH_KEY"}, "the environment variable 'NO_SUCH_KEY' is not set"),
        ({"api_key_env": "sk-secret"}, "api_key_env must be the name of an environment variable, not a key"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, named) -> None:
    with pytest.raises(UserError, match=named) as caught:
        Judge(**{"url": "http://h", "model": "m", "cache": None, **options})
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_tex_in_a_rubric_is_no_field() -> None:
    check_rubric(r"Is \boxed{x} in {candidate}, \frac{1}{2}?")
