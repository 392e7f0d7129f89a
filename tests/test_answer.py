import time

import pytest

from lit_reason.answer import extract_answer, graded_format, strict_format

MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think> 1 + 1 </think> <answer> 2 </answer>", "2"),
        ("<answer>1</answer> no, <answer>\n2\n</answer> sure", "2"),
        ("<answer>1</answer> and then </answer>", "1"),
        ("<answer>1</answer> or <answer>2", "1"),
        ("<answer>a <answer>b</answer>", "b"),
        ("<answer></answer>", ""),
        ("<answer>tagged</answer> then \\boxed{boxed}", "tagged"),
        ("</answer> 7 <answer>", None),
        ("<answer>cut off", None),
        ("", None),
        ("no answer at all", None),
    ],
)
def test_the_last_complete_answer_block_wins(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} but \boxed{ 2 }", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {3}", "3"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{5} then \boxed{6", "5"),
        (r"\boxed{7 and \boxed{8}", "8"),
        (r"} } \boxed{9} {", "9"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\{}", r"\{"),
        (r"\boxed{line \\{x} end}", r"line \\{x} end"),
        (r"\boxed{never closed", None),
        (r"\boxed without braces", None),
        (r"\boxed{cut <answer>10", None),
    ],
)
def test_the_last_balanced_box_stands_in_for_missing_tags(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "<think> a </think> <answer> b </answer>",
        "\n <think>a</think>\n\n<answer>b</answer> \n",
        "<think> </think> <answer> b </answer>",
        "<think></think><answer></answer>",
    ],
)
def test_strict_format_accepts_one_think_block_then_one_answer_block(text):
    assert strict_format(text)
    assert graded_format(text) == 1.0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("<answer> b </answer>", 0.5),
        ("<think> a <answer> b </answer>", 0.75),
        ("<think> a </think> <answer> b", 0.75),
        ("<think> a </think> so <answer> b </answer>", 1.0),
        ("well <think> a </think> <answer> b </answer>", 1.0),
        ("<think> a </think> <answer> b </answer> done", 1.0),
        ("<answer> b </answer> <think> a </think>", 1.0),
        ("<think> a <answer> b </think> </answer>", 1.0),
        ("</think> a <think> <answer> b </answer>", 1.0),
        ("<think> a </think> <think> b </think> <answer> c </answer>", 0.5),
        ("<think> a </think> <answer> b </answer> <answer> c </answer>", 0.5),
    ],
)
def test_what_strict_format_refuses_still_earns_its_share_of_the_tags(text, share):
    assert not strict_format(text)
    assert graded_format(text) == share


@pytest.mark.parametrize(
    "piece",
    [
        "<answer>",
        "</answer>",
        "<answer></answer",
        "<think></think>",
        "\\boxed{",
        "\\boxed{{",
        "\\boxed",
        "\\boxed ",
        "{",
        "}",
        "\\",
        "{}",
        " ",
        "<",
    ],
)
def test_a_hostile_megabyte_takes_linear_time(piece):
    text = "\\boxed" + piece * (MEGABYTE // len(piece))
    started = time.process_time()
    extract_answer(text)
    strict_format(text)
    strict_format(f"<think>{text}</think> {text} <answer>{text}</answer>")
    graded_format(text)
    assert time.process_time() - started < 5.0  # a quadratic scan would take hours
