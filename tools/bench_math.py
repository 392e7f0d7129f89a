r"""How fast `lit-reason-math` judges typical pairs of answers, against math-verify alone, and whether they agree.

    python tools/bench_math.py                      # 1,200 pairs, about a minute on one core
    python tools/bench_math.py --pairs 4000 --seed 7

Half of the pairs are right, often written differently than the gold answer, half are wrong. The shares of the kinds are
those of `KINDS`. Both judge the same pairs in the same process, in alternating rounds of 100; golds hardly repeat, so
that remembering them gains little. math-verify gets what its documentation asks for: `verify(parse(f"${gold}$"),
parse(f"${answer}$"))`. Needs the distribution in plugins/lit-reason-math.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from lit_reason_math import grade, quick_grade
from math_verify import parse, verify

Pair = tuple[str, str]
Row = tuple[str, str, str, bool]

LETTERS = "abkmnpqrtuxyz"


def number(r: random.Random) -> int:
    return r.choice([r.randint(-20, 20), r.randint(-999, 999), r.randint(0, 99), r.randint(0, 10**6)])


def fraction(r: random.Random) -> Fraction:
    value = Fraction(r.randint(-60, 60) or 7, r.randint(2, 24))
    return value if value.denominator > 1 else value + Fraction(1, 2)


def latex(value: Fraction | int, r: random.Random) -> str:
    """A number in one of the ways people write it."""
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    sign, p, q = "-" if value < 0 else "", abs(value.numerator), value.denominator
    ways = [
        f"{sign}\\frac{{{p}}}{{{q}}}",
        f"{sign}\\dfrac{{{p}}}{{{q}}}",
        f"{sign}{p}/{q}",
        f"\\frac{{{sign}{p}}}{{{q}}}",
    ]
    return r.choice(ways)


def integer(r: random.Random, right: bool) -> Pair:
    n = number(r)
    if right:
        return str(n), r.choice([str(n), str(n), f"{n}.0", f" {n} ", f"{n}.", f"\\${n}" if n >= 0 else str(n)])
    return str(n), str(r.choice([n + r.randint(1, 9), -n if n else 5, n * 10 or 3]))


def thousands(r: random.Random, right: bool) -> Pair:
    n = r.randint(1_000, 9_999_999)
    return str(n), f"{n:,}" if right else f"{n + r.choice([1, 10, -100]):,}"


def unit(r: random.Random, right: bool) -> Pair:
    n = r.randint(1, 500)
    texts = ("\\text{ cm}", " cm", "\\text{ miles}", "^\\circ", " meters", "\\text{ dollars}", "\\%", " hours")
    gold = str(n) if r.random() < 0.5 else f"{n}{r.choice(texts)}"
    return gold, f"{n if right else n + 1}{r.choice(texts)}"


def decimal(r: random.Random, right: bool) -> Pair:
    value = r.randint(-9_999, 9_999) / r.choice([10, 100, 1000])
    if right:
        return str(value), r.choice([str(value), f"{value:.4f}", latex(Fraction(str(value)), r)])
    return str(value), str(round(value + r.choice([0.1, -0.01, 1]), 3))


def rational(r: random.Random, right: bool) -> Pair:
    value = fraction(r)
    if right:
        k = r.randint(2, 5)
        scaled = f"\\frac{{{k * value.numerator}}}{{{k * value.denominator}}}"
        return latex(value, r), r.choice([latex(value, r), latex(value, r), scaled])
    return latex(value, r), latex(r.choice([1 / value, -value, value + Fraction(1, 12)]), r)


def percentage(r: random.Random, right: bool) -> Pair:
    n = r.randint(1, 99)
    if right:
        return f"{n}\\%", r.choice([f"{n}\\%", f"{n}%", str(n), f"{n / 100}", f"{n}\\text{{ percent}}"])
    return f"{n}\\%", r.choice([f"{n + 1}\\%", f"{n / 10}", f"{n + 3}"])


def surd(r: random.Random, right: bool) -> Pair:
    a, b, n = r.randint(2, 9), r.randint(1, 9), r.choice([2, 3, 5, 6, 7, 10])
    shapes = [
        (f"{a}\\sqrt{{{n}}}", f"\\sqrt{{{a * a * n}}}", f"{a}\\sqrt{{{n + 1}}}"),
        (f"{b}+{a}\\sqrt{{{n}}}", f"{a}\\sqrt{{{n}}} + {b}", f"{b}-{a}\\sqrt{{{n}}}"),
        (f"\\frac{{\\sqrt{{{n}}}}}{{{n}}}", f"\\frac{{1}}{{\\sqrt{{{n}}}}}", f"\\frac{{\\sqrt{{{n}}}}}{{{n + 1}}}"),
        (
            f"\\frac{{{b}+\\sqrt{{{n}}}}}{{{a}}}",
            f"\\dfrac{{\\sqrt{n} + {b}}}{{{a}}}",
            f"\\frac{{{b}+\\sqrt{{{n}}}}}{{{a + 1}}}",
        ),
    ]  # fmt: skip
    gold, same, other = r.choice(shapes)
    return gold, r.choice([gold, same]) if right else other


def circle(r: random.Random, right: bool) -> Pair:
    a, b = r.randint(2, 20), r.randint(2, 12)
    shapes = [
        (f"{a}\\pi", f"{a} \\cdot \\pi", f"{a + 1}\\pi"),
        (f"\\frac{{{a}\\pi}}{{{b}}}", f"{a}\\pi/{b}", f"\\frac{{{b + a}\\pi}}{{{b}}}"),
        (f"{a * b} + {b}\\pi", f"{b}(\\pi + {a})", f"{b} + {a * b}\\pi" if a > 1 else f"{a}\\pi"),
    ]
    gold, same, other = r.choice(shapes)
    return gold, r.choice([gold, same]) if right else other


def point(r: random.Random, right: bool) -> Pair:
    items = [latex(r.choice([number(r), fraction(r)]), r) for _ in range(r.choice([2, 2, 3]))]
    gold = f"({', '.join(items)})"
    if right:
        return gold, r.choice([gold, gold.replace(", ", ","), f"\\left({', '.join(items)}\\right)"])
    return gold, f"({', '.join([*items[:-1], str(number(r) + 1000)])})"


def collection(r: random.Random, right: bool) -> Pair:
    items = r.sample(range(-30, 30), r.randint(2, 4))
    gold = ", ".join(map(str, items))
    gold = gold if r.random() < 0.5 else f"\\{{{gold}\\}}"
    if right:
        r.shuffle(items)
    else:
        items[-1] += 100
    text = r.choice([", ", ","]).join(map(str, items))
    return gold, r.choice([text, f"\\{{{text}\\}}", f"\\left\\{{{text}\\right\\}}"])


def interval(r: random.Random, right: bool) -> Pair:
    low = r.choice([str(r.randint(-20, 0)), "-\\infty", latex(Fraction(-r.randint(1, 9), 2), r)])
    high = r.choice([str(r.randint(1, 20)), "\\infty", f"{r.randint(1, 5)}\\sqrt{{2}}"])
    left, close = "(" if "infty" in low else r.choice("(["), ")" if "infty" in high else r.choice(")]")
    gold = f"{left}{low}, {high}{close}"
    if right:
        return gold, r.choice([gold, gold.replace(", ", ","), f"\\left{left}{low},{high}\\right{close}"])
    return gold, f"{left}{low}, {r.randint(21, 40)}{close}"


def assignment(r: random.Random, right: bool) -> Pair:
    name, value = r.choice(LETTERS), r.choice([number(r), fraction(r)])
    gold, other = latex(value, r), latex(Fraction(value) + 1, r)
    shown = gold if right else other
    return r.choice([gold, f"{name} = {gold}"]), r.choice([f"{name}={shown}", shown, f"{name} = {shown}"])


def line(r: random.Random, right: bool) -> Pair:
    a, b = r.randint(2, 9), r.randint(1, 20)
    gold = f"y = {a}x + {b}"
    if right:
        return gold, r.choice([gold, f"y={b}+{a}x", f"y - {b} = {a}x", f"{a}x+{b}=y"])
    return gold, r.choice([f"y = {a + 1}x + {b}", f"y={a}x-{b}"])


def polynomial(r: random.Random, right: bool) -> Pair:
    a, b, x = r.randint(1, 9), r.randint(1, 9), r.choice("xyznt")
    shapes = [
        (f"{x}^2+{a + b}{x}+{a * b}", f"({x}+{a})({x}+{b})", f"{x}^2+{a + b}{x}-{a * b}"),
        (f"{a}{x}^3-{b}{x}", f"-{b}{x} + {a}{x}^{{3}}", f"{a}{x}^3+{b}{x}"),
        (f"\\frac{{{x}({x}+{a})}}{{2}}", f"\\frac{{{x}^2+{a}{x}}}{{2}}", f"\\frac{{{x}({x}-{a})}}{{2}}"),
        (f"{a}({x}-{b})^2", f"{a}{x}^2-{2 * a * b}{x}+{a * b * b}", f"{a}({x}+{b})^2"),
    ]
    gold, same, other = r.choice(shapes)
    return gold, r.choice([gold, same]) if right else other


def word(r: random.Random, right: bool) -> Pair:
    words = ["Yes", "No", "even", "odd", "Monday", "ellipse", "Evelyn", "no solution"]
    gold = r.choice(words)
    shown = gold if right else r.choice([w for w in words if w != gold])
    return r.choice([gold, f"\\text{{{gold}}}"]), r.choice([shown, f"\\text{{{shown}}}"])


def transcendental(r: random.Random, right: bool) -> Pair:
    a, b = r.randint(2, 9), r.randint(2, 9)
    shapes = [
        (f"\\sin({a}x)", f"\\sin {a}x", f"\\cos({a}x)"),
        (f"{a}\\ln {b}", f"\\ln {b} \\cdot {a}", f"{a}\\ln {b + 1}"),
        (f"e^{{{a}x}}", f"(e^{{x}})^{{{a}}}", f"e^{{{b + a}x}}"),
        (f"\\log_2 {b}", f"\\log_{{2}}({b})", f"\\log_{b} 2" if b > 2 else "0"),
        (f"\\frac{{{a}!}}{{{b}}}", f"{a}!/{b}", f"{a}!"),
        (f"\\begin{{pmatrix}} {a} & 0 \\\\ 1 & {b} \\end{{pmatrix}}",) * 2
        + (f"\\begin{{pmatrix}} {a} & 1 \\\\ 1 & {b} \\end{{pmatrix}}",),
    ]
    gold, same, other = r.choice(shapes)
    return gold, r.choice([gold, same]) if right else other


KINDS: dict[Callable[[random.Random, bool], Pair], int] = {
    integer: 28, rational: 12, decimal: 7, thousands: 4, unit: 5, percentage: 5, surd: 8, circle: 5, point: 6,
    collection: 5, interval: 5, assignment: 4, line: 1, polynomial: 3, word: 1, transcendental: 1,
}  # fmt: skip
"""Share of each kind in percent, near what the answers of gsm8k, MATH and DeepMath look like taken together."""


def pairs(count: int, seed: int) -> list[Row]:
    """(kind, gold, answer, meant to be right), the same for the same seed."""
    r = random.Random(seed)
    kinds = r.choices(list(KINDS), list(KINDS.values()), k=count)
    made = []
    for kind in kinds:
        right = r.random() < 0.5
        made.append((kind.__name__, *kind(r, right), right))
    return made


class Report:
    """What came of the rounds."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {"ours": [], "alone": []}
        self.differ: list[str] = []
        self.unlike: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.slow: Counter[str] = Counter()
        self.right = 0

    def round(self, chunk: list[Row], judges: dict[str, Callable[[str, str], bool]], order: Sequence[str]) -> None:
        """Both judge the same pairs, one after the other."""
        verdicts = {}
        for name in order:
            begun = time.process_time()
            verdicts[name] = [judges[name](gold, answer) for _, gold, answer, _ in chunk]
            self.rates[name].append(len(chunk) / (time.process_time() - begun))
        for (kind, gold, answer, right), ours, theirs in zip(chunk, verdicts["ours"], verdicts["alone"], strict=True):
            self.kinds[kind] += 1
            self.right += right
            self.slow[kind] += quick_grade(gold, answer) is None
            shown = f"{kind} | {gold} | {answer} | meant {right}, ours {ours}, math-verify {theirs}"
            if ours != theirs:
                self.differ.append(shown)
            if ours != right:
                self.unlike.append(shown)

    def show(self) -> None:
        total = self.kinds.total()
        print(f"{total} pairs, {self.right} of them right; kinds (left to math-verify):")
        print("  " + ", ".join(f"{kind} {count} ({self.slow[kind]})" for kind, count in self.kinds.most_common()))
        for name, rates in self.rates.items():
            overall = len(rates) / sum(1 / rate for rate in rates)
            print(f"{name:>6}: median {statistics.median(rates):8.1f} pairs/s a core, over all {overall:8.1f}")
        ratio = statistics.median(self.rates["ours"]) / statistics.median(self.rates["alone"])
        print(f"ratio of medians {ratio:.1f}; left to math-verify: {self.slow.total() / total:.1%}")
        print(f"verdicts that differ: {len(self.differ)}; verdicts unlike the meaning: {len(self.unlike)}")
        for row in (*self.differ[:20], *self.unlike[:10]):
            print("  ", row)


def alone(gold: str, answer: str) -> bool:
    """math-verify by itself, its timeouts off as well."""
    found = parse(f"${answer}$", parsing_timeout=None)
    return bool(verify(parse(f"${gold}$", parsing_timeout=None), found, timeout_seconds=None))


def main() -> None:
    parser = argparse.ArgumentParser(description="Typical pairs judged by lit-reason-math and by math-verify alone.")
    parser.add_argument("--pairs", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    judges = {"ours": lambda gold, answer: grade(gold, answer).value == 1.0, "alone": alone}
    Report().round(pairs(100, options.seed + 1), judges, ("ours", "alone"))  # the parser learns its grammar as it reads
    report = Report()
    data = pairs(options.pairs, options.seed)
    for number, start in enumerate(range(0, len(data), 100)):
        report.round(data[start : start + 100], judges, ("ours", "alone") if number % 2 else ("alone", "ours"))
    report.show()


if __name__ == "__main__":
    main()
