import pytest

from lit_reason.tasks.columns import Example, RowError, recognise
from lit_reason.types import UserError


def example(row, **chosen):
    return recognise(list(row), "'here'", chosen or None).example(row)


def user(text):
    return [{"role": "user", "content": text}]


WORKED = "<think> 2 + 2 = 4 </think> <answer> 4 </answer>"


@pytest.mark.parametrize("question", ["prompt", "question", "problem"])
@pytest.mark.parametrize("gold", ["final_answer", "expected_answer", "ground_truth", "answer"])
def test_questions_and_gold_answers_are_recognised_by_their_names(question, gold):
    assert example({question: "2 + 2?", gold: 4}) == Example(
        prompt=user("2 + 2?"), completion=None, answer="4", think=None
    )


def test_the_more_telling_name_of_a_gold_answer_wins():
    assert example({"question": "2 + 2?", "answer": "It is four.", "final_answer": "4"}).answer == "4"


def test_a_completion_is_learnt_as_it_is_and_its_answer_is_gold():
    assert example({"prompt": "2 + 2?", "completion": WORKED}) == Example(
        prompt=user("2 + 2?"), completion=WORKED, answer="4", think=None
    )
    assert example({"prompt": "2 + 2?", "completion": "four"}).answer is None
    assert example({"prompt": "2 + 2?", "completion": WORKED, "answer": "four"}).answer == "four"


def test_prompts_and_completions_may_be_turns():
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, *user("2 + 2?")],
        "completion": [{"role": "assistant", "content": WORKED}],
    }
    assert example(row).prompt == row["prompt"]
    assert example(row).completion == WORKED


def test_gsm8k_answers_become_thought_and_answer():
    row = {
        "question": "48 and half of it?",
        "answer": "Half is 48/2 = <<48/2=24>>24.\nSum 48+24 = <<48+24=72>>72.\n#### 72",
    }
    assert example(row).answer == "72"
    assert example(row).completion == ("<think> Half is 48/2 = 24.\nSum 48+24 = 72. </think> <answer> 72 </answer>")


def test_a_worked_solution_becomes_thought_and_answer():
    row = {"problem": "2 + 2?", "solution": r"Adding, we get $\boxed{4}$."}
    assert example(row).answer == "4"
    assert example(row).completion == r"<think> Adding, we get $\boxed{4}$. </think> <answer> 4 </answer>"
    assert example({**row, "answer": "four"}).completion.endswith("<answer> four </answer>")
    assert example({"problem": "Prove it.", "solution": "Clear."}).completion == "Clear."
    assert example({"problem": "2 + 2?", "solution": WORKED}).completion == WORKED


@pytest.mark.parametrize("key", ["messages", "conversations"])
@pytest.mark.parametrize(("human", "model"), [("human", "gpt"), ("user", "assistant")])
@pytest.mark.parametrize(("role", "content"), [("role", "content"), ("from", "value")])
def test_conversations_end_with_the_completion(key, human, model, role, content):
    turns = [("system", "Be brief."), (human, "2 + 2?"), (model, "four"), (human, "In digits?"), (model, "4")]
    row = {key: [{role: speaker, content: text} for speaker, text in turns]}
    assert example(row) == Example(
        prompt=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "four"},
            {"role": "user", "content": "In digits?"},
        ],
        completion="4",
        answer=None,
        think=None,
    )


def test_a_conversation_may_be_a_table_or_end_with_the_question():
    row = {"conversations": {"from": ["human", "gpt"], "value": ["2 + 2?", WORKED]}}
    assert example(row) == Example(prompt=user("2 + 2?"), completion=WORKED, answer="4", think=None)
    assert example({"messages": user("2 + 2?"), "answer": "4"}).completion is None


def test_fields_that_a_reader_filled_with_nothing_are_passed_over():
    turn = {"role": "user", "content": None, "from": None, "value": "2 + 2?"}
    assert example({"messages": [turn]}).prompt == user("2 + 2?")


def test_stratos_tags_become_think_and_answer_tags():
    row = {
        "system": "Write <|begin_of_thought|> thoughts <|end_of_thought|>.",
        "conversations": [
            {"from": "user", "value": "2 + 2?"},
            {
                "from": "assistant",
                "value": "<|begin_of_thought|>\n\n2 + 2 = 4\n\n<|end_of_thought|>\n\n"
                "<|begin_of_solution|>\n\nIt is \\boxed{4}.\n\n<|end_of_solution|>",
            },
        ],
    }
    assert example(row) == Example(
        prompt=[{"role": "system", "content": "Write <think> thoughts </think>."}, *user("2 + 2?")],
        completion="<think>\n\n2 + 2 = 4\n\n</think>\n\n<answer>\n\nIt is \\boxed{4}.\n\n</answer>",
        answer="4",
        think=None,
    )


@pytest.mark.parametrize(("value", "mode"), [(True, True), (False, False), ("False", False), (None, None), ("", None)])
def test_a_row_may_choose_its_mode(value, mode):
    assert example({"prompt": "2 + 2?", "think": value}).think is mode


def test_chosen_columns_replace_recognition():
    row = {"prompt": "not this", "Q": "2 + 2?", "A": "4", "answer": "nor this"}
    assert example(row, prompt="Q") == Example(prompt=user("2 + 2?"), completion=None, answer=None, think=None)
    assert example(row, prompt="Q", answer="A").answer == "4"
    assert recognise(list(row), "", {"prompt": "Q", "answer": "A"}).used() == {"Q", "A"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": None}, "'prompt' is missing"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"messages": "hello"}, "the conversation is not a list of turns"),
        ({"messages": []}, "the prompt does not end with a user turn"),
        ({"messages": [{"role": "assistant", "content": "4"}]}, "the prompt does not end with a user turn"),
        ({"messages": ["hello"]}, "a turn of the conversation is not a mapping"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "a turn's role is 'tool'"),
        ({"messages": [{"role": ["user"], "content": "4"}]}, r"a turn's role is \['user'\]"),
        ({"messages": [{"role": "user", "content": [1]}]}, "a turn of the conversation holds no text"),
        ({"prompt": "2 + 2?", "answer": [4]}, "'answer' is neither text nor a number"),
        ({"prompt": "2 + 2?", "think": "maybe"}, "'think' is neither true nor false"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, reason):
    with pytest.raises(RowError, match=f"^{reason}$"):
        example(row)


def test_no_recognised_column_lists_what_there_is_and_what_would_be():
    with pytest.raises(UserError) as error:
        recognise(["q", "a"], "'x.csv'")
    assert str(error.value) == (
        "task 'dataset': no prompt among the columns of 'x.csv' (q, a); recognised are messages, conversations, "
        "prompt, question, problem. Say which it is, as in columns: {prompt: NAME}"
    )


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"prompts": "question"}, "columns names no part 'prompts'; parts: messages, prompt, completion, solution"),
        ({"prompt": "questio"}, "columns.prompt: 'x' has no column 'questio'; did you mean 'question'? (has question)"),
        ({}, "no prompt among the columns of 'x'"),
    ],
)
def test_wrong_choices_of_columns_are_named(chosen, message):
    with pytest.raises(UserError) as error:
        recognise(["question"], "'x'", chosen)
    assert message in str(error.value)
