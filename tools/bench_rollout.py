"""How fast completions are made, against the machine's limits, and how cost grows with the sizes that users choose.

    python tools/bench_rollout.py                 # engines side by side at 1 to 256 sequences
    python tools/bench_rollout.py --growth        # step time and memory by group size, completion limit, prompt length

The limit of a decoding step is reading every weight and the live part of the key-value cache once, at the memory
bandwidth measured here, or the arithmetic at the matrix product rate measured here, whichever takes longer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # after the environment is set
from bench_workloads import SMOLLM

from lit_reason.batching import collate, micro_batches
from lit_reason.engines.generate import Generate
from lit_reason.engines.in_process import InProcess
from lit_reason.policy import Policy, PolicyOptions
from lit_reason.rollout import Engine, Request, Sampling
from lit_reason.types import Problem, Rollout

NEW_TOKENS, PROMPT, GROUP = 128, 256, 8
_MIXED = False
"""Whether matrix products are of bfloat16; `--bf16` says so."""


def requests(prompts: int, group: int, length: int, vocabulary: int) -> list[Request]:
    """Random prompts, each wanted `group` times."""
    generator = torch.Generator().manual_seed(0)
    return [
        Request(
            prompt_ids=torch.randint(0, vocabulary, (length,), generator=generator),
            streams=tuple(1000 * p + s for s in range(group)),
        )
        for p in range(prompts)
    ]


def seconds(engine: Engine, policy: Policy, wanted: Sequence[Request], sampling: Sampling) -> float:
    """Of one call."""
    policy.eval()
    start = time.perf_counter()
    mixed = torch.autocast(policy.causal_lm.device.type, torch.bfloat16, enabled=_MIXED)
    with torch.no_grad(), mixed:
        for _ in engine.generate(policy, wanted, sampling):
            pass
    return time.perf_counter() - start


def endless(policy: Policy) -> Policy:
    """Completions of a fixed length: no token ends them."""
    policy.eos_ids = []
    return policy


def machine(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes read a second, and floating-point operations a second of a large matrix product."""
    size = 1024 if device.type == "cpu" else 8192
    large = torch.ones(64 * 2**20 * (1 if device.type == "cpu" else 32), device=device)
    square = torch.randn(size, size, device=device, dtype=dtype)
    return 4 * large.numel() / _median(large.sum, device), 2 * size**3 / _median(lambda: square @ square, device)


