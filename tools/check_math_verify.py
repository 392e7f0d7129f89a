r"""Does `lit-reason-math` agree with math-verify on math-verify's own test cases?

    git clone https://github.com/huggingface/Math-Verify /tmp/Math-Verify
    python tools/check_math_verify.py /tmp/Math-Verify

Runs the tests of the checkout on the installed math-verify and listens: each comparison of two texts that they make is
put to `grade` as well. What is not comparable is counted: comparisons of sympy objects, of texts read as multiple
choice, or with the option `allow_set_relation_comp`, which `grade` lacks. Some tests switch the extraction of LaTeX or
of plain numbers off, `grade` always has both: where the verdicts differ, math-verify's with both counts. Exits with 1
when a difference is not one of the known. Needs the distribution in plugins/lit-reason-math, and pytest.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import math_verify
import math_verify.grader
import math_verify.parser
import pytest
from lit_reason_math import grade, quick_grade
from lit_reason_math.guards import too_big

PARSE, VERIFY = math_verify.parse, math_verify.verify


class Parsed(list[Any]):
    """What math-verify made of a text, and the text."""

    def __init__(self, found: list[Any], text: str, kinds: set[str]) -> None:
        super().__init__(found)
        self.text, self.kinds = text, kinds


class Listener:
    """Notes every comparison that a test makes; a pytest plugin."""

    def __init__(self) -> None:
        self.test = ""
        self.comparisons: list[tuple[str, Any, Any, dict[str, Any], bool]] = []
        self.outcomes: Counter[str] = Counter()

    def parse(self, pred: str, *args: Any, **options: Any) -> list[Any]:  # noqa: ANN401 - handed through
        configs = options.get("extraction_config") or (args[0] if args else ())
        return Parsed(PARSE(pred, *args, **options), pred, {type(config).__name__ for config in configs})

    def verify(self, gold: Any, target: Any, *args: Any, **options: Any) -> bool:  # noqa: ANN401 - handed through
        verdict = VERIFY(gold, target, *args, **options)
        self.comparisons.append((self.test, gold, target, options, verdict))
        return verdict

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.test = nodeid.rpartition("/")[2]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.outcomes[report.outcome] += 1


def why_not(gold: Any, target: Any, options: dict[str, Any]) -> str | None:  # noqa: ANN401 - of any kind
    """Why a comparison cannot be put to `grade`, None when it can."""
    if not isinstance(gold, Parsed) or not isinstance(target, Parsed):
        return "compares sympy objects"
    if "StringExtractionConfig" in gold.kinds | target.kinds:
        return "reads multiple choice"
    if options.get("allow_set_relation_comp"):
        return "allow_set_relation_comp"
    return None


def reason(gold: Parsed, target: Parsed) -> str:
    """Why `grade` says something else, on purpose; the README of the distribution has them in words."""
    texts = (gold.text, target.text)
    if any(too_big(text) for text in texts):
        return "too big"
    if any(text.count("\\boxed") > 1 for text in texts):
        return "several boxes"
    if any(re.fullmatch(r"\d+,\d{1,2}", text) for text in texts):
        return "decimal comma"
    return "unexplained"


def main() -> int:
    parser = argparse.ArgumentParser(description="Agreement with math-verify on its own test cases.")
    parser.add_argument("checkout", type=Path, help="a checkout of math-verify's repository")
    checkout = parser.parse_args().checkout.resolve()
    listener = Listener()
    for module in (math_verify, math_verify.parser):
        module.parse = listener.parse
    for module in (math_verify, math_verify.grader):
        module.verify = listener.verify
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)
    pytest.main(["-q", "-p", "no:cacheprovider", "-c", os.devnull, str(checkout / "tests")], plugins=[listener])

    apart: Counter[str] = Counter()
    agreed = quick = both = 0
    differences = []
    for test, gold, target, options, verdict in listener.comparisons:
        if (why := why_not(gold, target, options)) is not None:
            apart[why] += 1
            continue
        told = {"float_rounding": options.get("float_rounding", 6), "strict": options.get("strict", True)}
        judgement = grade(gold.text, target.text, **told)
        quick += quick_grade(gold.text, target.text, **told) is not None
        if (judgement.value == 1.0) == bool(verdict):
            agreed += 1
        elif (judgement.value == 1.0) == VERIFY(PARSE(gold.text), PARSE(target.text)):
            both += 1
        else:
            differences.append((reason(gold, target), test, gold, target, verdict, judgement.status))
    print(f"math-verify's tests: {dict(listener.outcomes)}; comparisons made: {len(listener.comparisons)}")
    print(f"not comparable: {dict(apart)}")
    total = agreed + both + len(differences)
    print(f"agree: {agreed + both} of {total}, {both} of them where the test extracts less; by the fast path: {quick}")
    for why, count in Counter(difference[0] for difference in differences).items():
        print(f"differ, {why}: {count}")
    for why, test, gold, target, verdict, status in sorted(differences, key=lambda d: d[0]):
        shown = (why, test.partition("::")[2][:40], repr(gold.text[:80]), repr(target.text[-80:]), verdict, status)
        print("  ", *shown, sep=" | ")
    return int(any(difference[0] == "unexplained" for difference in differences))


if __name__ == "__main__":
    raise SystemExit(main())
