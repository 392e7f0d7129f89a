"""What is too big is told from the text, and ordinary answers never are."""

import pytest
from lit_reason_math.guards import too_big


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^9}}",
        "9^9^9^9",
        "9**9**9",
        "2^{99999}",
        "2^{3^{99}}",
        "2^{9!}",
        "99999!",
        "((9!)!)!",
        "(10^9)!",
        "9!!!",
        "\\binom{10^9}{5}",
        "\\binom{100000}{50000}",
        "(10^6)_{5}",
        "\\sum_{k=1}^{10000000} k^{-1}",
        "\\prod_{k=1}^{99999999} k",
        "\\int \\int \\int \\int x dx",
        "(" * 30 + "1" + ")" * 30,
        "\\frac1" * 60,
        "7" * 500,
        "1e99999",
        "(2^{9999})^{9999}",
        "(a+b)^{9}(a+c)^{9}(a+d)^{9}(b+c)^{9}(b+d)^{9}",
        "\\begin{pmatrix}" + "1&2&3\\\\" * 40 + "\\end{pmatrix}",
        "x" * 2001,
    ],
)
def test_hostile_sizes_are_found(text: str) -> None:
    assert too_big(text)


@pytest.mark.parametrize(
    "text",
    [
        "2^{2019} - 1",
        "10^{100}",
        "2^{2^{10}}",
        "e^{x^2}",
        "2^{2^n}",
        "100!",
        "\\frac{(2n)!}{n!(n+1)!}",
        "5!!",
        "\\binom{2n}{n}\\frac{1}{4^n}",
        "\\binom{20}{10}",
        "\\sum_{k=1}^{2019} k",
        "\\int_0^1 x^2 \\, dx",
        "(x-1)^2(x+1)^{10}",
        "1,2,3,4,5,6,7,8,9,10",
        "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
        "\\left(\\frac{1}{2}\\right)^{n-1}",
        "\\sqrt{2+\\sqrt{2+\\sqrt{2}}}",
    ],
)
def test_answers_of_data_sets_are_not(text: str) -> None:
    assert not too_big(text)
