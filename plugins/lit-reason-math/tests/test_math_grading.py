"""Verdicts on answers: by hand what people mean, and never another verdict than math-verify's."""

import random

import pytest
from lit_reason_math import grade, quick_grade
from lit_reason_math.exact import verdict
from math_verify import parse, verify

from lit_reason.reward import Judgement

SAME = [
    ("72", " 72 "),
    ("1000", "1,000"),
    ("1000", "1 000"),
    ("3", "3.0"),
    ("\\frac{1}{2}", "0.5"),
    ("\\frac{3}{4}", "\\dfrac68"),
    ("\\frac{1}{3}", "0.3333333"),
    ("50\\%", "\\frac{1}{2}"),
    ("50\\%", "50"),
    ("5", "5 \\text{ cm}"),
    ("90^\\circ", "90"),
    ("18", "\\$18"),
    ("2\\frac{1}{2}", "2.5"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"),
    ("\\frac{\\pi}{4}", "\\pi/4"),
    ("(1, 2)", "\\left(1,2\\right)"),
    ("(-\\infty, 3]", "(-\\infty,3]"),
    ("\\{1, 2\\}", "2, 1"),
    ("1 \\pm \\sqrt{2}", "1-\\sqrt2, 1+\\sqrt2"),
    ("(1,2), (3,4)", "\\{(3,4), (1,2)\\}"),
    ("x = 5", "5"),
    ("5", "x=5"),
    ("y = 2x + 1", "y - 1 = 2x"),
    ("x^2 + 3x + 2", "(x+1)(x+2)"),
    ("\\text{Evelyn}", "\\text{evelyn}"),
    ("no solution", "no solution"),
    ("x \\le 5", "5 \\ge x"),
    ("\\sin^2 x + \\cos^2 x", "1"),
    ("72", "The answer is 72."),
    ("72", "The answer is $72$."),
    ("42", "42 dollars"),
    ("\\frac{1}{2}", "$$\\frac12$$"),
    ("12", "so \\boxed{3}, and then \\boxed{12}"),
    ("5", "<answer> \\boxed{5} </answer>"),
]

OTHER = [
    ("72", "71"),
    ("\\frac{1}{2}", "0.51"),
    ("\\frac{1}{3}", "0.333"),
    ("50\\%", "0.05"),
    ("2\\sqrt{3}", "3\\sqrt{2}"),
    ("(1, 2)", "(2, 1)"),
    ("[1, 2]", "(1, 2)"),
    ("\\{1, 2\\}", "1, 2, 3"),
    ("x = 5", "y = 5"),
    ("x = 5", "x = 6"),
    ("x^2", "x^3"),
    ("x < 5", "x > 5"),
    ("\\text{even}", "\\text{odd}"),
    ("2abc", "2 abd"),
    ("2", "\\boxed{1}\\boxed{1}\\boxed{2}, no: \\boxed{1}"),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_the_same_however_it_is_written(gold: str, answer: str) -> None:
    assert grade(gold, answer) == Judgement(value=1.0)


@pytest.mark.parametrize(("gold", "answer"), OTHER)
def test_another_value_is_wrong(gold: str, answer: str) -> None:
    assert grade(gold, answer) == Judgement(value=0.0, status="wrong")


@pytest.mark.parametrize(
    ("gold", "answer", "value", "status"),
    [
        ("5", None, 0.0, "missing"),
        ("5", "  ", 0.0, "missing"),
        ("5", "\\boxed{}", 0.0, "missing"),
        ("5", "\\frac{", 0.0, "unparseable"),
        ("5", "9^{9^{9^9}}", 0.0, "too_big"),
        ("", "5", None, "unparseable_gold"),
        ("\\frac{", "5", None, "unparseable_gold"),
        ("\\frac{", "\\frac{", None, "unparseable_gold"),
        ("10^{10^{10}}", "5", None, "unparseable_gold"),
    ],
)
def test_what_cannot_be_judged_says_why(gold: str, answer: str | None, value: float | None, status: str) -> None:
    assert grade(gold, answer) == Judgement(value=value, status=status)


def test_boxes_do_not_combine() -> None:
    assert grade("1, 2", "\\boxed{1} and \\boxed{2}").value == 0.0
    assert grade("2", "\\boxed{1}" * 3000 + "\\boxed{2}").value == 1.0


ODD = ["6=5", "4=5", "6=x=5", "5 \\approx 6", "[5,5]", "{5}", "5%", "500%", "5\\%"]
NOT_THAT_ODD = ["5=6", "6 \\approx 5", "(5,5)", "5, 6", "5 \\neq 5", "5!", "\\pm 5"]


@pytest.mark.parametrize("answer", ODD + NOT_THAT_ODD)
def test_what_math_verify_takes_for_a_number_is_taken_for_it_here(answer: str) -> None:
    theirs = verify(parse("$5$", parsing_timeout=None), parse(f"${answer}$", parsing_timeout=None))
    assert grade("5", answer).value == float(theirs) == float(answer in ODD)


def test_decimals_are_rounded_and_variables_renamed_only_when_asked() -> None:
    assert grade("\\frac{1}{3}", "0.333", float_rounding=3).value == 1.0
    assert grade("f(x)", "f(y)").value == 0.0
    assert grade("f(x)", "f(y)", strict=False).value == 1.0


def test_most_answers_need_no_parser() -> None:
    left = [pair for pair in SAME + OTHER if quick_grade(*pair) is None]
    assert len(left) <= 12, left


def number(r: random.Random) -> str:
    p, q = r.randint(-9, 9), r.randint(2, 8)
    return r.choice(
        [
            str(p),
            f"{p / 10}",
            f"\\frac{{{p}}}{{{q}}}",
            f"{p}/{q}",
            f"{q}\\%",
            f"{q}.5\\%",
            f"{q}\\frac{{1}}{{{q}}}",
            "0",
        ]
    )


def expression(r: random.Random, depth: int) -> str:
    if not depth:
        return r.choice([str(r.randint(1, 5)), "x", "y", "\\pi", f"\\sqrt{{{r.choice([2, 3, 4, 8])}}}"])
    a, b = expression(r, depth - 1), expression(r, depth - 1)
    return r.choice([f"{a}+{b}", f"{a}-{b}", f"({a})({b})", f"\\frac{{{a}}}{{{b}}}", f"({a})^2", f"{a} \\cdot {b}", a])


def pair(r: random.Random) -> tuple[str, str]:
    """Two texts that are often but not always the same, of any of the kinds that the fast path understands."""
    kind = r.randrange(5)
    a, b = number(r), number(r)
    c, d = (a, b) if r.random() < 0.6 else (number(r), number(r))
    if kind == 0:
        return a, r.choice([a, b, c])
    if kind == 1:
        return f"{r.choice('([')}{a}, {b}{r.choice(')]')}", f"{r.choice('([')}{c},{d}{r.choice(')]')}"
    if kind == 2:
        return f"{a}, {b}", r.choice([f"\\{{{d}, {c}\\}}", f"{c}, {d}"])
    if kind == 3:
        return r.choice([f"x = {a}", a]), r.choice([f"x={c}", f"y={a}", c])
    text = expression(r, r.randint(1, 2))
    return text, r.choice([f"({text})", f"\\frac{{2({text})}}{{2}}", f"-(-({text}))", f"{text}+\\sqrt2-\\sqrt2", "x+1"])


def test_the_fast_path_is_never_of_another_opinion_than_math_verify() -> None:
    r = random.Random(4)
    asked = 0
    while asked < 250:
        gold, answer = pair(r)
        ours = verdict(gold, answer)
        if ours is None:
            continue
        asked += 1
        theirs = verify(parse(f"${gold}$"), parse(f"${answer}$"))
        assert ours is theirs, f"{gold} | {answer}"
