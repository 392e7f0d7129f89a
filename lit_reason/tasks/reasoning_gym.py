"""`reasoning_gym`: procedurally generated problems with verifiable answers, from the library of that name.

Any of its generators by name, several with weights, each at a fixed difficulty or on a curriculum that rises with the
policy's accuracy. Source: Reasoning Gym (arXiv 2505.24760).

    task:
      reasoning_gym:
        datasets:
          syllogism: {weight: 2}
          chain_sum: {config: {min_terms: 2, max_terms: 3}}
          basic_arithmetic: {curriculum: {level: 0, advance_at: 0.8}}
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from typing import Any, overload

from lit_reason.answer import extract_answer
from lit_reason.task import Split, Task
from lit_reason.tasks.generators import MAX_SIZE, Generator
from lit_reason.tasks.judging import TIMED, Referee, admissible, gold_texts
from lit_reason.tasks.ladder import Ladder
from lit_reason.types import Message, Problem, Rollout, UserError

_OPTIONS = ("weight", "config", "curriculum")
_CURRICULUM_OPTIONS = ("level", "advance_at", "window")


class ReasoningGym(Task):
    """Problems of one or several reasoning_gym generators.

    No question is both trained on and held out. A generator's own scorer judges: 1.0 is correct, partial credit is
    kept. With `curriculum.advance_at`, training problems get one level harder when enough of the last ones were solved;
    held-out problems stay at the declared level, so that validation measures one thing throughout.

    Args:
        datasets: generator name -> its options, empty for the defaults. `weight` (default 1): share of the problems,
            relative to the other generators. `config`: the generator's own options. `curriculum`: `level` (default 0)
            to start at, one number for all attributes of the generator's curriculum or a number by attribute;
            `advance_at` (default null: stay) the accuracy in (0, 1] that raises the level; `window` (default 64) the
            training completions at a level that this accuracy is taken over.
        seed: draws the problems; another seed gives other problems, held-out ones too.
        train_size: training problems before they repeat; generated on demand, so large costs nothing.
        validation_size: held-out problems.
        system_prompt: text of a system turn before each question; None for none.
        think: True / False asks the chat template for think / no-think mode; None leaves it at its default.

    Raises:
        UserError: the package is missing, a generator is unknown, or an option is wrong.
    """

    name = "reasoning_gym"

    def __init__(
        self,
        *,
        datasets: dict[str, dict[str, Any] | None],
        seed: int = 0,
        train_size: int = 100_000,
        validation_size: int = 1_000,
        system_prompt: str | None = None,
        think: bool | None = None,
    ) -> None:
        _require_library()
        if not datasets:
            raise UserError("task 'reasoning_gym': datasets is empty; name at least one generator, such as 'chain_sum'")
        for option, size in (("train_size", train_size), ("validation_size", validation_size)):
            if not 0 <= size <= MAX_SIZE:
                raise UserError(f"task 'reasoning_gym': {option} must be 0 to {MAX_SIZE:,} problems, got {size:,}")
        self.seed = seed
        self.sizes: dict[Split, int] = {"train": train_size, "validation": validation_size}
        self.system_prompt = system_prompt
        self.think = think
        self.weights: dict[str, float] = {}
        self.generators: dict[str, Generator] = {}
        self.ladders: dict[str, Ladder] = {}
        for name, options in datasets.items():
            self._add(name, options or {})
        self._referee = Referee()

    def problems(self, split: Split) -> Sequence[Problem]:
        return _Problems(self, split)

    def problem(self, split: Split, index: int) -> Problem:
        """Problem `index` of a split; for training, at the level its generator has reached."""
        name = self._drawn(split, index)
        ladder = self.ladders.get(name)
        level = ladder.level if ladder and split == "train" else 0
        entry = self.generators[name].entry(split, index, level)
        prompt: list[Message] = [{"role": "user", "content": entry["question"]}]
        if self.system_prompt is not None:
            prompt.insert(0, {"role": "system", "content": self.system_prompt})
        return Problem(
            prompt=prompt,
            answer=entry["answer"],
            think=self.think,
            task=self.name,
            id=f"{name}/{split}/{index}" + (f"/level-{level}" if level else ""),
            metadata={"generator": name, "split": split, "level": level, "entry": entry},
            scorer=self.score,
        )

    def score(self, problem: Problem, answer: str | None) -> float:
        """The score of the generator's own scorer, in [0, 1]; 0.0 for no answer and for what the scorer chokes on."""
        if answer is None:
            return 0.0
        name, entry = problem.metadata["generator"], problem.metadata["entry"]
        if not admissible(name, answer):
            return float(answer in gold_texts(entry))
        if name in TIMED:
            return self._referee.score(name, answer, entry)
        scorer = self.generators[name].scorer(problem.metadata["level"])
        try:
            with warnings.catch_warnings(action="ignore"):  # about the model's text, so of no use to a person
                score = float(scorer.score_answer(answer, entry))
        except Exception:  # noqa: BLE001 - the answer is a model's, and the scorers expect well-formed ones
            return 0.0
        return min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0

    def observe(self, rollouts: Sequence[Rollout]) -> None:
        """Let every curriculum see which training problems of its present level were solved, on all ranks."""
        moving = {name: ladder for name, ladder in self.ladders.items() if ladder.advance_at is not None}
        if not moving:
            return
        seen = []
        for rollout in rollouts:
            known = rollout.problem.metadata
            if known.get("split") == "train" and known.get("generator") in moving:
                solved = rollout.problem.score(extract_answer(rollout.text)) == 1.0
                seen.append((str(known["generator"]), int(known["level"]), solved))
        for name, level, solved in _of_all_ranks(seen):
            moving[name].see(level, solved=solved, generator=self.generators[name])

    def state_dict(self) -> dict[str, Any]:
        return {"curricula": {name: ladder.state_dict() for name, ladder in self.ladders.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, ladder in self.ladders.items():
            if name in state["curricula"]:  # a generator added since starts at its declared level
                ladder.load_state_dict(state["curricula"][name])

    def _drawn(self, split: Split, index: int) -> str:
        """Which generator makes a problem: drawn by weight from (seed, split, index), the same in every process."""
        names = list(self.weights)
        draw = random.Random(f"{self.seed}/{split}/{index}")
        return draw.choices(names, weights=list(self.weights.values()))[0]

    def _add(self, name: str, options: dict[str, Any]) -> None:
        who = f"task 'reasoning_gym': generator '{name}'"
        _known_keys(who, options, _OPTIONS)
        weight, config, curriculum = (options.get(key) for key in _OPTIONS)
        weight = 1.0 if weight is None else weight
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UserError(f"{who}: weight must be a number above 0, got {weight!r}")
        for key, value in (("config", config), ("curriculum", curriculum)):
            if value is not None and not isinstance(value, dict):
                raise UserError(f"{who}: {key} must be a mapping of options, got {value!r}")
        levels = None
        if curriculum is not None:
            _known_keys(f"{who}, curriculum", curriculum, _CURRICULUM_OPTIONS)
            levels = curriculum.get("level", 0)
            if isinstance(levels, bool) or not isinstance(levels, int | dict):
                raise UserError(f"{who}: curriculum.level must be a number or a mapping by attribute, got {levels!r}")
        self.generators[name] = Generator(name, seed=self.seed, config=config or {}, levels=levels)
        self.weights[name] = float(weight)
        if curriculum is not None:
            self.ladders[name] = Ladder(
                who, advance_at=curriculum.get("advance_at"), window=curriculum.get("window", 64)
            )


class _Problems(Sequence[Problem]):
    """A split, generated item by item."""

    def __init__(self, task: ReasoningGym, split: Split) -> None:
        self.task, self.split = task, split

    def __len__(self) -> int:
        return self.task.sizes[self.split]

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self.task.problem(self.split, i) for i in range(len(self))[index]]
        return self.task.problem(self.split, range(len(self))[index])


def _require_library() -> None:
    try:
        import reasoning_gym  # noqa: F401 - imported to know that it is there
    except ImportError as error:
        raise UserError(
            "task 'reasoning_gym' needs the package reasoning-gym: pip install reasoning-gym (one of its dependencies "
            f"is compiled on installation and needs a C compiler); importing it said: {error}"
        ) from error


def _known_keys(who: str, options: dict[str, Any], known: Sequence[str]) -> None:
    for key in options:
        if key not in known:
            raise UserError(
                f"{who} has no option '{key}'; expected {', '.join(known)} (a generator's own go in config)"
            )


def _of_all_ranks(seen: list[tuple[str, int, bool]]) -> list[tuple[str, int, bool]]:
    """What every rank saw, in rank order, so that all ranks climb together."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return seen
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, seen)
    return [item for part in gathered for item in part]
