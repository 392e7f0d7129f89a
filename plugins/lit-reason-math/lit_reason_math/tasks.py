r"""`gsm8k`, `math_dataset` and `deepmath`: problems with a mathematical answer, from your own files or the hub.

The core's `dataset` task with another judge, an instruction at the end of each question, and the public data sets as
defaults. Columns are recognised as there: gsm8k's `question` and `answer` (`worked steps #### 72`); MATH's `problem`
and `solution`, whose last `\boxed{…}` is the answer; DeepMath's `question` and `final_answer`. Other columns, such as
`level`, `subject`, `type` or `difficulty`, become the problem's metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lit_reason.task import Split
from lit_reason.tasks.dataset import Dataset, Part
from lit_reason.tasks.judging import Referee
from lit_reason.types import Problem, UserError
from lit_reason_math.grading import quick_grade

INSTRUCTION = "Think between <think> and </think>, then give the answer alone between <answer> and </answer>."


class MathDataset(Dataset):
    r"""Problems with a mathematical answer in the columns of MATH: `problem` and `solution` with a `\boxed{…}`.

    Answers are judged as by the reward `math`, on the spot or by a child process with a deadline; nothing is left out,
    so an answer to an unreadable gold answer scores 0.0. Source: MATH (arXiv 2103.03874).

    Args:
        instruction: ends each question, after a blank line; by default it asks for think and answer tags, "" leaves
            questions as they are. For models tuned on mathematics `Please reason step by step, and put your final
            answer within \boxed{}.` is the custom.
        timeout: seconds a judgement may take before the answer counts as wrong.
        options: of `dataset`, the path of the data first.

    Raises:
        UserError: an option is wrong; when the problems are asked for, that the data is missing or unusable.
    """

    name = "math_dataset"

    def __init__(self, *, instruction: str = INSTRUCTION, timeout: float = 5.0, **options: Any) -> None:  # noqa: ANN401 - typed in the base class
        if not timeout > 0:
            raise UserError(f"task '{self.name}': timeout must be more than 0 seconds, got {timeout}")
        super().__init__(**options)
        self.instruction = instruction
        self._referee = Referee(timeout, "lit_reason_math.referee")

    def problems(self, split: Split) -> Sequence[Problem]:
        self._referee.start()  # a second or two that should not come out of the first hard answer's time
        return super().problems(split)

    def problem(self, part: Part, index: int) -> Problem:
        problem = super().problem(part, index)
        *before, question = problem.prompt
        if self.instruction:
            question = {**question, "content": f"{question['content']}\n\n{self.instruction}"}
        return replace(problem, prompt=[*before, question], scorer=self.score)

    def score(self, problem: Problem, answer: str | None) -> float:
        if problem.answer is None or answer is None:
            return 0.0
        judgement = quick_grade(problem.answer, answer)
        return self._referee.score(problem.answer, answer) if judgement is None else judgement.value or 0.0


class GSM8K(MathDataset):
    """Grade-school problems in the columns of gsm8k: `question`, and `answer` as `worked steps #### 72`.

    Source: arXiv 2110.14168.

    Args:
        path: a file, a folder or a hub id; the hub needs `pip install 'lit-reason[data]'`.
        name: configuration of a hub data set; None: "main" for the default path.
        validation_split: rows to validate on; None: "test" for the default path, unless a fraction is held out.
    """

    name = "gsm8k"

    def __init__(
        self,
        *,
        path: str = "openai/gsm8k",
        name: str | None = None,
        validation_split: str | None = None,
        **options: Any,  # noqa: ANN401 - as above
    ) -> None:
        if path == "openai/gsm8k":
            name = name or "main"
            if options.get("validation_fraction") is None:
                validation_split = validation_split or "test"
        super().__init__(path=path, name=name, validation_split=validation_split, **options)


class DeepMath(MathDataset):
    """Hard problems in the columns of DeepMath-103K: `question`, `final_answer`, `difficulty`.

    Source: arXiv 2504.11456.

    Args:
        path: a file, a folder or a hub id; the hub needs `pip install 'lit-reason[data]'`.
    """

    name = "deepmath"

    def __init__(self, *, path: str = "zwhe99/DeepMath-103K", **options: Any) -> None:  # noqa: ANN401 - likewise
        super().__init__(path=path, **options)
