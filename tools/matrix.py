"""Every module under every strategy that one process can run: step time, peak memory, and whether it learnt.

    python tools/matrix.py --device cpu
    python tools/matrix.py --device cuda --shape smollm-135m --new-tokens 128

A row is a strategy, in a process of its own that trains SFT, GRPO and rejection sampling one after another. Nothing is
downloaded: the model is nano, or SmolLM-135M's architecture with random weights, written to a temporary folder. Time is
the median of the steps after the first. Memory is the most that was allocated on a GPU, and the resident set on a CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_workloads import SMOLLM, Workload, prompts, traces, write_model

MODULES = ("SFT", "GRPO", "RejectionSampling")
SHAPES: dict[str, dict[str, Any] | None] = {"nano": None, "smollm-135m": SMOLLM}
LORA = {"rank": 32, "alpha": 64}
ROWS: dict[str, dict[str, Any]] = {
    "single 32-true": {},
    "single bf16-mixed": {"precision": "bf16-mixed"},
    "single bf16-true": {"precision": "bf16-true"},
    "lora": {"lora": LORA},
    "qlora nf4": {"lora": LORA, "quantization": "nf4"},
    "qlora nf4 bf16-mixed": {"lora": LORA, "quantization": "nf4", "precision": "bf16-mixed"},
    "qlora int8": {"lora": LORA, "quantization": "int8"},
    "fsdp2": {"strategy": "fsdp2"},
    "fsdp2 bf16-mixed": {"strategy": "fsdp2", "precision": "bf16-mixed"},
    "qlora-fsdp2": {"lora": LORA, "quantization": "nf4", "strategy": "fsdp2"},
    "fsdp1": {"strategy": "fsdp"},
}
CUDA_ONLY = ("fsdp1",)
ROW_SECONDS = 600
"""A row that has not ended by then has hung."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="nano")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), help="all that the device can run")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8, help="prompts of a step; SFT learns 4 examples for each")
    parser.add_argument("--group", type=int, default=6, help="completions of a prompt")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row is not None:
        run_row(arguments)
        return
    rows = arguments.rows or [row for row in ROWS if arguments.device == "cuda" or row not in CUDA_ONLY]
    print("| strategy | module | step s | rollout s | update s | peak GiB | learnt |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_model(workload(arguments), model, seed=0)
        for row in rows:
            command = [sys.executable, __file__, *sys.argv[1:], "--row", row, "--model", str(model)]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=ROW_SECONDS, check=False, env=environment
                )
                output, errors = done.stdout, done.stderr
            except subprocess.TimeoutExpired as late:
                output, errors = (late.stdout or b"").decode(), f"no end after {ROW_SECONDS} s"
            table = [line for line in output.splitlines() if line.startswith("|")]
            print("\n".join(table) or f"| {row} | all | | | | | failed |", flush=True)
            if len(table) < len(MODULES):
                print(errors[-3000:], file=sys.stderr, flush=True)


def workload(arguments: argparse.Namespace) -> Workload:
    """The model and the sizes of a step; weights of a larger shape are random, and never end a completion."""
    shape = SHAPES[arguments.shape]
    return Workload(
        about="",
        prompts=arguments.prompts,
        group=arguments.group,
        new_tokens=arguments.new_tokens,
        fixed=shape is not None,
        random_weights=shape is not None,
        shape=shape,
        trl_batch=1,
    )


