"""Rewards of how a completion is written, against cases counted by hand."""

import time

import pytest
import torch

from lit_reason.rewards.format import Format
from lit_reason.rewards.language_consistency import LanguageConsistency
from lit_reason.rewards.reasoning_steps import ReasoningSteps
from lit_reason.rewards.reflection import Reflection
from lit_reason.rewards.repetition import Repetition
from lit_reason.rewards.tag_count import TagCount
from lit_reason.testing import check_reward
from lit_reason.types import Problem, Rollout, UserError


def rollout(text="", *, tokens=(), question="What is two and two?", think=None) -> Rollout:
    return Rollout(
        problem=Problem(prompt=[{"role": "user", "content": question}], answer="4", think=think),
        prompt_ids=torch.tensor([1]),
        completion_ids=torch.tensor(tokens, dtype=torch.int64),
        text=text,
    )


# --- format and tag_count

FORM = "<think> a </think> <answer> 4 </answer>"


@pytest.mark.parametrize(
    ("text", "strict", "graded"),
    [
        (FORM, 1.0, 1.0),
        ("\n<think>\na\n</think>\n\n<answer>\n4\n</answer>\n", 1.0, 1.0),
        ("<think></think><answer></answer>", 1.0, 1.0),
        (f"Sure! {FORM}", 0.0, 1.0),
        (f"{FORM} as I said", 0.0, 1.0),
        ("<think> a </think> so <answer> 4 </answer>", 0.0, 1.0),
        ("<answer> 4 </answer> <think> a </think>", 0.0, 1.0),
        ("<think> a <answer> 4 </answer> </think>", 0.0, 1.0),
        (f"<think> b {FORM}", 0.0, 0.75),
        (f"{FORM} {FORM}", 0.0, 0.0),
        ("<think> a </think> <answer> 4", 0.0, 0.75),  # cut off
        ("<THINK> a </THINK>", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_format_wants_each_tag_once_and_in_order_and_nothing_else_or_counts_tags(text, strict, graded):
    assert Format().score(rollout(text)) == strict
    assert Format(strict=False).score(rollout(text)) == graded
    assert TagCount().score(rollout(text)) == graded


def test_tag_count_counts_what_is_written_in_no_think_mode_too():
    bare = rollout("<answer> 4 </answer>", think=False)
    assert (Format(strict=False).score(bare), TagCount().score(bare)) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>\na\n</think>\n<answer>\n4\n</answer>", 1.0),
        ("<think> a\n</think>\n<answer>\n4</answer>", 0.5),
        (FORM, 0.0),
        ("<think>\na\n</think>\n<answer>\n4\n</answer> and </answer>", 1.0),
    ],
)
def test_tag_count_can_ask_for_tags_at_line_breaks(text, score):
    assert TagCount(own_lines=True).score(rollout(text)) == score


# --- reasoning_steps


@pytest.mark.parametrize(
    ("text", "markers"),
    [
        ("", 0),
        ("Step 1: add. Step 2: done", 2),
        ("**Step 10:** ### Step 3:", 2),
        ("step 1: Step: Step x: Step 1", 0),
        ("1. add\n2) carry\n  3. done\n3.5 is no step\n4.", 4),
        ("- add\n* carry\n\t• done\n-5 is less\n---\n*bold*", 3),
        ("First, add. Second, carry. Next, look. Finally, stop.", 4),
        ("first, First and then. NextFirst,", 0),
        ("so 2. and - here", 0),
    ],
)
def test_reasoning_steps_counts_markers(text, markers):
    assert ReasoningSteps(enough=100).score(rollout(text)) == pytest.approx(markers / 100)


def test_three_markers_are_enough_by_default():
    scores = [ReasoningSteps().score(rollout("\n".join("- x" for _ in range(n)))) for n in (0, 1, 2, 3, 9)]
    assert scores == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("text", ["Step " + "1" * 300_000, "1" * 300_000, " " * 300_000 + "x", "Step 1" * 50_000])
def test_markers_that_never_come_to_an_end_take_linear_time(text):
    start = time.perf_counter()
    assert ReasoningSteps().score(rollout(text)) == 0.0
    assert time.perf_counter() - start < 5  # quadratic would take hours


# --- repetition


@pytest.mark.parametrize(
    ("tokens", "n", "penalty"),
    [
        ([1, 2, 1, 2, 1], 1, -0.6),  # 2 of 5 differ
        ([1, 2, 1, 2, 1], 2, -0.5),  # 12 21 12 21
        ([1, 2, 1, 2, 1], 3, -1 / 3),  # 121 212 121
        ([1, 2, 1, 2, 1], 5, 0.0),
        ([1, 2, 1, 2, 1], 6, 0.0),  # shorter than an n-gram
        ([1, 2, 3, 4], 1, 0.0),
        ([7] * 100, 1, -0.99),
        ([7] * 100, 20, -80 / 81),
        ([], 1, 0.0),
        ([12, 3, 1, 23], 2, 0.0),  # tokens, not their digits
    ],
)
def test_repetition_is_the_share_of_n_grams_that_came_before(tokens, n, penalty):
    assert Repetition(n=n).score(rollout(tokens=tokens)) == pytest.approx(penalty)
    assert Repetition(n=n, penalty=0.05).score(rollout(tokens=tokens)) == pytest.approx(0.05 * penalty)


def test_repetition_looks_at_tokens_and_not_at_the_text():
    assert Repetition(n=1).score(rollout("so so so", tokens=[1, 2, 3])) == 0.0


# --- language_consistency


@pytest.mark.parametrize(
    ("question", "text", "share"),
    [
        ("What is two and two?", "It is four, 2 + 2 = 4.", 1.0),
        ("What is two and two?", "two два", 0.5),
        (
            "What is two and two?",
            "c'est quatre, ¿verdad? Größe, \uff41\uff42, \U0001d465, \ufb01n",
            1.0,
        ),  # all of it Latin
        ("What is two and two?", "so 答案 是", 0.4),
        ("What is two and two?", "<think> </think> 4", 1.0),  # no letters at all
        ("What is two and two?", "", 1.0),
        ("Сколько будет два и два?", "<think> два </think> <answer> \\boxed{4} </answer> \\frac", 1.0),
        ("Сколько будет два и два?", "два two x", 3 / 7),
        ("二加二是多少?", "答案是 four", 3 / 7),
        ("二加二是多少?", "答案は四", 0.75),  # kana are not Chinese
        ("二足す二はいくつ?", "答えは四、テスト", 1.0),
        ("2 더하기 2는?", "답은 四", 1.0),
        ("2 더하기 2는?", "답は四", 2 / 3),
        ("ما هو مجموع اثنين واثنين؟", "أربعة four", 5 / 9),
        ("दो और दो कितने होते हैं?", "चार", 1.0),
    ],
)
def test_language_consistency_is_the_share_of_letters_in_the_script_of_the_prompt(question, text, share):
    assert LanguageConsistency().score(rollout(text, question=question)) == pytest.approx(share)


def test_language_consistency_of_a_chosen_language_ignores_the_prompt():
    assert LanguageConsistency(language="ru").score(rollout("два two")) == 0.5
    assert LanguageConsistency(language="en").score(rollout("four", question="2 + 2 = ?")) == 1.0
    assert LanguageConsistency(language="ja").score(rollout("答えはテスト")) == 1.0


def test_language_consistency_does_not_apply_to_a_prompt_without_letters():
    assert LanguageConsistency().score(rollout("four", question="2 + 2 = ?")) is None


# --- reflection


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("Wait, let me check. WAIT!", 3),
        ("he awaits the waiter", 0),
        ("double-check, double check and re-evaluate", 3),
        ("let me check again", 1),  # overlapping phrases are one self-check
        ("however, it is 4", 0),
    ],
)
def test_reflection_counts_whole_phrases(text, count):
    assert Reflection().score(rollout(text)) == count


