"""One reasoning_gym generator: its options checked, its items on demand, its difficulty in levels.

Training and held-out problems never meet, for two reasons. Most generators draw item i from `Random(seed + i)`, so two
seeds closer than the size share items; seeds are therefore laid out in two halves of the 32-bit range, training below
2³¹ and held-out problems above it. And since a generator of short sums draws the same sum again whatever the seed, a
question belongs to the split that its hash says, and is drawn again where it came up in the other one.

Level 0 is the declared difficulty; each further level is one step up in every attribute of the generator's curriculum.
Item i of a split is a pure function of (seed, i, level).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import io
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from lit_reason.task import Split
from lit_reason.types import UserError

MAX_SIZE = 1_000_000
"""Problems a split may have; also the distance between the seeds of two attempts at one item."""

_ATTEMPTS = 64  # draws for one item until the question is of its split: a held-out one takes 4 on average
_HELD_OUT_SHARE = 4  # one question in so many is held out
_HALF = 2**31  # numpy, which some generators use, takes seeds below 2³²
_STRIDE = _ATTEMPTS * MAX_SIZE + 1  # neighbouring seeds of the user share no draw

# These draw something for every item as soon as they are made: cut into pieces, each with a seed of its own.
_PIECES = {"acre": 50, "gsm_symbolic": 10_000, "list_functions": 10_000, "word_ladder": 10_000}
_KEPT_PIECES = 16


class Generator:
    """Items of one generator, at any level.

    Args:
        name: as reasoning_gym registers it.
        seed: of the user, any integer.
        config: the generator's own options.
        levels: where the curriculum starts: one level for all its attributes, or a level by attribute (others keep
            their lowest); None uses no curriculum.

    Raises:
        UserError: the generator is unknown, or refuses its options.
    """

    def __init__(
        self, name: str, *, seed: int, config: Mapping[str, Any], levels: int | Mapping[str, int] | None = None
    ) -> None:
        self.name = name
        self.seed = seed
        self.config = dict(config)
        self._check_names()
        self.levels = None if levels is None else self._starting_levels(levels)
        self._pieces: dict[tuple[int, int], Any] = {}
        self._scorers: dict[int, Any] = {}
        self._accepted: dict[int, bool] = {}
        self.scorer(0)  # refuses wrong options; so does the first item, for generators that check nothing when made
        self.entry("train", 0, 0)

    def entry(self, split: Split, index: int, level: int) -> dict[str, Any]:
        """Item `index` of a split at a level: its question, gold answer and metadata.

        Raises:
            UserError: the generator fails on this item and on every replacement.
        """
        start = (self.seed * _STRIDE) % (_HALF - _ATTEMPTS * MAX_SIZE) + (_HALF if split == "validation" else 0)
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            try:
                entry = self._draw(start, index, attempt, level)
            except UserError:
                raise
            except Exception as error:  # noqa: BLE001 - a generator raises whatever an unlucky draw ran into
                failure = error
                self._pieces.clear()  # some are of no use after a failure
            else:
                if _split_of(entry["question"]) == split:
                    return entry
        reason = (
            f"it makes too few different questions to keep some for {split}"
            if failure is None
            else f"{type(failure).__name__}: {_one_line(failure)}"
        )
        raise UserError(
            f"{self._who()} cannot make {split} item {index} at level {level}: {reason}. "
            "Change its config or its curriculum"
        ) from failure

    def scorer(self, level: int) -> Any:  # noqa: ANN401 - a ProceduralDataset; the library ships no types
        """What scores answers to items of a level, through its `score_answer(answer, entry)`."""
        if level not in self._scorers:
            with _apart(0):
                self._scorers[level] = self._make(0, 1, level)
        return self._scorers[level]

    def has_level(self, level: int) -> bool:
        """Whether the curriculum goes on to `level`: an attribute still rises, and the generator accepts the step."""
        if level not in self._accepted:
            self._accepted[level] = self._accepts(level)
        return self._accepted[level]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made again on demand, word lists above all."""
        return {**self.__dict__, "_pieces": {}, "_scorers": {}}

    def _accepts(self, level: int) -> bool:
        if self.levels is None or self._levels_at(level) == self._levels_at(level - 1):
            return False
        try:
            self.entry("train", 0, level)
        except UserError:  # some curricula of the library step over the bounds of their own generator
            return False
        return True

    def _draw(self, start: int, index: int, attempt: int, level: int) -> dict[str, Any]:
        """One attempt at an item, from the seed start + attempt * MAX_SIZE + index."""
        offset = attempt * MAX_SIZE + index
        size = _PIECES.get(self.name, _ATTEMPTS * MAX_SIZE)
        first = start + offset // size * size
        key = (first, level)
        with _apart(start + offset):
            if key not in self._pieces:
                if len(self._pieces) >= _KEPT_PIECES:
                    del self._pieces[next(iter(self._pieces))]
                self._pieces[key] = self._make(first, size, level)
            entry: dict[str, Any] = self._pieces[key][offset % size]
        return entry

    def _make(self, seed: int, size: int, level: int) -> Any:  # noqa: ANN401 - as for `scorer`
        """The library's dataset object at a level."""
        from reasoning_gym.factory import DATASETS

        dataset_class, config_class = DATASETS[self.name]
        options = {**self.config, "seed": seed, "size": size}
        try:
            config = config_class(**options) if self.levels is None else self._configured(options, level)
            if hasattr(config, "validate"):
                config.validate()
            return dataset_class(config=config)
        except Exception as error:
            at = "" if self.levels is None else f" at curriculum level {level} ({self._levels_at(level)})"
            raise UserError(
                f"{self._who()} refuses its config {self.config}{at}: {type(error).__name__}: {_one_line(error)}"
            ) from error

    def _check_names(self) -> None:
        """The generator exists, and its config names only options it has."""
        from reasoning_gym.factory import DATASETS

        if self.name == "composite":
            raise UserError(f"{self._who()}: list the generators under 'datasets' instead, each with its weight")
        if self.name not in DATASETS:
            raise UserError(
                f"task 'reasoning_gym': datasets names no generator '{self.name}'{_near(self.name, DATASETS)}; "
                "reasoning_gym.factory.DATASETS lists all"
            )
        known = [f.name for f in dataclasses.fields(DATASETS[self.name][1]) if f.name not in ("seed", "size")]
        for option in self.config:
            if option in ("seed", "size"):
                raise UserError(f"{self._who()}: set seed, train_size and validation_size of the task, not '{option}'")
            if option not in known:
                raise UserError(
                    f"{self._who()} has no option '{option}'{_near(option, known)}; "
                    f"its options: {', '.join(known) or 'none'}"
                )

    def _curriculum(self) -> Any:  # noqa: ANN401 - a BaseCurriculum; the library ships no types
        from reasoning_gym.factory import create_curriculum

        return create_curriculum(self.name)

    def _starting_levels(self, levels: int | Mapping[str, int]) -> dict[str, int]:
        """Level 0: the level of each attribute, checked."""
        from reasoning_gym.factory import has_curriculum

        if not has_curriculum(self.name):
            raise UserError(f"{self._who()} has no curriculum: leave the option out, and set its config instead")
        attributes = self._curriculum().attributes
        top = {name: len(attribute.levels) - 1 for name, attribute in attributes.items()}
        shown = ", ".join(f"{name} (0 to {highest})" for name, highest in top.items())
        chosen = dict.fromkeys(top, levels) if isinstance(levels, int) else dict(levels)
        for name, level in chosen.items():
            if name not in top:
                raise UserError(f"{self._who()}: curriculum.level names no attribute '{name}'; attributes: {shown}")
            if isinstance(level, bool) or not isinstance(level, int) or level < 0:
                raise UserError(
                    f"{self._who()}: curriculum.level must count from 0, got {level!r}; attributes: {shown}"
                )
            if level > (max(top.values()) if isinstance(levels, int) else top[name]):
                raise UserError(f"{self._who()}: curriculum.level {level} is too high; attributes: {shown}")
        for name, attribute in attributes.items():
            fields = [getattr(attribute, f, None) for f in ("field_name", "lower_field_name", "upper_field_name")]
            if twice := [field for field in fields if field in self.config]:
                raise UserError(
                    f"{self._who()}: '{twice[0]}' is set by config and by the curriculum's attribute '{name}'; keep one"
                )
        return {name: min(chosen.get(name, 0), highest) for name, highest in top.items()}

    def _levels_at(self, level: int) -> dict[str, int]:
        """The level of each attribute, `level` steps above the start; an attribute at its top stays there."""
        attributes = self._curriculum().attributes
        start = self.levels or {}
        return {name: min(start[name] + level, len(attributes[name].levels) - 1) for name in start}

    def _configured(self, options: Mapping[str, Any], level: int) -> Any:  # noqa: ANN401 - the generator's config class
        # the library's own ways to step a curriculum and rebuild its datasets fail; making a new one does not
        curriculum = self._curriculum()
        for name, value in self._levels_at(level).items():
            curriculum.set_attr_level(name, value)
        return curriculum.generate_configuration(dict(options))

    def _who(self) -> str:
        return f"task 'reasoning_gym': generator '{self.name}'"


@contextmanager
def _apart(seed: int) -> Iterator[None]:
    """Keep the library to itself: some of it draws from the global random generators, some of it prints."""
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state to keep is global
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - likewise
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002 - likewise


def _near(name: str, known: Any) -> str:  # noqa: ANN401 - any collection of names
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _split_of(question: str) -> Split:
    """Where a question belongs, whoever draws it."""
    digest = hashlib.blake2b(question.encode(), digest_size=1).digest()
    return "validation" if digest[0] % _HELD_OUT_SHARE == 0 else "train"
