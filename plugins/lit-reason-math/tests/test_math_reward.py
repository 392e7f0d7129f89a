"""The reward in training's own machinery: conformance, hostile answers in workers, other threads."""

import resource
import threading

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
    groups = [rollouts("x^2 + 1", [f"<answer> {text} </answer>"] * 8, n) for n, text in enumerate(HOSTILE)]
    groups += [rollouts(text, ["<answer> 5 </answer>"] * 8, len(groups) + n) for n, text in enumerate(HOSTILE)]
    groups.append(rollouts("\\sin 2x", ["<answer> 2 \\sin x \\cos x </answer>"] * 8, len(groups)))
    everything = [rollout for group in groups for rollout in group]
    scorer = Scorer([WeightedReward(name="math", weight=1.0, reward=Math(timeout=1.5))], workers=2)
    found: dict[str, list[float | None]] = {}

    def score(name: str) -> None:
        scorer.collect(everything)
        found[name] = [rollout.rewards["math"] for rollout in everything]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        score("main")
        thread = threading.Thread(target=score, args=("other",))
        thread.start()
        thread.join(120)
        after = [r for n in range(8) for r in rollouts(f"\\sin {n}x", [f"<answer> \\sin({n} \\cdot x) </answer>"], n)]
        scorer.collect(after)  # by all workers, none of it seen before
        assert [rollout.rewards["math"] for rollout in after] == [1.0] * 8
    finally:
        scorer.close()
    assert found["main"] == found["other"]
    answers, golds, fine = found["main"][: 8 * len(HOSTILE)], found["main"][8 * len(HOSTILE) : -8], found["main"][-8:]
    assert set(answers) == {0.0}
    assert set(golds) <= {0.0, None}
    assert fine == [1.0] * 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
