import subprocess
import sys
from pathlib import Path

import pytest
import reasoning_gym
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_reason import nano
from lit_reason.answer import correct, extract_answer, strict_format
from lit_reason.nano.traces import WORK_OUT, chain_sum, spell_backward, syllogism
from lit_reason.policy import EMPTY_THINK, Policy, PolicyOptions
from lit_reason.rollout import Sampling, roll_out
from lit_reason.tasks.nano_traces import CONFIGS, NanoTraces
from lit_reason.tasks.reasoning_gym import ReasoningGym
from lit_reason.types import UserError

SUM = "State the final answer to the following arithmetic problem: {} ="
ARGUMENT = "Consider these statements:\n1. {}\n2. {}\n\nDoes it logically follow that:\n{}?\n(Answer Yes or No)"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(nano.PATH)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(PolicyOptions(model="nano"))


# ---------------------------------------------------------------- worked solutions
@pytest.mark.parametrize(
    ("sum_", "worked"),
    [
        ("247 + 385", "247+385 7+5+0=12 4+8+1=13 2+3+1=06"),
        ("10 + 20", "10+20 0+0+0=00 1+2+0=03"),
        ("85 - 47", "85-47 15-7-0=8 08-4-1=3"),
        ("57 - 87", "87-57 07-7-0=0 08-5-0=3"),
        ("400 - 101", "400-101 10-1-0=9 10-0-1=9 04-1-1=2"),
        ("33 - 33", "33-33 03-3-0=0 03-3-0=0"),
    ],
)
def test_sums_are_worked_column_by_column(sum_, worked):
    assert chain_sum(SUM.format(sum_)) == worked


@pytest.mark.parametrize("sum_", ["1 + 2 + 3", "10 + 200", "4 * 5"])
def test_a_sum_of_another_kind_is_refused(sum_):
    with pytest.raises(ValueError, match="two terms"):
        chain_sum(SUM.format(sum_))


def test_words_are_numbered_then_read_from_the_end():
    assert spell_backward("Spell this word backward (example: sun -> nus): lane") == "1l2a3n4e 4e3n2a1l"


@pytest.mark.parametrize(
    ("premises_and_conclusion", "worked"),
    [
        (("All a are b", "All b are c", "All a are c"), "All a b, All b c, All a c: follows"),
        (("No a are b", "Some b are not c", "No a are c"), "No a b, Some-not b c, No a c: two negative"),
        (("Some a are b", "Some b are c", "Some a are c"), "Some a b, Some b c, Some a c: two particular"),
        (("Some a are b", "All b are c", "All a are c"), "Some a b, All b c, All a c: particular"),
        (("All a are b", "No b are c", "All a are c"), "All a b, No b c, All a c: negative"),
        (("No a are b", "All b are c", "No a are c"), "No a b, All b c, No a c: too wide"),
        (("All a are b", "No b are c", "Some b are a"), "All a b, No b c, Some b a: follows"),
        (("All a are b", "No b are c", "Some c are b"), "All a b, No b c, Some c b: turned No"),
        (("Some a are not b", "No b are c", "No b are a"), "Some-not a b, No b c, No b a: turned nothing"),
    ],
)
def test_syllogisms_are_restated_and_judged(premises_and_conclusion, worked):
    assert syllogism(ARGUMENT.format(*premises_and_conclusion)) == worked


def test_a_question_without_three_statements_is_refused():
    with pytest.raises(ValueError, match="two premises"):
        syllogism("All a are b?")


def test_worked_solutions_lead_to_the_gold_answers():
    sources = {name: reasoning_gym.create_dataset(name, seed=5, size=500, **CONFIGS[name]) for name in CONFIGS}
    for entry in sources["chain_sum"]:
        restated, *steps = WORK_OUT["chain_sum"](entry["question"]).split()
        columns = [step.partition("=")[2] for step in steps]
        # the last column's whole result, then the last digit of each before it
        total = int(columns[-1] + "".join(column[-1] for column in reversed(columns[:-1])))
        turned = restated not in entry["question"].replace(" ", "")
        assert (-total if turned else total) == int(entry["answer"])
    for entry in sources["spell_backward"]:
        backward = WORK_OUT["spell_backward"](entry["question"]).split()[1]
        assert "".join(c for c in backward if not c.isdigit()) == entry["answer"]
    for entry in sources["syllogism"]:
        assert WORK_OUT["syllogism"](entry["question"]).endswith("follows") == (entry["answer"] == "Yes")


# ---------------------------------------------------------------- the task
def test_the_task_is_sound():
    assert NanoTraces().validate() == []


def test_items_are_the_same_every_time_and_in_every_order():
    first, second = NanoTraces().problems("train"), NanoTraces().problems("train")
    order = [7, 0, 999_999, -1, 7]
    assert [first[i] for i in order] == [second[i] for i in reversed(order)][::-1]
    assert first[-1] == first[999_999]
    assert first[3:5] == [first[3], first[4]]
    with pytest.raises(IndexError):
        first[1_000_000]


def test_training_held_out_and_other_seeds_share_no_reasoning_gym_item():
    # item i at seed s is drawn from Random(s + i): these ranges must not meet
    ranges = []
    for seed in (0, 1, 2):
        task = NanoTraces(size=50, validation_size=20, seed=seed)
        for split in ("train", "validation"):
            problems = task.problems(split)
            ranges.append(range(problems.first, problems.first + len(problems)))
    drawn = [i for r in ranges for i in r]
    assert len(drawn) == len(set(drawn)) == 3 * 70


