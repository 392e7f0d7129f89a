"""From scores of steps to advantages of tokens, worked by hand after arXiv 2402.03300, section 4.1.3."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from tokenizers import Tokenizer, decoders, models
from torch.utils.data import DataLoader

from lit_reason import GRPO, PolicyOptions, Problem, Rollout, Sampling
from lit_reason.policy import Policy
from lit_reason.reward import Judgement, Reward, WeightedReward
from lit_reason.steps import credit_steps, end_tokens, outcomes, weighted_sums


def spelled(ids) -> str:
    """One token, one letter; 256 ends."""
    return bytes(i for i in ids.tolist() if i < 256).decode(errors="replace")


def rollout(text, steps, *, group=0, advantage=0.0) -> Rollout:
    return Rollout(
        problem=Problem(prompt=[]),
        prompt_ids=torch.tensor([1]),
        completion_ids=torch.tensor([*text.encode(), 256]),
        text=text,
        steps={"p": steps} if steps else {},
        advantage=advantage,
        group=group,
    )


def weighted(weight=1.0) -> WeightedReward:
    return WeightedReward(name="p", weight=weight, reward=Reward())


def test_a_token_gains_the_standardised_scores_of_the_steps_that_end_at_or_after_it() -> None:
    # scores 0.9, 0.3 | 0.6, 0.2: mean 0.5, squared deviations .16 .04 .01 .09, std sqrt(0.3 / 3) = 0.316228
    first, second = rollout("ab|cd", [(3, 0.9), (5, 0.3)]), rollout("a|b", [(2, 0.6), (3, 0.2)])
    credit_steps([first, second], weighted(), spelled)
    unit = 1 / (math.sqrt(0.1) + 1e-4)
    assert first.advantage.tolist() == pytest.approx([0.2 * unit] * 3 + [-0.2 * unit] * 3, rel=1e-6)
    assert second.advantage.tolist() == pytest.approx([-0.2 * unit] * 2 + [-0.3 * unit] * 2, rel=1e-6)


def test_the_mean_alone_and_the_mean_of_the_others() -> None:
    for kind, factor in (("none", 1.0), ("rloo", 4 / 3)):
        first, second = rollout("ab|cd", [(3, 0.9), (5, 0.3)]), rollout("a|b", [(2, 0.6), (3, 0.2)])
        credit_steps([first, second], weighted(), spelled, kind)
        assert first.advantage.tolist() == pytest.approx([0.2 * factor] * 3 + [-0.2 * factor] * 3, rel=1e-6)
        assert second.advantage.tolist() == pytest.approx([-0.2 * factor] * 2 + [-0.3 * factor] * 2, rel=1e-6)


def test_steps_add_to_the_advantage_of_the_outcome_with_the_weight_of_their_reward() -> None:
    one, other = rollout("a", [(1, 1.0)], advantage=0.5), rollout("b", [(1, 0.0)], advantage=-0.5)
    credit_steps([one, other], weighted(0.1), spelled, "none")
    assert one.advantage.tolist() == pytest.approx([0.55, 0.55])
    assert other.advantage.tolist() == pytest.approx([-0.55, -0.55])


def test_groups_are_apart_and_rows_without_steps_stay_as_they_are() -> None:
    rows = [rollout("a", [(1, 0.3)]), rollout("b", [(1, 0.1)]), rollout("c", [], advantage=0.25)]
    rows += [rollout("d", [(1, 5.0)], group=1)]
    credit_steps(rows, weighted(), spelled, "none")
    assert rows[0].advantage.tolist() == pytest.approx([0.1, 0.1])
    assert rows[2].advantage == 0.25
    assert rows[3].advantage.tolist() == [0.0, 0.0]  # alone in its group


def test_a_reward_that_scored_steps_is_no_part_of_the_outcome() -> None:
    stepwise, whole = rollout("a", [(1, 0.3)]), rollout("b", [])
    stepwise.rewards, whole.rewards = {"p": 0.3, "q": 0.5}, {"p": 0.3, "q": None}
    assert outcomes([stepwise, whole], "p") == [None, 0.3]
    assert outcomes([stepwise, whole], "q") == [0.5, None]


def test_sums_are_of_rewards_that_weigh_something_and_apply() -> None:
    assert weighted_sums([[None, 0.3, 0.3, None], [0.5, 0.5, None, None], [9.0] * 4], [2.0, 3.0, 0.0]) == [
        1.5,
        2.1,
        0.6,
        None,
    ]


@pytest.mark.parametrize("steps", [[(0, 1.0)], [(2, 1.0), (2, 1.0)], [(3, 1.0), (2, 1.0)], [(1, math.nan)]])
def test_steps_must_ascend_and_be_finite(steps) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Judgement(value=1.0, steps=steps)


# ---------------------------------------------------------------------- characters to tokens
def test_a_character_of_several_bytes_ends_with_its_last_byte() -> None:
    text = "é\n\n日本\n\nx"  # bytes: 2 + 2, 6 + 2, 1
    ids = torch.tensor([*text.encode(), 256])
    assert end_tokens(ids, text, [1, 3, 4, 7, 8], spelled) == [2, 4, 7, 12, 14]


def test_bytes_that_are_no_character_do_not_shift_a_step() -> None:
    ids = torch.tensor([0xE2, 0x82, 10, 0xFF, 0xE2, 0x82, 0xAC, 10, 256])
    text = spelled(ids)
    assert text == "\ufffd\n\ufffd€\n"
    assert end_tokens(ids, text, [1, 2, 3, 4, 5], spelled) == [3, 3, 5, 7, 9]


def test_a_token_across_two_steps_counts_for_the_one_it_ends() -> None:
    pieces = ["one", ".\n\n", "two", "\n\nth", "ree", "<end>"]

    def read(ids):
        return "".join(pieces[i] for i in ids.tolist())

    text = "one.\n\ntwo\n\nthree"
    assert end_tokens(torch.arange(6), text, [6, 11, 16], read) == [2, 4, 6]


def metaspace(ids) -> str:
    """SentencePiece's way: a blank belongs to the token after it, and the first one of a text is dropped."""
    pieces = ["\u2581a", "b", "\u2581", "\n", "c\n\n", "\u2581d"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer.decode(ids.tolist())


TEXTS = [
    "12 + 34 =\n\n46, naïve 日本 💡 \n\nso\n\n\n\n<answer> 46 </answer>",
    " \n\n 7 + 8\n\nis 15  \n\n",
    "💡\n\n💡💡\n\n",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("model", ["nano", "qwen3"])
def test_any_character_ends_with_the_first_token_that_completes_it(tiny_folders, model, text) -> None:
    policy = Policy(PolicyOptions(model=str(tiny_folders.get(model, model))))
    ids = torch.tensor([*policy.tokenizer(text, add_special_tokens=False)["input_ids"], policy.eos_ids[0]])
    assert policy.decode(ids) == text
    for step in (1, 3, 11):
        compare(ids, text, range(step, len(text), step), policy.decode)


def test_a_tokenizer_that_drops_the_first_blank_of_a_text() -> None:
    ids = torch.tensor([0, 1, 2, 3, 5, 4, 0, 0, 2, 2, 3, 3, 5, 1, 1, 4, 5])
    text = metaspace(ids)
    assert text == "ab \n dc\n\n a a  \n\n dbbc\n\n d"
    for step in (1, 2, 5):
        compare(ids, text, range(step, len(text), step), metaspace)


def compare(ids, text, ends, decode) -> None:
    """With the shortest beginning of the tokens that spells each beginning of the text."""
    spelt = [decode(ids[:count]) for count in range(len(ids) + 1)]
    expected = [next(n for n, start in enumerate(spelt) if start.startswith(text[:end])) for end in ends]
    assert end_tokens(ids, text, list(ends), decode) == expected


# ---------------------------------------------------------------------- in a run
class Halves(Reward):
    """Scores both halves of a completion by the length of the whole."""

    def score(self, rollout: Rollout) -> Judgement:
        middle, end = max(1, len(rollout.text) // 2), len(rollout.text)
        if end < 2:
            return Judgement(value=0.0, status="short")
        return Judgement(value=0.5, steps=[(middle, end % 7 / 7), (end, end % 5 / 5)])


@pytest.mark.parametrize("workers", [0, 1])
def test_grpo_learns_from_steps_token_by_token(tiny_llama, tmp_path, workers) -> None:
    module = GRPO(
        [Halves, "accuracy"],
        policy=PolicyOptions(model=tiny_llama),
        sampling=Sampling(max_new_tokens=16),
        group_size=4,
        reward_workers=workers,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
    )
    problems = [Problem(prompt=[{"role": "user", "content": c}], answer="1", id=c) for c in "ab"]
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, **options)
    trainer.fit(module, DataLoader(problems, batch_size=2, collate_fn=list))
    rows = module.last_rollouts
    assert all(r.rewards["Halves"] == 0.5 and len(r.steps["Halves"]) == 2 for r in rows)
    assert any(len(set(r.advantage.tolist())) == 2 for r in rows)
    for r in rows:
        half = end_tokens(r.completion_ids, r.text, [r.steps["Halves"][0][0]], module.policy.decode)[0]
        assert len(set(r.advantage[:half].tolist())) == 1
        assert len(set(r.advantage[half:].tolist())) == 1
    assert trainer.callback_metrics["train/informative"] > 0
    assert trainer.callback_metrics["train/grad_norm"] > 0
