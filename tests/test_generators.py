import pickle
import random
from dataclasses import make_dataclass

import numpy as np
import pytest
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS, register_dataset

from lit_reason.tasks.generators import MAX_SIZE, Generator
from lit_reason.types import UserError

# `composite` only mixes the others, which the task's `datasets` does
EVERY_GENERATOR = sorted(set(DATASETS) - {"composite"})

# small spaces and large ones: what a generator draws twice must still not be held out and trained on
TEN_GENERATORS = [
    "basic_arithmetic",
    "chain_sum",
    "complex_arithmetic",
    "gcd",
    "letter_counting",
    "list_functions",
    "number_sorting",
    "propositional_logic",
    "syllogism",
    "word_sorting",
]


def make(name, **options):
    return Generator(name, **{"seed": 0, "config": {}, **options})


def questions(generator, split, count=300):
    return {generator.entry(split, index, 0)["question"] for index in range(count)}


@pytest.mark.parametrize("name", EVERY_GENERATOR)
def test_every_generator_makes_items_and_judges_them(name):
    from lit_reason.tasks.reasoning_gym import ReasoningGym

    task = ReasoningGym(datasets={name: None})
    problem = task.problems("train")[77]
    assert problem == task.problems("train")[77]
    assert problem.prompt[-1]["content"]
    assert problem.answer is None or problem.score(problem.answer) == 1.0
    assert problem.score(None) == 0.0
    assert 0.0 <= problem.score("certainly not an answer") < 1.0
    assert pickle.loads(pickle.dumps(problem)).prompt == problem.prompt


@pytest.mark.parametrize("name", TEN_GENERATORS)
def test_training_and_held_out_questions_never_meet(name):
    generator = make(name)
    train, held_out = questions(generator, "train"), questions(generator, "validation")
    assert min(len(train), len(held_out)) > 100
    assert not train & held_out


