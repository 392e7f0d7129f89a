"""From completions to outcomes."""

import pytest
from lit_reason_code.compare import same_output, same_result
from lit_reason_code.extract import extract_program
from lit_reason_code.judging import Limits, Outcome, Suite, UnsupportedTestError, judge
from lit_reason_code.sandbox.pool import Sandbox
from lit_reason_code.sandbox.wire import encode


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("<answer> print(1) </answer>", "print(1)"),
        ("<answer>\n```python\nprint(1)\n```\n</answer>", "print(1)"),
        ("```python\nprint(1)\n```\n<answer>```py\n    x\n```\nor\n```python3\ny\n```\nend</answer>", "y"),
        ("<answer>\n```\nplain\n```\n```json\n{}\n```\n</answer>", "plain"),
        ("<answer>\n```python\nopen\n</answer>", "```python\nopen"),
        ("so\n```python\n  a = 1\n\n  b = 2\n```\nand \\boxed{7}", "  a = 1\n\n  b = 2"),
        ("\\boxed{print(1)}", "print(1)"),
        ("print(1)", None),
        ("", None),
        ("```python\nprint(1)", None),
    ],
)
def test_the_program_of_a_completion(completion: str, program: str | None) -> None:
    assert extract_program(completion) == program


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1 2", "1 2   \n\n\n", True),
        ("1\n2", "1", False),
        ("1", "1\n2", False),
        ("", "\n", True),
        ("a  b", "a b", True),
        ("a b", "ab", False),
        ("0.333333", "0.33333349", True),
        ("0.333333", "0.3334", False),
        ("2.0", "2", True),
        ("2", "2.0", False),
        ("1000000007", "1000000008", False),
        ("0.5", "nan", False),
        ("0.5", "x", False),
        ("1\n\n2", "1\n2", False),
    ],
)
def test_outputs_agree_line_by_line_to_the_last(expected: str, given: str, same: bool) -> None:
    assert same_output(expected, given) is same


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        ([1, [2, 3]], (1, (2, 3)), True),
        ([1, 2], [1, 2, 3], False),
        ([1, 2], {1, 2}, False),
        ({"1": [2]}, {1: (2,)}, True),
        ({"1": 2}, {"1": 2, "3": 4}, False),
        ({"a": 1}, {"b": 1}, False),
        (0.3, 0.1 + 0.2, True),
        (0.3, "0.3", False),
        (3, 3.0, True),
        (10**40, 10**40, True),
        (10**40, 10**40 + 1, False),
        (0.5, 10**400, False),
        (None, None, True),
        (None, 0, False),
        ("1", 1, False),
        ([5], 5, True),
        ([5], [5], True),
        ([5], [6], False),
        ([], [], True),
        (1, float("nan"), False),
        (1, object(), False),
    ],
)
def test_results_agree_with_what_json_can_say(expected: object, given: object, same: bool) -> None:
    assert same_result(expected, encode(given)) is same


@pytest.mark.parametrize(
    "tree", [{}, {"dict": 3}, {"dict": [[1]]}, {"tuple": "ab"}, {"int": 7}, {"dict": [[[1], 2]]}, []]
)
def test_trees_that_nobody_should_send_are_unequal(tree: object) -> None:
    for expected in (1, "ab", ["a", "b"], {"a": 1}, None, 0.5):
        assert same_result(expected, tree) is False


ADD = Suite(entry_point="f", inputs=[[1, 2], [3, 4], [5, 6]], outputs=[3, 7, 11])
ECHO = Suite(inputs=["1\n", "2\n", "3\n"], outputs=["1", "2", "3"])
CHECK = Suite(
    setup='import random\n\ndef given(x):\n    return x + 1\n\ndef f(x):\n    """Twice given."""\n',
    tests=(
        "METADATA = {}\n\ndef check(candidate):\n    assert True, 'prints'\n    rng = random.Random(1)\n"
        "    for _ in range(20):\n        x = rng.randint(0, 99)\n        assert candidate(x) == 2 * given(x)\n"
        "    assert candidate(x=0) == 2\n    try:\n        candidate('no')\n"
        "        assert False\n    except TypeError:\n        pass\n"
    ),
    entry_point="f",
)
MBPP = Suite(tests="assert f(1) == {1}\nassert set(g(2)) == {1, 2}\nassert abs(h(3) - 1.5) < 1e-9 and h(2) is not None")

HIDDEN = "getattr(len.__self__, 'ev' + 'al')"
SWALLOWED = f"try:\n    {HIDDEN}(f(1))\nexcept BaseException:\n    pass\nassert f(1) == '1'"
LIBRARY = (
    "import ast, email.utils, collections, dataclasses\nPoint = collections.namedtuple('Point', 'x')\n"
    "@dataclasses.dataclass\nclass Box:\n    x: int\nassert ast.literal_eval(f(1)) == [Box(1).x] == [Point(1).x]"
)
RAISED_LATE = (
    "try:\n    f(0)\nexcept Exception as error:\n    first = error\n"
    "try:\n    f(1)\nexcept Exception:\n    pass\nif first:\n    raise first\nassert f(1) == 1"
)


