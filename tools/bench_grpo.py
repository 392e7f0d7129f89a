"""Measure lit-reason against TRL: the same model, prompts, rewards, losses, threads and precision, step by step.

    pip install -e '.[bench]' -c tools/constraints.txt
    python tools/bench_grpo.py --workload W1 W2 --json bench.json

Each side is a process of its own that stays warm; they take turns, so that only one computes at a time and whatever
else the machine does meets both alike. A step is one rollout phase with all its optimizer steps. The first steps are
thrown away. Update seconds are what is left of a step after rollout and reward: old and reference log-probabilities,
losses, optimizer steps and the trainer's own work. The workloads are described in bench_workloads.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench_workloads import WORKLOADS, Workload

SIDES = {"ours": "lit-reason", "trl": "TRL"}
SCRIPT = Path(__file__).with_name("bench_sides.py")
STAGES = ("rollout", "reward", "update")

Step = dict[str, Any]
"""What a side says of one phase; see bench_sides.py."""


class Side:
    """A warm process that makes a step when asked.

    Args:
        name: "ours" or "trl".
        job: what to run, see `bench_sides.Job`.
        threads: of every library in it.
    """

    def __init__(self, name: str, job: dict[str, Any], threads: int) -> None:
        self.name = name
        self.log = Path(job["folder"]) / f"{name}.log"
        command = [sys.executable, str(SCRIPT), name, json.dumps(job)]
        pipe = subprocess.PIPE
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment(threads)
            )

    def __enter__(self) -> Self:
        self.loaded_mb = float(self._read()["peak_mb"])
        return self

    def step(self) -> Step:
        """One phase, from the word to its end."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        step = self._read()
        seconds = step["seconds"]
        seconds["update"] = seconds["step"] - seconds.get("rollout", 0.0) - seconds.get("reward", 0.0)
        return step

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.process.kill()  # it has nothing to save, and would finish its step first
        self.process.wait()

    def _read(self) -> Step:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: {SIDES[self.name]} stopped:\n{self.log.read_text()[-3000:]}")
        step: Step = json.loads(line)
        return step


def environment(threads: int) -> dict[str, str]:
    """The environment of a side: so many threads, and no network."""
    count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return os.environ | count | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(kw_only=True)
class Measured:
    """All measured steps of one side on one workload.

    Attributes:
        side: "ours" or "trl".
        steps: in order.
        loaded_mb: peak resident memory when the first step was about to begin, in MiB.
    """

    side: str
    steps: list[Step]
    loaded_mb: float

    def seconds(self, stage: str) -> list[float]:
        """Seconds of a stage ("step" is the whole phase), for each step."""
        return [step["seconds"].get(stage, 0.0) for step in self.steps]

    @property
    def lengths(self) -> list[int]:
        """Completion lengths of all steps, in tokens."""
        return [length for step in self.steps for length in step["lengths"]]

    def speed(self, stage: str) -> float:
        """Completion tokens a second of a stage, the median over steps; 0 for a stage there is none of."""
        pairs = zip(self.steps, self.seconds(stage), strict=True)
        return statistics.median(sum(step["lengths"]) / seconds if seconds else 0.0 for step, seconds in pairs)

    def summary(self) -> dict[str, Any]:
        """The figures of the report."""
        peak = max(step["peak_mb"] for step in self.steps)
        return {
            "seconds": {stage: statistics.median(self.seconds(stage)) for stage in ("step", *STAGES)},
            "step_min_max": [min(self.seconds("step")), max(self.seconds("step"))],
            "tokens_per_second": {stage: self.speed(stage) for stage in ("step", "rollout", "update")},
            "peak_mb": peak,
            "peak_mb_above_loaded": peak - self.loaded_mb,
            "completions": len(self.lengths),
            "tokens": sum(self.lengths),
            "length": {
                "mean": statistics.mean(self.lengths),
                "median": statistics.median(self.lengths),
                "max": max(self.lengths),
            },
        }


def measure(name: str, sides: Sequence[str], options: argparse.Namespace) -> list[Measured]:
    """Alternate the sides on one workload, warm-up steps left out."""
    steps = WORKLOADS[name].steps if options.steps is None else options.steps
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "workload": name,
            "folder": folder,
            "phases": options.warmup + steps + 1,  # a side reports a phase when it stands before the next
            "threads": options.threads,
            "seed": options.seed,
            "ours_path": options.ours_path,
            "device": options.device,
            "precision": options.precision,
        }
        prepare = [sys.executable, str(SCRIPT), "prepare", json.dumps(job)]
        subprocess.run(prepare, check=True, env=environment(options.threads), stdout=subprocess.DEVNULL)
        with ExitStack() as stack:
            # one after another: loading is not measured, but would disturb
            running = [stack.enter_context(Side(side, job, options.threads)) for side in sides]
            found = [Measured(side=side.name, steps=[], loaded_mb=side.loaded_mb) for side in running]
            for turn in range(options.warmup + steps):
                # who goes first changes, so that neither always follows the other
                for side, measured in list(zip(running, found, strict=True))[:: -1 if turn % 2 else 1]:
                    step = side.step()
                    print(f"{name} {turn} {side.name}: {step['seconds']['step']:.2f} s", file=sys.stderr)
                    if turn >= options.warmup:
                        measured.steps.append(step)
    return found


