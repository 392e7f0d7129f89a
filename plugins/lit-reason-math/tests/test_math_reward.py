"""The reward in training's own machinery: conformance, hostile answers in workers, other threads."""

import resource
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from lit_reason_math.reward import Math

from lit_reason.reward import Judgement, WeightedReward
from lit_reason.scoring import Scorer
from lit_reason.testing import check_reward, sample_rollouts
from lit_reason.types import Problem, Rollout, UserError

HOSTILE = [
    "9^{9^{9^9}}",
    "9^9^9^9",
    "9**9**9**9",
    "99999999!",
    "((9!)!)!",
    "\\binom{10^9}{5 \\cdot 10^8}",
    "\\binom{99999999}{5000}",
    "\\sum_{k=1}^{10^9} \\frac{1}{k^2}",
    "\\prod_{k=1}^{1000000000} k",
    "\\int_{0}^{\\infty} \\frac{\\sin(x^{x})}{x^{x^{x}}} dx",  # reaches the deadline
    "\\int\\int\\int\\int e^{x^{y^{z}}} dx dy dz dw",
    "((((x^{9})^{9})^{9})^{9})^{9}",
    "(2^{9999})^{9999}",
    "\\log_{2}(3^{9999999})",
    "{" * 5000 + "1" + "}" * 5000,
    "(" * 900 + "1" + ")" * 900,
    "\\frac{1}{" * 400 + "2" + "}" * 400,
    "\\sqrt{" * 300 + "2" + "}" * 300,
    "\\sqrt{2+" * 20 + "1" + "}" * 20,
    "7" * 1_000_000,
    "0." + "3" * 100_000,
    "1e999999999",
    "1\0" * 500,
    "\u0661\u0662\U0001f991\u202e" * 400,
    "answer " * 280,
    "= " * 900,
    "$" * 1999,
    "\\" * 1999,
    "\\boxed{" * 1000 + "}" * 999,
    "\\begin{pmatrix}" + "1&2&3&4\\\\" * 400 + "\\end{pmatrix}",
    "\\det\\begin{pmatrix}" + "\\\\".join("&".join(f"x_{i}^{j}" for j in range(9)) for i in range(9)),
    "\\lim_{x \\to 0} \\frac{\\sin(\\tan x) - \\tan(\\sin x)}{x^7}",
]


def rollouts(gold: str, texts: list[str], group: int) -> list[Rollout]:
    problem = Problem(prompt=[{"role": "user", "content": "?"}], answer=gold, id=f"{group}")
    made = sample_rollouts(texts, problem=problem)
    for rollout in made:
        rollout.group = group
    return made


def test_it_conforms() -> None:
    check_reward(Math())


def test_the_last_answer_counts_and_a_gold_answer_that_cannot_be_read_leaves_the_row_out() -> None:
    reward = Math()
    texts = ["<answer> 1/2 </answer>", "\\boxed{1} or \\boxed{0.5}", "<answer>2</answer>", "0.5"]
    told = [reward.score(rollout) for rollout in rollouts("\\frac{1}{2}", texts, 0)]
    assert [(j.value, j.status) for j in told] == [(1.0, "ok"), (1.0, "ok"), (0.0, "wrong"), (0.0, "missing")]
    (left_out,) = rollouts("\\frac{1", ["<answer> 1 </answer>"], 0)
    assert reward.score(left_out) == Judgement(value=None, status="unparseable_gold")
    left_out.problem.answer = None
    assert reward.quick(left_out) == Judgement(value=None, status="unparseable_gold")


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match="reward 'math': timeout must be more than 0 seconds, got 0"):
        Math(timeout=0)
    with pytest.raises(UserError, match="reward 'math': float_rounding must be 0 to 12 places, got 99"):
        Math(float_rounding=99)


def test_hostile_text_is_bounded_in_time_and_memory_and_the_pool_is_whole_afterwards_in_any_thread() -> None:
    count = 2 * len(HOSTILE)
    groups = [rollouts("x^2 + 1", [f"<answer> {text} </answer>"] * 8, n) for n, text in enumerate(HOSTILE)]
    groups += [rollouts(text, ["<answer> 5 </answer>"] * 8, count - 1 - n) for n, text in enumerate(HOSTILE)]
    scorer = Scorer([WeightedReward(name="math", weight=1.0, reward=Math(timeout=2.0))], workers=2)

    def score(parity: int) -> list[float | None]:
        """Every other group, hostile answers and hostile gold answers, of which one reaches the deadline."""
        mine = [rollout for group in groups for rollout in group if rollout.group % 2 == parity]
        scorer.collect(mine)
        return [rollout.rewards["math"] for rollout in mine]

    def score_sines(first: int) -> None:
        """By both workers, none of it seen before."""
        after = [
            rollout
            for n in range(first, first + 4)
            for rollout in rollouts(f"\\sin {n}x", [f"<answer> \\sin({n} \\cdot x) </answer>"] * 8, n)
        ]
        scorer.collect(after)
        assert [rollout.rewards["math"] for rollout in after] == [1.0] * 32

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(1) as other:
            found = [score(0), other.submit(score, 1).result(120)]
            score_sines(0)
            other.submit(score_sines, 4).result(120)
        assert scorer.take()["math"].statuses["timeout"] >= 16
    finally:
        scorer.close()
    assert len(found[0]) == len(found[1]) == 8 * len(HOSTILE)
    half = len(found[0]) // 2
    for values in found:
        assert set(values[:half]) == {0.0}  # an answer that cannot be judged is wrong
        assert set(values[half:]) <= {0.0, None}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