def test_a_generator_with_few_questions_draws_some_again_but_never_across_the_splits():
    sums = make("chain_sum", config={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    train, held_out = questions(sums, "train"), questions(sums, "validation")
    assert len(train) < 300  # 200 sums and differences of two digits exist
    assert len(held_out) > 30
    assert not train & held_out


def test_neighbouring_seeds_share_no_question():
    assert not questions(make("number_sorting", seed=42), "train") & questions(make("number_sorting", seed=43), "train")


@pytest.mark.parametrize("seed", [0, 1, 107, 2**40, -5])
def test_the_splits_keep_to_their_halves_of_the_seeds_whatever_the_seed(seed):
    generator = make("chain_sum", seed=seed)
    generator._pieces.clear()
    generator.entry("train", MAX_SIZE - 1, 0)
    generator.entry("validation", MAX_SIZE - 1, 0)
    train, held_out = (first for first, _ in generator._pieces)
    assert 0 <= train < 2**31 - 64 * MAX_SIZE
    assert held_out == train + 2**31


def test_an_item_does_not_depend_on_what_was_asked_before():
    generator, other = make("list_functions"), make("list_functions")
    late = generator.entry("train", 25_000, 0)
    for index in (3, 25_001, 24_999):
        other.entry("train", index, 0)
    assert other.entry("train", 25_000, 0)["question"] == late["question"]


@pytest.mark.parametrize("name", ["acre", "word_ladder"])
def test_generators_that_make_a_whole_data_set_at_once_go_on_beyond_it(name):
    generator = make(name)
    assert len({generator.entry("train", index, 0)["question"] for index in (0, 1, 10_000, 49_999, 99_999)}) == 5


def test_the_global_generators_are_left_as_they_were():
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state is the point
    make("pool_matrix").entry("train", 5, 0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002 - likewise


def test_a_pickled_generator_leaves_its_word_lists_behind_and_continues():
    generator = make("group_anagrams")
    pickled = pickle.dumps(generator)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).entry("train", 3, 0) == generator.entry("train", 3, 0)


def test_a_level_steps_up_every_attribute_from_where_it_starts():
    generator = make("chain_sum", levels={"num_digits": 1})
    assert generator._levels_at(0) == {"num_digits": 1, "num_terms": 0}
    assert generator._levels_at(1) == {"num_digits": 2, "num_terms": 1}
    easy, hard = (generator.entry("train", 7, level)["metadata"]["difficulty"] for level in (0, 2))
    assert hard["num_digits"][1] > easy["num_digits"][1]
    assert hard["num_terms"][1] > easy["num_terms"][1]


def test_levels_end_where_the_curriculum_does():
    generator = make("chain_sum", levels=0)
    top = max(level for level in range(1, 20) if generator.has_level(level))
    assert generator._levels_at(top) == generator._levels_at(top + 5)
    assert not generator.has_level(top + 1)
    assert not make("chain_sum").has_level(1)


def test_levels_end_where_the_generator_refuses_its_own_curriculum():
    generator = make("caesar_cipher", levels=0)
    assert generator.has_level(1)
    assert not generator.has_level(2)  # asks for a rotation beyond the alphabet


class Unlucky(ProceduralDataset):
    def __init__(self, config):
        super().__init__(config, seed=config.seed, size=config.size)

    def __getitem__(self, idx):
        if self.config.always or (self.seed + idx) % 3 == 0:
            raise ValueError("no puzzle\nfound")
        return {"question": f"{self.seed + idx}?", "answer": "1", "metadata": {}}


@pytest.fixture
def unlucky():
    config = make_dataclass("Config", [("always", bool, False), ("seed", int, 0), ("size", int, 1)])
    register_dataset("unlucky", Unlucky, config)
    yield
    del DATASETS["unlucky"]


@pytest.mark.usefixtures("unlucky")
def test_an_unlucky_draw_is_replaced_by_the_same_other_one():
    drawn = [int(make("unlucky").entry("train", index, 0)["question"][:-1]) for index in range(30)]
    assert drawn == [int(make("unlucky").entry("train", index, 0)["question"][:-1]) for index in range(30)]
    assert all(question % MAX_SIZE == index for index, question in enumerate(drawn))  # attempts are MAX_SIZE apart
    assert drawn[0] >= MAX_SIZE  # 0 is unlucky
    assert not any(question % 3 == 0 for question in drawn)


@pytest.mark.usefixtures("unlucky")
def test_a_generator_that_always_fails_says_which_item_and_why():
    with pytest.raises(UserError) as error:
        make("unlucky", config={"always": True})
    assert str(error.value) == (
        "task 'reasoning_gym': generator 'unlucky' cannot make train item 0 at level 0: ValueError: no puzzle found. "
        "Change its config or its curriculum"
    )


class Single(ProceduralDataset):
    def __init__(self, config):
        super().__init__(config, seed=config.seed, size=config.size)

    def __getitem__(self, idx):
        return {"question": "1 + 1?", "answer": "2", "metadata": {}}


@pytest.fixture
def single():
    register_dataset("single", Single, make_dataclass("Config", [("seed", int, 0), ("size", int, 1)]))
    yield
    del DATASETS["single"]


@pytest.mark.usefixtures("single")
def test_a_generator_with_a_single_question_cannot_hold_any_out():
    generator = make("single")
    assert generator.entry("train", 5, 0)["answer"] == "2"
    with pytest.raises(
        UserError, match="'single' cannot make validation item 0 at level 0: it makes too few different"
    ):
        generator.entry("validation", 0, 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_sums", {}, "no generator 'chain_sums'; did you mean 'chain_sum'?"),
        ("composite", {}, "list the generators under 'datasets' instead"),
        (
            "chain_sum",
            {"config": {"min_term": 2}},
            "no option 'min_term'; did you mean 'min_terms'?; its options: min_",
        ),
        ("chain_sum", {"config": {"seed": 2}}, "set seed, train_size and validation_size of the task, not 'seed'"),
        ("chain_sum", {"config": {"min_terms": 9}}, "refuses its config {'min_terms': 9}: AssertionError: max_terms"),
        ("chain_sum", {"config": {"min_terms": "a"}}, "refuses its config {'min_terms': 'a'}: TypeError"),
        ("acre", {"levels": 0}, "has no curriculum"),
        ("chain_sum", {"levels": {"digits": 1}}, "no attribute 'digits'; attributes: num_terms (0 to"),
        ("chain_sum", {"levels": 99}, "curriculum.level 99 is too high; attributes: num_terms (0 to"),
        ("chain_sum", {"levels": {"num_terms": -1}}, "must count from 0, got -1"),
        (
            "chain_sum",
            {"levels": 0, "config": {"max_digits": 3}},
            "'max_digits' is set by config and by the curriculum's attribute 'num_digits'; keep one",
        ),
        (
            "caesar_cipher",
            {"levels": 2},
            "at curriculum level 0 ({'rotation': 2, 'words': 2}): AssertionError: rotation",
        ),
    ],
)
def test_wrong_options_are_one_line_that_names_them(name, options, message):
    with pytest.raises(UserError) as error:
        make(name, **options)
    assert message in str(error.value)
    assert str(error.value).startswith("task 'reasoning_gym': ")
    assert "\n" not in str(error.value)