@pytest.mark.parametrize(
    ("tests", "program", "outcome"),
    [
        (ADD, "def f(a, b): return a + b", (3, 3, "ok")),
        (ADD, "class Solution:\n def f(self, a, b): return a + b", (3, 3, "ok")),
        (ADD, "def f(a, b): return 3", (1, 3, "wrong")),
        (ADD, "def f(a, b): return a + b if a < 5 else 1 / 0", (2, 3, "error")),
        (ADD, "def f(a, b): return a + b if a < 5 else bytearray(2**40)", (2, 3, "memory")),
        (ADD, "def f(a, b):\n while a == 5: pass\n return a + b", (2, 3, "timeout")),
        (ADD, "def f(a, b) return", (0, 3, "syntax_error")),
        (ADD, "\0", (0, 3, "syntax_error")),
        (ADD, "(" * 10**5, (0, 3, "syntax_error")),
        (ECHO, "print(input())", (3, 3, "ok")),
        (ECHO, "print(min(int(input()), 2))", (2, 3, "wrong")),
        (ECHO, "while True: pass", (0, 3, "timeout")),
        (ECHO, "while True: print('1' * 10**5)", (0, 3, "output_limit")),
        (ECHO, "x = bytearray(2**40)", (0, 3, "memory")),
        (CHECK, "def f(x): return 2 * given(x)", (2, 2, "ok")),
        (CHECK, "    return 2 * given(x)", (2, 2, "ok")),
        (CHECK, "def f(x): return 2 * given(x) if x else 0", (1, 2, "wrong")),
        (CHECK, "def f(x): return 2 * given(x) if x != 'no' else 0", (1, 2, "error")),
        (MBPP, "def f(x): return {x}\ndef g(x): return [1, 2, 1]\ndef h(x): return x / 2", (3, 3, "ok")),
        (MBPP, "def f(x): return {x}\ndef g(x): return [1, 2, 1]", (2, 3, "wrong")),
        (Suite(tests="assert f(len) == 1"), "def f(x): return 1", (0, 0, "unsupported_test")),
        (Suite(tests="import numpy\nassert f(1) == 1"), "def f(x): return 1", (0, 0, "unsupported_test")),
        (Suite(tests="assert f(1) =="), "def f(x): return 1", (0, 0, "unsupported_test")),
        (Suite(tests="f(1)"), "def f(x): return 1", (0, 0, "unsupported_test")),
        (Suite(tests="assert f(f(1)) == 1"), "def f(x): return len", (0, 1, "wrong")),
        (Suite(tests="def test_it():\n    assert f(1) == 1"), "def f(x): return 1", (0, 0, "unsupported_test")),
        (Suite(tests="assert eval(f(1)) == 1"), "def f(x): return '__mark__(0, 1)'", (0, 0, "unsupported_test")),
        (Suite(tests=f"assert {HIDDEN}(f(1)) == 1"), "def f(x): return '__mark__(0, 1) or 1'", (0, 1, "error")),
        (Suite(tests=SWALLOWED), "def f(x): return '1'", (0, 1, "error")),
        (Suite(tests=LIBRARY), "def f(x): return '[1]'", (1, 1, "ok")),
        (Suite(tests=RAISED_LATE), "def f(x): raise [NameError, ValueError][x]", (0, 1, "error")),
        (Suite(tests="assert not hasattr(f(1), 'kind')"), "def f(x): return len", (1, 1, "ok")),
    ],
)
def test_outcomes(sandbox: Sandbox, tests: Suite, program: str, outcome: tuple[int, int, str]) -> None:
    passed, total, status = outcome
    seconds = 0.3 if status == "timeout" else 20.0  # a busy machine must not change the outcome
    found = judge(program, tests, sandbox, Limits(seconds=seconds, memory_mb=256))
    assert found == Outcome(passed=passed, total=total, status=status)


def test_judging_stops_at_the_first_failure_when_the_rest_does_not_matter(sandbox: Sandbox) -> None:
    assert judge("print(int(input()) % 2)", ECHO, sandbox, Limits()).passed == 1
    assert judge("print(int(input()) % 2 * 3)", ECHO, sandbox, Limits()).passed == 1
    assert judge("print(int(input()) % 2 * 3)", ECHO, sandbox, Limits(), thorough=False).passed == 0


def test_tests_come_from_metadata() -> None:
    assert Suite.of({"difficulty": 3}) is None
    limited = Suite.of({"tests": ["assert f(1)", "assert f(2)"], "setup": "import math"}, limit=1, entry_point="f")
    assert limited == Suite(tests="assert f(1)", setup="import math", entry_point="f")
    assert Suite.of({"inputs": ["1", "2"], "outputs": ["1", "2"]}, limit=1) == Suite(inputs=["1"], outputs=["1"])
    for wrong in (
        {"inputs": ["1"], "outputs": []},
        {"inputs": "1", "outputs": "1"},
        {"inputs": [1], "outputs": [1], "entry_point": "f"},
        {"inputs": [[1]], "outputs": [1], "entry_point": "class"},
        {"tests": "assert f(1)", "entry_point": "__import__('os')"},
        {"tests": 3},
        {"tests": "assert f(1)", "setup": ["import math"]},
    ):
        with pytest.raises(UnsupportedTestError):
            Suite.of(wrong)