def compare(ours: Measured, trl: Measured, workload: Workload) -> dict[str, Any]:
    """How much faster we are, and whether both did the same work.

    Returns:
        `ratio`: TRL's median step over ours; `ratio_min_max`: over the pairs of steps; `ratio_per_token`: our median
        tokens a second over TRL's, which is fairer where lengths are drawn; and how the lengths differ.
    """
    ratios = [b / a for a, b in zip(ours.seconds("step"), trl.seconds("step"), strict=True)]
    same_prompts = all(a["given"] == b["given"] for a, b in zip(ours.steps, trl.steps, strict=True))
    if not same_prompts or len(ours.lengths) != len(trl.lengths):
        sys.exit("error: the sides were given different prompts, so their times cannot be compared")
    if workload.fixed and {*ours.lengths, *trl.lengths} != {workload.new_tokens}:
        sys.exit(f"error: completions should all have {workload.new_tokens} tokens, and have not")
    return {
        "ratio": statistics.median(trl.seconds("step")) / statistics.median(ours.seconds("step")),
        "ratio_min_max": [min(ratios), max(ratios)],
        "ratio_per_token": ours.speed("step") / trl.speed("step"),
        "length_difference": None if ours.lengths == trl.lengths else longer(ours.lengths, trl.lengths),
        "longest_of_step": {m.side: [max(step["lengths"]) for step in m.steps] for m in (ours, trl)},
    }


def longer(ours: Sequence[int], trl: Sequence[int]) -> tuple[float, float]:
    """How much longer TRL's completions are than ours on average, and the standard error of that, relative to ours."""
    mean = statistics.mean(ours)
    error = math.sqrt(statistics.variance(ours) / len(ours) + statistics.variance(trl) / len(trl))
    return statistics.mean(trl) / mean - 1, error / mean


def table(results: dict[str, Any]) -> str:
    """The report as Markdown: a row for each side of each workload."""
    heads = ["workload", "side", "s/step (min-max)", *(f"{stage} s" for stage in STAGES)]
    heads += ["tokens/s", "rollout tokens/s", "update tokens/s", "peak MiB (above loaded)", "length mean/median/max"]
    rows = [heads, ["---"] * len(heads)]
    verdicts = []
    for name, result in results.items():
        for side, figures in result["sides"].items():
            seconds, speed, length = figures["seconds"], figures["tokens_per_second"], figures["length"]
            low, high = figures["step_min_max"]
            cells = [name, SIDES[side], f"{seconds['step']:.2f} ({low:.2f}-{high:.2f})"]
            cells += [f"{seconds[stage]:.3f}" for stage in STAGES]
            cells += [f"{speed[stage]:.0f}" for stage in ("step", "rollout", "update")]
            cells += [f"{figures['peak_mb']:.0f} (+{figures['peak_mb_above_loaded']:.0f})"]
            rows.append([*cells, f"{length['mean']:.0f}/{length['median']:.0f}/{length['max']}"])
        if both := result.get("comparison"):
            low, high = both["ratio_min_max"]
            verdicts.append(
                f"- {name} ({result['about']}): TRL takes {both['ratio']:.2f} times as long "
                f"(pairs {low:.2f}-{high:.2f}), {both['ratio_per_token']:.2f} times a token"
            )
            if difference := both["length_difference"]:
                verdicts[-1] += f"; its completions are {difference[0]:+.1%} longer, standard error {difference[1]:.1%}"
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *verdicts])


def main() -> None:
    """Measure the workloads asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["W1", "W2"], metavar="NAME")
    parser.add_argument("--steps", type=int, help="measured steps of each side (default: the workload's own, 5)")
    parser.add_argument("--warmup", type=int, default=2, help="steps thrown away first (default: 2)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (default: 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, random weights and sampling")
    parser.add_argument("--only", choices=SIDES, help="measure one side")
    parser.add_argument("--ours-path", help="import lit_reason from this checkout")
    parser.add_argument("--json", type=Path, help="write every step here too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no side is left computing
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be 1 or more, got {options.steps}")
    if options.only != "ours" and find_spec("trl") is None:
        parser.error("TRL is not installed: pip install -e '.[bench]' -c tools/constraints.txt, or choose --only ours")
    results: dict[str, Any] = {}
    for name in options.workload:
        workload = WORKLOADS[name]
        found = measure(name, [options.only] if options.only else list(SIDES), options)
        results[name] = {
            "about": workload.about,
            "sides": {m.side: m.summary() for m in found},
            "steps": {m.side: [{k: v for k, v in s.items() if k != "given"} for s in m.steps] for m in found},
        }
        if len(found) == len(SIDES):
            results[name]["comparison"] = compare(found[0], found[1], workload)
    print(table(results))
    if options.json is not None:
        packages = [*("torch", "transformers", "lightning"), *(["trl"] if options.only != "ours" else [])]
        machine: dict[str, Any] = {name: version(name) for name in packages} | {"python": platform.python_version()}
        machine |= {"processor": platform.processor(), "cores": os.cpu_count(), "threads": options.threads}
        machine |= {"device": options.device, "precision": options.precision}
        options.json.write_text(json.dumps({"machine": machine, "seed": options.seed, "workloads": results}, indent=1))


if __name__ == "__main__":
    main()
