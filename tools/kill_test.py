"""Kills runs at random moments, resumes them, and compares them bit for bit with a run that nobody touched.

    python tools/kill_test.py                        # SFT, GRPO, RejectionSampling: 20 kills each
    python tools/kill_test.py --kills 3 --modules GRPO --ranks 2

Each module trains a few steps on nano, saving after every step. A trial starts the run again in an empty folder and
kills its processes (SIGKILL) at a random moment: in the midst of a rollout, of an update, of a save. It goes on with
--resume until the run is through, and is killed again now and then. In the end metrics.csv but for the clocks,
samples.jsonl, accepted.jsonl, final weights and all state beside them must be those of the untouched run. TMPDIR lies
on another file system. Prints a table; the exit code is 1 if any trial differs.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it: what is forked has no pool of threads

import torch

import lit_reason.cli  # noqa: F401 - imported once, for all runs
from lit_reason import __main__ as cli

CONFIG = """\
seed_everything: 3
model:
  class_path: {module}
  init_args:
    policy: {{model: nano}}
    {options}
    sampling: {{max_new_tokens: 12}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-3}}}}
data:
  task: {{nano_traces: {{size: 20}}}}
  prompts_per_step: 4
  validation_problems: 4
trainer: {{max_steps: 8, val_check_interval: 3, accelerator: cpu, devices: {ranks}}}
checkpoints: {{every_n_steps: 1}}
"""
REWARDS = "rewards: [accuracy, {format: {strict: false, weight: 0.5}}]\n    group_size: 3\n    validation_samples: 2"
OPTIONS = {
    "SFT": "validation_samples: 2",
    "GRPO": REWARDS,
    "RejectionSampling": REWARDS + "\n    threshold: 0.3\n    minibatches: 2\n    restart: true",
}
CLOCKS = ("seconds", "tokens_per_second", "seconds_per_item")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="trials of each module, each with one kill or more")
    parser.add_argument("--modules", nargs="+", default=list(OPTIONS), choices=OPTIONS)
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run, over gloo")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary folder by default")
    other = "/dev/shm"  # noqa: S108 - TMPDIR is what it stands for
    parser.add_argument("--tmpdir", default=other, help="TMPDIR of the runs, on another file system than the folder")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kill_test-"))
    folder.mkdir(parents=True, exist_ok=True)
    moments = random.Random(arguments.seed)
    failed = 0
    print(f"{'module':18} {'trial':>5} {'kills':>5} {'killed in':28} {'result'}")
    for module in arguments.modules:
        config = folder / f"{module}.yaml"
        config.write_text(CONFIG.format(module=module, options=OPTIONS[module], ranks=arguments.ranks))
        whole = folder / f"{module}-whole"
        shutil.rmtree(whole, ignore_errors=True)
        if (code := Run(config, whole, arguments.tmpdir, ranks=arguments.ranks).wait()) != 0:
            raise SystemExit(f"the untouched run of {module} ended with exit code {code}")
        seconds = time.time() - (whole / "config.yaml").stat().st_mtime
        for trial in range(arguments.kills):
            run = folder / f"{module}-{trial}"
            shutil.rmtree(run, ignore_errors=True)
            kills = killed_run(
                partial(Run, config, run, arguments.tmpdir, ranks=arguments.ranks), run, moments, seconds
            )
            differences = compare(whole, run)
            failed += bool(differences)
            said = ", ".join(f"{place} {count}" for place, count in kills.items())
            result = "; ".join(differences) or "identical"
            print(f"{module:18} {trial:5} {kills.total():5} {said:28} {result}", flush=True)
            if not differences:
                shutil.rmtree(run)
    print("all identical" if not failed else f"{failed} differ; their folders are kept in {folder}")
    return int(failed > 0)


class Run:
    """A run whose processes can be killed together."""

    def __init__(self, config: Path, folder: Path, tmpdir: str, *, ranks: int) -> None:
        options = ["fit", "--config", str(config), "--run_dir", str(folder), "--resume"]
        self.code: int | None = None
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        environment = {**os.environ, "TMPDIR": tmpdir, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if ranks > 1:  # as a launcher of its own would start them
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        self.pids: list[int] = []
        for rank in range(ranks):
            own = {"LOCAL_RANK": str(rank), "NODE_RANK": "0"} if ranks > 1 else {}
            self.pids.append(fork(options, environment | own, log))
        os.close(log)

    def over(self) -> bool:
        """Whether all have ended, and `code` says how."""
        for pid in list(self.pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.pids.remove(pid)
                self.code = self.code or os.waitstatus_to_exitcode(status)
        return not self.pids

    def wait(self) -> int:
        end = time.monotonic() + 600
        while not self.over():
            if time.monotonic() > end:
                self.kill()
                raise SystemExit("a run hangs")
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        for pid in self.pids:
            os.killpg(pid, signal.SIGKILL)
        while not self.over():
            time.sleep(0.001)


def fork(options: list[str], environment: dict[str, str], log: int) -> int:
    """Run lit-reason in a copy of this process, which has imported everything."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(environment)
            sys.argv = ["lit-reason", *options]
            code = cli.main(options)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def killed_run(start: Callable[[], Run], folder: Path, moments: random.Random, length: float) -> Counter[str]:
    """Start, kill, resume until it is through; where the kills met it.

    Args:
        start: starts the run, or resumes it.
        folder: of the run.
        moments: when to kill.
        length: seconds from the beginning of loading to the end.
    """
    kills: Counter[str] = Counter()
    while True:
        run = start()
        wanted = kills.total() == 0 or (kills.total() < 3 and moments.random() < 0.3)
        if not wanted:
            if (code := run.wait()) != 0:
                raise SystemExit(f"a resumed run ended with exit code {code}: see {folder.with_suffix('.log')}")
            return kills
        config = folder / "config.yaml"
        written = config.stat().st_mtime_ns if config.exists() else 0
        while not run.over() and not (config.exists() and config.stat().st_mtime_ns > written):
            time.sleep(0.002)  # until it begins to load
        time.sleep(moments.random() * length)
        if moments.random() < 0.3:  # in the midst of a save
            while not run.over() and not drafts(folder):
                time.sleep(0.0002)
        if run.over():
            if run.code != 0:
                raise SystemExit(f"a run ended with exit code {run.code}: see {folder.with_suffix('.log')}")
            if kills.total():
                return kills
            shutil.rmtree(folder)  # it was through before anybody could kill it
            continue
        place = "save" if drafts(folder) else "step"
        run.kill()
        kills[place] += 1


def drafts(run: Path) -> bool:
    return any((run / "checkpoints").glob(".*.part"))


def compare(whole: Path, run: Path) -> list[str]:
    """What is not the same in two runs."""
    found = []
    for name in sorted({path.name for folder in (whole, run) for path in folder.glob("*.jsonl")}):
        texts = [(folder / name).read_bytes() if (folder / name).exists() else None for folder in (whole, run)]
        if texts[0] != texts[1]:
            found.append(name)
    rows = [metrics(folder / "metrics.csv") for folder in (whole, run)]
    if rows[0] != rows[1]:
        found.append("metrics.csv")
    weights = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, run)]
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "lit_reason", "ReasoningData")
    return found + [part for part in parts if not same(*(checkpoint[part] for checkpoint in weights))]


def metrics(path: Path) -> list[dict[str, str]]:
    """Rows but for what clocks say."""
    with path.open(newline="") as file:
        return [
            {name: value for name, value in row.items() if not name.endswith(CLOCKS)} for row in csv.DictReader(file)
        ]


def same(one: object, other: object) -> bool:
    """Whether two pieces of plain data are equal, tensors to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


if __name__ == "__main__":
    sys.exit(main())