def test_styles_come_in_their_shares_and_keep_the_format():
    problems = NanoTraces(worked=0.25, no_think=0.2).problems("train")[:2000]
    worked = [p for p in problems if not p.completion.startswith(EMPTY_THINK)]
    no_think = [p for p in problems if p.think is False]
    assert 0.22 < len(worked) / len(problems) < 0.28
    assert 0.16 < len(no_think) / (len(problems) - len(worked)) < 0.24
    assert not any(p in worked for p in no_think)
    assert all(strict_format(p.completion) and extract_answer(p.completion) == p.answer for p in problems)
    assert {p.task for p in problems} == {"chain_sum", "spell_backward", "syllogism"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"worked": 1.5}, "'worked' must lie between 0 and 1"),
        ({"no_think": -0.1}, "'no_think' must lie between 0 and 1"),
        ({"weights": {"sudoku": 1.0}}, "names 'sudoku'; expected chain_sum"),
        ({"weights": {"chain_sum": 0.0}}, "not all 0"),
        ({"size": 0}, "'size' must be 1 or more"),
        ({"validation_size": 0}, "'validation_size' must be 1 or more"),
    ],
)
def test_wrong_options_are_told_in_one_line(options, complaint):
    with pytest.raises(UserError, match=complaint):
        NanoTraces(**options)


# ---------------------------------------------------------------- tokenizer and template
def test_digits_and_tags_are_single_tokens_and_unknown_words_are_spelled(tokenizer):
    assert tokenizer.tokenize("<think> 120") == ["<think>", "Ġ", "1", "2", "0"]
    assert tokenizer.tokenize("State the statement") == ["State", "Ġthe", "Ġ", *"statement"]


@pytest.mark.parametrize("text", ["<think> 7+5=12 </think> <answer> 2 </answer>", "naïve ☃\n\ttabs  and   spaces", ""])
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_end_and_padding_differ(tokenizer):
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_the_template_writes_system_messages_several_turns_and_both_modes(tokenizer):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1 ="},
        {"role": "assistant", "content": "<think> </think> <answer> 2 </answer>"},
        {"role": "user", "content": "2 + 2 ="},
    ]
    expected = (
        "<|system|>Be brief.<|end|><|user|>1 + 1 =<|end|>"
        "<|assistant|><think> </think> <answer> 2 </answer><|end|><|user|>2 + 2 =<|end|><|assistant|>"
    )

    def render(**mode):
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **mode)

    assert render() == render(enable_thinking=True) == expected
    assert render(enable_thinking=False) == expected + "<think> </think> "


def test_the_template_marks_what_the_assistant_says(tokenizer):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<answer> 2 </answer>"}]
    rendered = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mark in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "<answer> 2 </answer><|end|>"


# ---------------------------------------------------------------- the model
def test_plain_transformers_loads_a_small_llama():
    model = AutoModelForCausalLM.from_pretrained(nano.PATH)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    assert sum(f.stat().st_size for f in nano.PATH.iterdir() if f.is_file()) < 8_000_000


def test_nano_blurts_when_greedy_and_sometimes_works_it_out_when_sampled(policy):
    sums = ReasoningGym(datasets={"chain_sum": {"config": CONFIGS["chain_sum"]}}).problems("validation")[:64]
    greedy = roll_out(policy, sums, Sampling(temperature=0, max_new_tokens=80))
    sampled = roll_out(policy, sums, Sampling(max_new_tokens=80), group_size=4)
    assert all(r.finish_reason == "stop" and strict_format(r.text) for r in greedy)
    assert sum(r.text.startswith(EMPTY_THINK) for r in greedy) > 0.9 * len(greedy)
    worked = [r for r in sampled if not r.text.startswith(EMPTY_THINK)]
    assert 0.15 < len(worked) / len(sampled) < 0.45
    assert sum(map(correct, greedy)) < 0.4 * len(greedy)
    assert sum(map(correct, worked)) > 0.6 * len(worked)


def test_no_think_mode_answers_at_once(policy):
    problems = NanoTraces(worked=0, no_think=1).problems("validation")[:16]
    rollouts = roll_out(policy, problems, Sampling(temperature=0, max_new_tokens=20))
    assert all(r.text.startswith("<answer>") and r.text.endswith("</answer>") for r in rollouts)


def test_the_path_is_known_without_torch():
    code = "import sys; from lit_reason.nano import PATH; print('torch' in sys.modules, PATH.is_dir())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "True"]


def test_the_build_tool_builds_a_loadable_model(tmp_path: Path):
    tool = Path(__file__).parents[1] / "tools" / "build_nano.py"
    out, run = tmp_path / "nano", tmp_path / "run"
    options = ["--trainer.max_steps", "2", "--data.validation_problems", "8", "--data.prompts_per_step", "4"]
    command = [sys.executable, str(tool), "--out", str(out), "--run", str(run), *options]
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (out / "tokenizer.json").read_bytes() == (nano.PATH / "tokenizer.json").read_bytes()
    built, shipped = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out, nano.PATH))
    assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in shipped.named_parameters()}
    assert "| chain_sum |" in (out / "README.md").read_text()
