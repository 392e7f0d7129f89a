import os
import pickle
import time

import pytest

from lit_reason.tasks.judging import LONGEST_ANSWER, Referee, admissible
from lit_reason.tasks.reasoning_gym import ReasoningGym

EVALUATING = ["binary_matrix", "n_queens", "spiral_matrix", "string_insertion"]
PARSING = ["countdown", "puzzle24", "intermediate_integration", "polynomial_multiplication", "simple_integration"]


@pytest.mark.parametrize("name", EVALUATING + PARSING)
@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').mkdir('{}')",
        "[__import__('os').mkdir('{}')]",
        "(lambda: __import__('os').mkdir('{}'))()",
        "exec('import os; os.mkdir(chr(46))') or __import__('os').mkdir('{}')",
    ],
)
def test_an_answer_is_never_run_as_code(name, code, tmp_path):
    problem = ReasoningGym(datasets={name: None}).problems("train")[0]
    assert problem.score(code.format(tmp_path / "made")) < 0.1
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", EVALUATING)
def test_gold_answers_and_their_lists_still_count(name):
    problem = ReasoningGym(datasets={name: None}).problems("train")[0]
    assert problem.score(problem.answer) == 1.0
    rows = [line.split() or list(line) for line in problem.answer.splitlines()]
    as_list = rows if name in ("binary_matrix", "n_queens") else list("".join(problem.answer.split()))
    assert problem.score(repr(as_list)) in (0.1, 0.5)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("countdown", "9**9**9**9"),
        ("countdown", "99999999!"),
        ("puzzle24", "9**9**9**9"),
        ("coin_flip", "1e999999999"),
        ("rubiks_cube", "R99999999999"),
        ("spiral_matrix", "[1] * 99999999999"),
        (
            "string_insertion",
            "[0 for a in 'aaaaaaaaaaaaaaaaaaaa' for b in 'aaaaaaaaaaaaaaaaaaaaaaaa' for c in 'aaaaaaaaaaaaaaa']",
        ),
        ("n_queens", "[" * 9000),
        ("polynomial_multiplication", "x.__class__"),
        ("simple_integration", "S('x')"),
        ("number_sorting", "['NaN', 'NaN']"),
        ("complex_arithmetic", "nan + nani"),
        ("game_of_life_halting", "perhaps"),
        ("chain_sum", "7" * (LONGEST_ANSWER + 1)),
    ],
)
def test_what_a_scorer_cannot_be_shown_is_wrong_at_once(name, answer):
    problem = ReasoningGym(datasets={name: None}).problems("train")[0]
    started = time.monotonic()
    assert problem.score(answer) == 0.0
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("countdown", "(94*4 - 61) / 5"),
        ("coin_flip", "5/16"),
        ("coin_flip", "3.125e-1"),
        ("intermediate_integration", "-4*(-2*x - 8)**(3/2)/3 + exp(x)*asin(x) + C"),
        ("rubiks_cube", "F R U' R' B F' L2"),
        ("spiral_matrix", "[1, -2, 3]"),
        ("chain_sum", "anything at all"),
    ],
)
def test_what_a_scorer_understands_reaches_it(name, answer):
    assert admissible(name, answer)


def problem_of(name):
    problem = ReasoningGym(datasets={name: None}).problems("train")[1]
    return problem.answer, problem.metadata["entry"]


def test_the_referee_knows_an_equivalent_formula_from_a_wrong_one():
    referee = Referee()
    gold, entry = problem_of("simple_integration")
    assert referee.score("simple_integration", gold, entry) == 1.0
    assert referee.score("simple_integration", f"1 + {gold}", entry) == 1.0  # a constant more is an integral too
    assert referee.score("simple_integration", f"x + {gold}", entry) == 0.0
    assert referee.score("simple_integration", "x +", entry) == 0.0
    referee.close()


def test_the_referee_gives_up_at_its_deadline_and_judges_on():
    referee = Referee(deadline=1.0)
    gold, entry = problem_of("polynomial_multiplication")
    assert referee.score("polynomial_multiplication", gold, entry) == 1.0
    started = time.monotonic()
    assert referee.score("polynomial_multiplication", "9**9**9**9", entry) == 0.0
    assert time.monotonic() - started < 3.0
    assert referee.score("polynomial_multiplication", gold, entry) == 1.0
    referee.close()


def test_the_referee_survives_the_end_of_its_child():
    referee = Referee()
    gold, entry = problem_of("simple_integration")
    referee.score("simple_integration", gold, entry)
    referee._child.kill()
    referee._child.wait()
    assert referee.score("simple_integration", gold, entry) == 1.0
    referee.close()


def test_the_referee_leaves_no_process_behind():
    referee = Referee()
    gold, entry = problem_of("simple_integration")
    referee.score("simple_integration", gold, entry)
    child = referee._child.pid
    copy = pickle.loads(pickle.dumps(referee))
    assert copy._child is None
    del referee
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
