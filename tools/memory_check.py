"""Compares what `lit-reason fit --dry_run` says a run takes in memory with what it does take.

    python tools/memory_check.py              # all configurations
    python tools/memory_check.py grpo-nano    # some

Each configuration trains two steps in a process of its own (the second step has gradients and optimizer states of the
first), with completions that never end by themselves. On a CPU the measure is how far the resident memory of the
process rises, in each phase, above what it was after a tiny model was trained (all imports, all threads); on CUDA it
is torch's own count. Freed memory goes back to the system at once here (`MALLOC_*`), or a phase would be charged for
what an earlier one left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from bench_workloads import SMOLLM, WORKLOADS, reward, write_model

NANO = {"shape": None, "prompts": 16, "group": 8, "new": 256}
SMOL = {"shape": SMOLLM, "prompts": 2, "group": 4, "new": 100}
CASES: dict[str, dict[str, Any]] = {
    "sft-nano": {**NANO, "group": 0, "prompts": 256},
    "grpo-nano": {**NANO, "tokens": 4096},
    "grpo-nano-lora-checkpointing": {**NANO, "lora": 8, "checkpointing": True},
    "sft-135m": {**SMOL, "group": 0, "prompts": 12},
    "grpo-135m": {**SMOL, "beta": 0.04, "tokens": 300},
    "grpo-135m-lora": {**SMOL, "lora": 16},
    "grpo-135m-nf4": {**SMOL, "lora": 16, "quantization": "nf4"},
    "sft-135m-ddp": {**SMOL, "group": 0, "prompts": 12, "strategy": "ddp", "devices": 2},
    "sft-135m-fsdp2": {**SMOL, "group": 0, "prompts": 12, "strategy": "fsdp2", "devices": 2},
    "grpo-135m-fsdp2": {**SMOL, "prompts": 4, "strategy": "fsdp2", "devices": 2},
}
MIB = 2**20


def main() -> None:
    """Run the configurations one after another and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(CASES[options.cases[0]], options.child, options.threads)
        return
    print(f"{'configuration':30} {'phase':10} {'estimated':>10} {'measured':>10}   MiB, off by")
    for name in options.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            work = replace(
                WORKLOADS["tiny"], fixed=CASES[name]["group"] > 0, random_weights=True, shape=CASES[name]["shape"]
            )
            write_model(work, Path(folder), 0)
            found = [measure(name, folder, what, options.threads) for what in ("estimate", "run")]
        for phase, estimated in found[0].items():
            if phase in found[1]:
                measured = found[1][phase]
                off = 100 * (estimated / measured - 1)
                print(f"{name:30} {phase:10} {estimated / MIB:10.0f} {measured / MIB:10.0f}   {off:+.0f} %", flush=True)


def measure(name: str, folder: str, what: str, threads: int) -> dict[str, int]:
    """Bytes by phase, from a process of its own."""
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, name, "--child", f"{what}:{folder}", "--threads", str(threads)]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(case: dict[str, Any], where: str, threads: int) -> None:
    """Estimate, or train and measure."""
    what, folder = where.split(":", 1)
    import torch
    from lightning.pytorch import Trainer

    import lit_reason
    from lit_reason.memory import estimate
    from lit_reason.testing import tiny_policy

    torch.set_num_threads(threads)
    group = case["group"]
    policy = lit_reason.PolicyOptions(
        model=folder,
        lora=lit_reason.LoRA(rank=case["lora"]) if "lora" in case else None,
        quantization=case.get("quantization"),
        gradient_checkpointing=case.get("checkpointing", False),
    )
    shared: dict[str, Any] = {
        "policy": policy,
        "sampling": lit_reason.Sampling(max_new_tokens=case["new"]),
        "tokens_per_microbatch": case.get("tokens", 16384),
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-6),
    }
    peaks: dict[str, int] = {}
    base: type[Any] = lit_reason.GRPO if group else lit_reason.SFT

    class Measured(base):  # type: ignore[misc]  # chosen above
        def rollout(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return watched("rollout", super().rollout, *args, **kwargs)

        def update(self, *args: Any) -> None:  # noqa: ANN401
            watched("update", super().update, *args)

    start = 0

    def watched(phase: str, run: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        reset(torch)
        result = run(*args, **kwargs)
        peaks[phase] = max(peaks.get(phase, 0), peak(torch) - start)
        return result

    data = lit_reason.ReasoningData(
        {"nano_traces": {"size": 3 * case["prompts"]}}, prompts_per_step=case["prompts"], validation_problems=0
    )

    def train(model: str, *, only_estimate: bool = False) -> None:
        options = {**shared, "policy": replace(policy, model=model)}
        if group:
            loss = {"grpo": {"beta": case.get("beta", 0.0)}}
            module = Measured([lambda rollout: reward(rollout.text)], group_size=group, loss=loss, **options)
        else:
            module = Measured(**options)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet["enable_model_summary"] = False
        quiet["strategy"], quiet["devices"] = case.get("strategy", "auto"), case.get("devices", 1)
        if model != folder and not only_estimate:  # the tiny one
            quiet["strategy"], quiet["devices"] = "auto", 1
        trainer = Trainer(max_steps=2, accelerator="auto", precision=case.get("precision"), **quiet)
        if only_estimate:
            print(json.dumps({phase.name: phase.total for phase in estimate(module, data, trainer)}))
        else:
            trainer.fit(module, data)

    if what == "estimate":
        train(folder, only_estimate=True)
        return
    train(tiny_policy(Path(folder) / "tiny"))  # whatever is imported, or set up once, when it is first needed
    reset(torch)
    start = peak(torch)
    peaks.clear()
    train(folder)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(json.dumps(peaks))


def reset(torch: Any) -> None:  # noqa: ANN401 - imported late
    """Forget the highest memory so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(torch: Any) -> int:  # noqa: ANN401 - as above
    """Highest memory since, in bytes."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