def run_row(arguments: argparse.Namespace) -> None:
    """Train each module under one strategy; a line of the table each, and the traceback of what failed."""
    import traceback

    failed = 0
    for kind in MODULES:
        try:
            cells = train(kind, arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other modules are still of interest
            traceback.print_exc()
            failed += 1
            cells = ["", "", "", "", f"failed: {type(error).__name__}"]
        print(f"| {arguments.row} | {kind} | {' | '.join(cells)} |", flush=True)
    sys.exit(failed)


def train(kind: str, arguments: argparse.Namespace) -> list[str]:
    """A few steps of a module: what the table says of it."""
    import torch
    from lightning.pytorch import Callback, Trainer, seed_everything
    from torch.utils.data import DataLoader

    from lit_reason import Problem
    from lit_reason.sharding import whole_tensor

    options = dict(ROWS[arguments.row])
    placing = {name: options.pop(name) for name in ("strategy", "precision") if name in options}
    cuda = arguments.device == "cuda"

    class Watch(Callback):
        def __init__(self) -> None:
            self.steps: list[dict[str, float]] = []
            self.before: dict[str, Any] = {}

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401 - Lightning's
            self.before = self.parameters(pl_module)
            forget_peak(cuda=cuda)
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:  # noqa: ANN401
            if cuda:
                torch.cuda.synchronize()
            now = time.perf_counter()
            figures = {n: float(v) for n, v in trainer.callback_metrics.items()}
            self.steps.append(figures | {"seconds": now - self.start})
            self.start = now

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401
            self.peak = peak(cuda=cuda)
            after = self.parameters(pl_module)
            trains = {n for n, p in pl_module.policy.model.named_parameters() if p.requires_grad}
            moved = {n for n, value in after.items() if not torch.equal(value, self.before[n])}
            self.stuck, self.strayed = len(trains - moved), len(moved - trains)

        @staticmethod
        def parameters(module: Any) -> dict[str, Any]:  # noqa: ANN401
            with module.policy.whole():
                named = module.policy.model.named_parameters()
                return {n: whole_tensor(p.detach()).cpu().clone() for n, p in named}

    seed_everything(0, verbose=False)
    module = build(kind, arguments, options)  # before the Trainer: it brings the names of our strategies
    watch = Watch()
    sizes = workload(arguments)
    trainer = Trainer(
        accelerator=arguments.device,
        devices=1,
        max_epochs=1,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=Path(arguments.model).parent,
        **placing,
    )
    problems = [Problem(prompt=p, id=str(i)) for i, p in enumerate(prompts(sizes, arguments.steps, seed=1))]
    size = arguments.prompts
    if kind == "SFT":
        size *= 4
        rows = [row for start in range(4) for row in traces(sizes, arguments.steps, seed=start)]
        problems = [Problem(prompt=p, completion=c, id=str(i)) for i, (p, c) in enumerate(rows)]
    trainer.fit(module, DataLoader(problems, batch_size=size, collate_fn=list))
    timed = watch.steps[1:] or watch.steps
    seconds = [
        f"{statistics.median(row[name] for row in timed):.3f}" if name in timed[0] else ""
        for name in ("seconds", "train/rollout_seconds", "train/update_seconds")
    ]
    finite = all(abs(row["train/loss"]) < float("inf") and row["train/grad_norm"] > 0 for row in watch.steps)
    learnt = "yes" if finite and not watch.stuck and not watch.strayed else "NO"
    if learnt == "NO":
        learnt += f" (finite {finite}, {watch.stuck} stuck, {watch.strayed} strayed)"
    return [*seconds, f"{watch.peak:.2f}", learnt]


def build(kind: str, arguments: argparse.Namespace, options: dict[str, Any]) -> Any:  # noqa: ANN401 - a Reasoner
    """The module, with rewards that need nothing but text."""
    import torch

    import lit_reason as lr

    if "lora" in options:
        options["lora"] = lr.LoRA(**options["lora"])
    # words of random models end in random letters; some of their completions must end for there to be a choice
    stop = ("zz",) if kind == "RejectionSampling" and SHAPES[arguments.shape] is not None else ()
    shared: dict[str, Any] = {
        "policy": lr.PolicyOptions(model=arguments.model, **options),
        "sampling": lr.Sampling(max_new_tokens=arguments.new_tokens, stop=stop),
        # bfloat16 weights near 1 do not move by less than 0.004
        "optimizer": lambda p: torch.optim.AdamW(p, lr=5e-3),
        "validation_samples": 0,
    }
    if kind == "SFT":
        return lr.SFT(**shared)
    if kind == "GRPO":
        return lr.GRPO([even_characters], group_size=arguments.group, **shared)
    return lr.RejectionSampling(
        [anything], group_size=arguments.group, keep=arguments.group, minibatches=1, select="first", **shared
    )


def even_characters(rollout: Any) -> float:  # noqa: ANN401 - a Rollout
    """Share of characters with an even code: different within any group."""
    return sum(ord(character) % 2 == 0 for character in rollout.text) / max(len(rollout.text), 1)


def anything(rollout: Any) -> float:  # noqa: ANN401 - a Rollout
    """Every completion is kept that has an end."""
    return float(len(rollout.text) >= 0)


def forget_peak(*, cuda: bool) -> None:
    """Measure peak memory from now on."""
    if cuda:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(*, cuda: bool) -> float:
    """The most memory since, in GiB."""
    if cuda:
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


if __name__ == "__main__":
    main()