def _median(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(9):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def limit(policy: Policy, rows: int, bandwidth: float, rate: float) -> float:
    """Seconds that a whole rollout must take: see the module's docstring."""
    config = policy.causal_lm.config
    weights = sum(p.numel() for p in policy.parameters())
    size = 2 if _MIXED else 4  # bytes of a number
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size
    total = 0.0
    for step in range(NEW_TOKENS):
        cache = per_token * (rows * step + max(1, rows // GROUP) * PROMPT)
        total += max((size * weights + cache) / bandwidth, 2 * weights * rows / rate)
    return total + 2 * weights * max(1, rows // GROUP) * PROMPT / rate


def engines(policy: Policy, repeats: int, most: int) -> list[dict[str, float | str]]:
    """Tokens a second by engine and number of sequences, alternating."""
    bandwidth, rate = machine(policy.causal_lm.device, torch.bfloat16 if _MIXED else torch.float32)
    print(f"bandwidth {bandwidth / 1e9:.1f} GB/s, matrix product {rate / 1e9:.0f} GFLOP/s")
    print("| sequences | in_process tokens/s | generate tokens/s | ratio | of the limit |")
    print("| --- | --- | --- | --- | --- |")
    table: list[dict[str, float | str]] = []
    for rows in (1, 4, 16, 64, 256):
        if rows > most:
            break
        wanted = requests(max(1, rows // GROUP), min(rows, GROUP), PROMPT, policy.causal_lm.config.vocab_size)
        sampling = Sampling(max_new_tokens=NEW_TOKENS, concurrent=rows)
        times: dict[str, list[float]] = {"in_process": [], "generate": []}
        for _ in range(repeats + 1):
            times["in_process"].append(seconds(InProcess(), policy, wanted, sampling))
            times["generate"].append(seconds(Generate(), policy, wanted, sampling))
        ours, theirs = (statistics.median(times[name][1:]) for name in ("in_process", "generate"))
        share = limit(policy, rows, bandwidth, rate) / ours
        speeds = [rows * NEW_TOKENS / s for s in (ours, theirs)]
        print(f"| {rows} | {speeds[0]:.0f} | {speeds[1]:.0f} | {theirs / ours:.2f} | {share:.0%} |", flush=True)
        table.append({"sequences": rows, "in_process": speeds[0], "generate": speeds[1], "of_limit": share})
    return table


def one_step(folder: str, sizes: tuple[int, int, int, int], threads: int) -> tuple[float, ...]:
    """Seconds of rollout and update of one phase, and how far memory rose, MiB; in a process of its own.

    The sizes: prompts, completions of each, tokens of a prompt, tokens of a completion.
    """
    prompts, group, prompt, new_tokens = sizes
    torch.set_num_threads(threads)
    policy = endless(Policy(PolicyOptions(model=folder)))
    vocabulary = policy.causal_lm.config.vocab_size
    wanted = requests(prompts, group, prompt, vocabulary)
    sampling = Sampling(max_new_tokens=new_tokens)
    seconds(InProcess(), policy, wanted, Sampling(max_new_tokens=8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rollouts = []
    start = time.perf_counter()
    with torch.no_grad():
        for index, sample, completion in InProcess().generate(policy, wanted, sampling):
            rollouts.append(
                Rollout(
                    problem=Problem(prompt=[]),
                    prompt_ids=wanted[index].prompt_ids,
                    completion_ids=completion.ids,
                    text="",
                    advantage=float(sample) - (group - 1) / 2,
                )
            )
    rolled = time.perf_counter()
    for part in micro_batches(rollouts, 16384, sharing=True):
        batch = collate(part, sharing=True)
        logprobs, _ = policy.logprobs(batch)
        (logprobs * batch.advantages).sum().backward()  # type: ignore[no-untyped-call]  # torch's
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rolled - start, done - rolled, (peak - before) / 1024


def growth(folder: str, threads: int) -> list[dict[str, float | str]]:
    """The cost of a phase as one size grows and the others stay."""
    cases = [("group size", 4, g, 256, 128) for g in (2, 8, 32, 64)]
    cases += [("completion limit", 4, 8, 256, t) for t in (64, 256, 1024, 2048)]
    cases += [("prompt tokens", 4, 8, p, 128) for p in (32, 256, 1024)]
    print("| grows | to | completion tokens | rollout s | update s | memory MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    table: list[dict[str, float | str]] = []
    context = multiprocessing.get_context("spawn")
    for what, prompts, group, prompt, new in cases:
        with context.Pool(1) as pool:
            rollout, update, memory = pool.apply(one_step, (folder, (prompts, group, prompt, new), threads))
        size = {"group size": group, "completion limit": new, "prompt tokens": prompt}[what]
        tokens = prompts * group * new
        print(f"| {what} | {size} | {tokens} | {rollout:.2f} | {update:.2f} | {memory:.0f} |", flush=True)
        table.append({"grows": what, "to": size, "rollout": rollout, "update": update, "memory": memory})
    return table


def roomy(folder: Path, shape: dict[str, Any]) -> str:
    """Nano's architecture, or another shape of it, with random weights and a context for the longest case."""
    from lit_reason.loading import resolve

    source = Path(resolve("nano"))
    for file in source.iterdir():
        if file.suffix in {".json", ".jinja"}:
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config.update(shape, max_position_embeddings=4096)
    (folder / "config.json").write_text(json.dumps(config))
    policy = Policy(PolicyOptions(model=str(folder), random_weights=True))
    policy.save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a folder; nano's architecture unless given")
    parser.add_argument("--growth", action="store_true", help="how cost grows, instead of engines side by side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="matrix products of bfloat16, as under bf16-mixed")
    parser.add_argument("--smollm", action="store_true", help="SmolLM-135M's shape instead of nano's")
    parser.add_argument("--most", type=int, default=256, help="most sequences")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    global _MIXED  # noqa: PLW0603 - said once, for the whole run
    _MIXED = arguments.bf16
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = (
            roomy(Path(folder), SMOLLM if arguments.smollm else {}) if arguments.model == "nano" else arguments.model
        )
        if arguments.growth:
            table = growth(model, arguments.threads)
        else:
            policy = endless(Policy(PolicyOptions(model=model)).to(arguments.device))
            table = engines(policy, arguments.repeats, arguments.most)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