def test_reflection_counts_phrases_of_ones_own_as_they_are_written():
    assert Reflection(phrases=["a.b", "moment mal"]).score(rollout("a.b axb Moment mal")) == 2


# --- all of them


@pytest.mark.parametrize(
    "reward",
    [
        Format(),
        Format(strict=False),
        TagCount(),
        TagCount(own_lines=True),
        ReasoningSteps(),
        Repetition(),
        Repetition(n=1),
        LanguageConsistency(),
        LanguageConsistency(language="zh"),
        Reflection(),
    ],
    ids=lambda reward: type(reward).__name__,
)
def test_text_rewards_conform(reward):
    check_reward(reward)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (ReasoningSteps, {"enough": 0}, "'reasoning_steps': enough must be 1 marker or more, got 0"),
        (Repetition, {"n": 0}, "'repetition': n must be 1 token or more, got 0"),
        (Repetition, {"penalty": -1.0}, "'repetition': penalty must be 0 or more, got -1.0"),
        (LanguageConsistency, {"language": "english"}, "'language_consistency': language must be one of af, am, ar, "),
        (LanguageConsistency, {"language": ""}, "'language_consistency': language must be one of af, am, ar, "),
        (Reflection, {"phrases": []}, "'reflection': phrases must be a list of phrases, none empty, got []"),
        (Reflection, {"phrases": ["wait", ""]}, "'reflection': phrases must be a list of phrases, none empty, got "),
        (Reflection, {"phrases": "wait"}, "'reflection': phrases must be a list of phrases, none empty, got 'wait'"),
    ],
)
def test_options_out_of_range_are_one_line(kind, options, said):
    with pytest.raises(UserError) as error:
        kind(**options)
    assert str(error.value).startswith(f"reward {said}")
    assert "\n" not in str(error.value)
