"""How a side of `bench_grpo.py` hears when to compute and tells what it did.

A side answers every "go" on its standard input with one line of JSON on its standard output: how long the phase took,
how much of that was rollout and reward, and what was done. A phase lasts from the word to the moment the side stands
before the next one, so the trainer's own work between phases counts.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bench_workloads import WORKLOADS, Workload


@dataclass(kw_only=True)
class Job:
    """What the parent asks of a side.

    Attributes:
        workload: a name in `WORKLOADS`.
        folder: the model folder, shared by both sides.
        phases: rollout phases at most.
        threads: of torch.
        seed: of prompts, weights and sampling.
        ours_path: another checkout to import lit_reason from, or None.
        device: "cpu" or "cuda".
        precision: "32-true", or "bf16-mixed".
    """

    workload: str
    folder: str
    phases: int
    threads: int
    seed: int
    ours_path: str | None = None
    device: str = "cpu"
    precision: str = "32-true"

    @property
    def work(self) -> Workload:
        """The workload itself, as it suits the device: a GPU takes a whole minibatch at once."""
        work = WORKLOADS[self.workload]
        if self.device == "cpu":
            return work
        return replace(work, trl_batch=work.completions // work.minibatches, ours_tokens=2**16)


class Turns:
    """Waits for the parent between phases, and tells it about the phase that ended."""

    def __init__(self, device: str) -> None:
        self.gpu = device == "cuda"
        # libraries print to standard output: move the pipe out of their way
        self.pipe = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.report: dict[str, Any] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.begun = 0.0

    def arrive(self) -> None:
        """End the running phase, if there is one, and block until the next may begin; the process ends when told so."""
        gpu = sys.modules["torch"].cuda
        if self.gpu and self.begun:
            gpu.synchronize()
        if self.begun:
            self.report["seconds"] = {"step": time.perf_counter() - self.begun, **self.seconds}
        peak = gpu.max_memory_allocated() if self.gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.report["peak_mb"] = peak / 2**20  # Linux counts in KiB
        print(json.dumps(self.report), file=self.pipe, flush=True)
        if sys.stdin.readline().strip() != "go":
            os._exit(0)  # in the midst of a trainer's loop, with nothing to save
        self.report, self.seconds = {}, defaultdict(float)
        self.begun = time.perf_counter()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time inside as this stage's."""
        start = time.perf_counter()
        yield
        if self.gpu:
            sys.modules["torch"].cuda.synchronize()
        self.seconds[stage] += time.perf_counter() - start

    def done(self, given: list[list[int]], lengths: list[int]) -> None:
        """Note what was worked on: the given tokens of every sequence, in order, and how many tokens each learns.

        Args:
            given: prompts of GRPO; of SFT, where all is given, whole sequences.
            lengths: of the completions, in tokens.
        """
        self.report.setdefault("given", []).extend(given)
        self.report.setdefault("lengths", []).extend(lengths)
